"""Adapter: how tensors of a checkpoint become the one that a site needs; one after the other in a Chain."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar, dataclass_transform, final, get_args

import torch
from torch import Tensor

from torchinit._text import ShortStr
from torchinit.checkpoints.adapters.tensors import Size, listed, span
from torchinit.initializers.load_report import Promise as Promise  # noqa: PLC0414  # adapters have it from here
from torchinit.initializers.load_report import weakest
from torchinit.model.shards import Box, replaced
from torchinit.noise import Keyed
from torchinit.noise.settings import one_thread
from torchinit.serialization.reading import alternatives, argument_types
from torchinit.serialization.registry import ClassRegistry
from torchinit.serialization.schema import check_choice, check_number, is_integer

if TYPE_CHECKING:
    from torchinit.checkpoints.adapters.surroundings import Surroundings
    from torchinit.model.sites import Site

_Adapter = TypeVar("_Adapter", bound="Adapter")
_Value = TypeVar("_Value")

DtypeOf: TypeAlias = Callable[[str], torch.dtype | None]  # of a tensor of the file, by its name in the model


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The boxes to read, one of each tensor, and the function that combines them to a box of a site.

    >>> ReadPlan((Box((2,), (1,)),), lambda tensors: tensors[0]).combine([torch.arange(4)[2:3]])
    tensor([2])
    """

    boxes: tuple[Box, ...]
    combine: Callable[[Sequence[Tensor]], Tensor]


class Adapter(ShortStr, ABC):
    """A change of tensors of a checkpoint so that they fit a site.

    A frozen value and a pure function: the same tensors, shape and key give the same result. ``key`` is always the
    site's own, after prefix and renames. One that moves elements keeps their dtype; one that computes does so in
    float32 at least, and leaves it to the loader to round once to the site's dtype.

    >>> from torchinit.checkpoints.adapters import Transpose
    >>> Transpose().adapt([torch.zeros(2, 3)], (3, 2), "c_fc.weight").shape
    torch.Size([3, 2])
    """

    __slots__ = ()

    # Adapters are declared for each glob and never guessed: what would fit by shape alone may be another layer. They
    # see names as the model has them, shapes when a plan is made, tensors when it is run. Each makes one site, of one
    # tensor or several, so that every site still has one fill, and a plan one line for it.

    only_resizes: ClassVar[bool] = False  # a tensor that has the site's shape already is left alone
    copies: ClassVar[int] = 2  # of what it reads, in memory while it computes: no more than about so many

    @property
    def promise(self) -> Promise | None:
        """What a model keeps of the one that it is made of; None for a change of form, which is no other model's."""
        return None

    def wants(self, key: str) -> tuple[str, ...]:
        """The keys of the checkpoint that the site needs; none of them leaves the site to its other rules.

        Raises ValueError for a key that the adapter is not made for.
        """
        return (key,)

    def bound(self, key: str, values: DtypeOf, loose: DtypeOf) -> Adapter | None:
        """The adapter for one site once the file is known: itself, or None where the site is to be loaded as it is.

        ``values`` gives the dtype of a tensor of the file, ``loose`` that of one that no site is called; None for none.
        Raises ValueError where the file leaves open what to do.
        """
        del key, values, loose
        return self

    def placed(self, site: Site, around: Surroundings, shapes: Sequence[Size]) -> Adapter:
        """The adapter for one site of a model, where the tensors of the file have these shapes and change.

        Raises ValueError where the layer, or what stands around it, does not allow it.
        """
        del site, around, shapes
        return self

    def makes(self, shapes: Sequence[Size], key: str) -> Size | None:
        """The shape of what is made of tensors of these shapes; None where it is whatever the site asks for.

        Raises ValueError for shapes that nothing can be made of.
        """
        del shapes, key
        return None

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        """Raise ValueError, and say why, where a site of ``shape`` cannot be made of tensors of ``shapes``."""
        if (result := self.makes(shapes, key)) not in {None, shape}:
            raise ValueError(f"{self} makes {list(result or ())} of {listed(shapes)}, but the site has {list(shape)}")

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        """Whether there is anything to do."""
        return not self.only_resizes or shapes[0] != shape

    def together(self, key: str) -> tuple[str, ...]:
        """The sites that must be made by this adapter, too, if that of ``key`` is; else the plan is refused."""
        del key
        return ()

    @abstractmethod
    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        """The site's whole value, of ``shape``, from the tensors that it ``wants``, in that order."""

    def slices_along(self) -> int | None:
        """The axis along which whole slices of the tensors are moved, unchanged; None where values are computed."""
        return None

    @property
    def goes_by_slices(self) -> bool:
        """Whether a box of the site is made of little more of the file than it needs: see :meth:`read_plan`."""
        return self.slices_along() is not None

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        """The plan for a box of the site's value, made of tensors of ``shapes``; it must give the values of ``adapt``.

        Of slices that are moved those that come into the box are read. Else all is read, and the box cut out of the
        whole value, which is computed on one thread so that every rank has the same.
        """
        if (axis := self.slices_along()) is not None:
            return _plan_slices(self, axis, shapes, shape, box, key)

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            with one_thread():
                return box.of(self.adapt(tensors, shape, key))

        return ReadPlan(tuple(map(Box.whole, shapes)), combine)


