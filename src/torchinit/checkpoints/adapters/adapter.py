"""Adapter: how tensors of a checkpoint become the one that a site needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from torchinit.core.shards import Box
from torchinit.core.spelling import Spelled
from torchinit.core.threads import one_thread
from torchinit.registry import Registry

Size: TypeAlias = tuple[int, ...]
"""The shape of a tensor."""


@dataclass(frozen=True, slots=True)
class Part:
    """How a box of a site is made: what is read of each tensor, and what makes the box of that.

    >>> import torch
    >>> part = Part((Box((2,), (1,)),), lambda tensors: tensors[0])
    >>> part.make([box.of(torch.arange(4)) for box in part.boxes])
    tensor([2])
    """

    boxes: tuple[Box, ...]
    make: Callable[[Sequence[Tensor]], Tensor]


class Adapter(Spelled, ABC):
    """What is done to tensors of a checkpoint so that they fit a site.

    A frozen value and a pure function: the same tensors, shape and key give the same result. ``key`` is
    always the site's own, after prefix and renames. Where only a part of a site is here, the whole is
    computed and that part kept, unless :meth:`part` knows better.

    One that moves elements keeps their dtype; one that computes does so in float32 at least, and leaves it
    to the loader to round once to the site's dtype.

    >>> import torch
    >>> from torchinit.checkpoints.adapters.axes import Transpose
    >>> Transpose().check([(2, 3)], (3, 2), "c_fc.weight")
    >>> Transpose().adapt([torch.zeros(2, 3)], (3, 2), "c_fc.weight").shape
    torch.Size([3, 2])
    """

    __slots__ = ()

    def wants(self, key: str) -> tuple[str, ...]:
        """The keys of the checkpoint that the site needs; none of them declines the site to its other rules.

        Raises ValueError for a key that the adapter is not made for.
        """
        return (key,)

    def makes(self, shapes: Sequence[Size], key: str) -> Size | None:
        """The shape of what is made of tensors of these shapes; None where it is whatever the site asks for.

        Raises ValueError for shapes that nothing can be made of.
        """
        del shapes, key
        return None

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        """Raises ValueError, and says why, where a site of ``shape`` cannot be made of tensors of ``shapes``."""
        made = self.makes(shapes, key)
        if made is not None and made != shape:
            raise ValueError(
                f"{self} makes {list(made)} of {', '.join(str(list(seen)) for seen in shapes)}, "
                f"but the site has {list(shape)}"
            )

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        """Whether there is anything to do: what only resizes leaves tensors alone that have the size already."""
        del shapes, shape
        return True

    @abstractmethod
    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        """The site's whole value, of ``shape``, from the tensors that it ``wants``, in that order."""

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        """How a box of the site's value is made of tensors of ``shapes``: what is read, and what is done to that.

        Here all is read, and the box cut out of the whole value, which is computed on one thread so that every rank
        has the same. What only moves elements needs no more than those that come into the box; it must give the very
        values that ``adapt`` gives.
        """

        def make(tensors: Sequence[Tensor]) -> Tensor:
            with one_thread():
                return box.of(self.adapt(tensors, shape, key))

        return Part(tuple(map(Box.whole, shapes)), make)


ADAPTERS: Final = Registry("adapter", method="adapt", group="torchinit.adapters")
"""Every adapter that a recipe can name."""


def computed(tensor: Tensor) -> Tensor:
    """The tensor in a dtype to compute in: its own, but float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def take_lists(adapter: Adapter, kind: type, *names: str) -> None:
    """Makes tuples of arguments that may be lists. Raises TypeError for what is no list of ``kind``, text above all.

    >>> from torchinit.checkpoints.adapters.heads import Rows
    >>> Rows([2, 0]).indices
    (2, 0)
    """
    what = {str: "names", int: "whole numbers"}.get(kind, "adapters")
    for name in names:
        given = getattr(adapter, name)
        if not isinstance(given, (list, tuple)) or not all(isinstance(one, kind) for one in given):
            raise TypeError(f"{name} must be a list of {what}, but got {given!r}")
        object.__setattr__(adapter, name, tuple(given))


def check_same(adapter: Adapter, seen: Size, shape: Size, free: Collection[int]) -> None:
    """Raises ValueError unless the shapes agree in every dimension but the ``free`` ones, which may not be empty.

    >>> from torchinit.checkpoints.adapters.axes import Transpose
    >>> check_same(Transpose(), (8, 3), (8, 4), free={1})
    """
    if len(shape) <= max(free):
        raise ValueError(f"{adapter} needs a site of at least {max(free) + 1} dimensions, but it has {list(shape)}")
    like = len(seen) == len(shape) and all(
        axis in free or size == asked for axis, (size, asked) in enumerate(zip(seen, shape, strict=True))
    )
    if not like:
        expected = ", ".join("*" if axis in free else str(size) for axis, size in enumerate(shape))
        raise ValueError(f"{adapter} needs [{expected}] for a site of {list(shape)}, but got {list(seen)}")
    if any(seen[axis] == 0 for axis in free):
        raise ValueError(f"{adapter} can make nothing of {list(seen)}, which is empty")