class BySlices(Adapter):
    """An adapter that makes a box of little more than it needs: its ``read_plan`` is the formula, ``adapt`` follows."""

    __slots__ = ()

    @property
    def goes_by_slices(self) -> bool:
        return True

    @abstractmethod
    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan: ...

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        plan = self.read_plan([tuple(tensor.shape) for tensor in tensors], shape, Box.whole(shape), key)
        return plan.combine([box.of(tensor) for box, tensor in zip(plan.boxes, tensors, strict=True)])


ADAPTERS: Final = ClassRegistry("adapter", method="adapt", group="torchinit.adapters")


@dataclass_transform(frozen_default=True)
def register(cls: type[_Adapter]) -> type[_Adapter]:
    """Make an adapter a frozen dataclass that recipes can name, and that checks its arguments by their types."""
    more: Callable[[Adapter], None] | None = getattr(cls, "__post_init__", None)

    def check(adapter: Adapter) -> None:
        for name, (kind, parts, may_be_none) in _kinds(type(adapter)).items():
            if not may_be_none or getattr(adapter, name) is not None:
                _check_argument(adapter, name, kind, parts)
        if more:
            more(adapter)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return ADAPTERS.register(final(dataclass(frozen=True, slots=True)(cls)))


# --- arguments -------------------------------------------------------------------------------------------------------

_COUNTS: Final = frozenset({"block", "count", "fused", "granularity", "groups", "heads", "rank", "trained"})
"""Arguments that are numbers from 1; others that are whole numbers start at 0."""
_SIGNED: Final = frozenset({"drop", "scale", "scaling", "snr"})
"""Arguments that are numbers, but do not start at 0, or say it in other words."""
_ITEMS: Final[Mapping[object, str]] = {str: "names", int: "whole numbers", Adapter: "adapters"}


@cache
def _kinds(cls: type) -> dict[str, tuple[Any, tuple[Any, ...], bool]]:
    """The arguments that are of one kind, or None: the kind, the parts of its type, and whether None will do."""
    kinds = {}
    for name, hint in argument_types(cls).items():
        kind, *others = (each for each in alternatives(hint) if each is not NoneType)
        parts = get_args(kind)
        if not others and (kind in (int, float) or parts[1:] == (...,) or isinstance(next(iter(parts), None), str)):
            kinds[name] = kind, parts, NoneType in alternatives(hint)
    return kinds


def _check_argument(adapter: Adapter, name: str, kind: Any, parts: tuple[Any, ...]) -> None:
    """Check an argument that must be of a kind; a list becomes a tuple."""
    value = getattr(adapter, name)
    if name == "seed":
        Keyed(value)
    elif kind is int:
        if not is_integer(value, least := int(name in _COUNTS)):
            raise ValueError(f"{name} must be a whole number from {least}, but got {value!r}")
    elif kind is float:
        check_number(name, value, least=-math.inf if name in _SIGNED else 0)
    elif parts[1:] == (...,):
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, parts[0]) for item in value):
            raise TypeError(f"{name} must be a list of {_ITEMS[parts[0]]}, but got {value!r}")
        object.__setattr__(adapter, name, tuple(value))
    else:
        check_choice(name, value, kind)


def _plan_slices(adapter: Adapter, axis: int, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
    """The plan of an adapter that moves slices along one axis."""
    # The adapter itself tells which slices those are: all slices of all tensors are numbered, and a line of these
    # numbers, one element thick in the other dimensions, is put through `adapt`. What comes out at the place of the
    # box are the slices that it is made of. So no adapter says a second time, as arithmetic on offsets, what `adapt`
    # says already. Of each tensor the stretch from its first to its last such slice is read: a box that needs rows
    # far apart (groups) reads what lies between them, too.
    counts = [stored[axis] for stored in shapes]
    line = replaced((1,) * len(shape), axis, shape[axis])
    numbers = torch.arange(sum(counts), device="cpu").view(replaced(line, axis, -1)).split(counts, axis)
    wanted = adapter.adapt(numbers, line, key).flatten().narrow(0, box.start[axis], box.shape[axis])
    boxes, read, first = [], [], 0
    for count in counts:
        low, end = span([wanted[(wanted >= first) & (wanted < first + count)] - first])
        boxes.append(Box(replaced(box.start, axis, low), replaced(box.shape, axis, end - low)))
        read.append(torch.arange(first + low, first + end, device="cpu"))
        first += count
    order = torch.searchsorted(torch.cat(read), wanted)

    def combine(tensors: Sequence[Tensor]) -> Tensor:
        parts = [tensor for tensor in tensors if tensor.shape[axis]] or [tensors[0]]
        joined = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
        in_order = torch.equal(order, torch.arange(joined.shape[axis], device="cpu"))
        return joined if in_order else joined.index_select(axis, order.to(joined.device))

    return ReadPlan(tuple(boxes), combine)


# --- several adapters ------------------------------------------------------------------------------------------------


@register
class Chain(BySlices):
    """Several adapters, from the file to the site: each takes what the one before it makes.

    The last gives the site what it asks for; those before it must make a shape of their own, whatever the
    site's, as ``Transpose``, ``Fuse``, ``Split``, ``Stack`` do and the ones that resize do not.

    >>> from torchinit.checkpoints.adapters import Split, Transpose
    >>> chain = Chain((Transpose(), Split("c_attn", ("q", "k", "v"))))
    >>> chain.wants("h.0.k.weight"), chain.makes([(16, 48)], "h.0.k.weight")
    (('h.0.c_attn.weight',), (16, 16))
    """

    steps: tuple[Adapter, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a chain needs at least one step")
        if any(isinstance(step, Chain) for step in self.steps):
            raise ValueError("a chain holds no other chain; write its steps out")

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(wanted for part in self.steps[-1].wants(key) for wanted in self._before.wants(part))

    def bound(self, key: str, values: DtypeOf, loose: DtypeOf) -> Adapter | None:
        # A step is asked about the first of the tensors that it makes: parts of one site are kept in one way.
        steps: tuple[Adapter, ...] = ()
        for step in reversed(self.steps):
            behind = Chain(steps).wants(key)[:1] if steps else (key,)
            if behind and (found := step.bound(behind[0], values, loose)):
                steps = (found, *steps)
        if len(steps) == 1 < len(self.steps):
            return steps[0]
        return Chain(steps) if steps else None

    @property
    def promise(self) -> Promise | None:
        return weakest(step.promise for step in self.steps)

    def placed(self, site: Site, around: Surroundings, shapes: Sequence[Size]) -> Adapter:
        last = self.steps[-1].placed(site, around, self._input_shapes(shapes, site.name))
        return Chain((*self.steps[:-1], last))

    @property
    def goes_by_slices(self) -> bool:
        return all(step.goes_by_slices for step in self.steps)

    @property
    def _before(self) -> Adapter:
        """All steps but the last, as one."""
        return Chain(self.steps[:-1]) if len(self.steps) > 1 else _Nothing()

    # Shapes, keys and tensors come in the order of `wants`: for each tensor that the last step takes, all those of the
    # file that the steps before it make that one of. So the same walk sorts each of the three.
    def _inputs(self, values: Sequence[_Value], key: str) -> list[tuple[str, list[_Value]]]:
        left = iter(values)
        return [(part, [next(left) for _ in self._before.wants(part)]) for part in self.steps[-1].wants(key)]

    def _input_shapes(self, shapes: Sequence[Size], key: str) -> list[Size]:
        inputs = [self._before.makes(stored, part) for part, stored in self._inputs(shapes, key)]
        if None in inputs:
            raise ValueError(f"{self.steps[-2]} makes whatever shape is asked for, so it must be the last of {self}")
        return [size for size in inputs if size is not None]

    def makes(self, shapes: Sequence[Size], key: str) -> Size | None:
        return self.steps[-1].makes(self._input_shapes(shapes, key), key)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        self.steps[-1].check(self._input_shapes(shapes, key), shape, key)

    def together(self, key: str) -> tuple[str, ...]:
        return self.steps[-1].together(key)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        inputs = self._input_shapes(shapes, key)
        last = self.steps[-1].read_plan(inputs, shape, box, key)
        plans = [
            self._before.read_plan(stored, size, wanted, part)
            for (part, stored), size, wanted in zip(self._inputs(shapes, key), inputs, last.boxes, strict=True)
        ]

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            left = iter(tensors)
            return last.combine([plan.combine([next(left) for _ in plan.boxes]) for plan in plans])

        return ReadPlan(tuple(wanted for plan in plans for wanted in plan.boxes), combine)


@dataclass(frozen=True, slots=True)
class _Nothing(BySlices):
    """The steps before the first: each tensor as the file has it."""

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        return shapes[0]

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        return ReadPlan((box,), lambda tensors: tensors[0])
