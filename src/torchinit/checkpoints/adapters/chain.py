"""Chain: several adapters, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, final

from torch import Tensor

from torchinit.checkpoints.adapters.base import ADAPTERS, Adapter, ReadPlan, Size, take_lists
from torchinit.model.shards import Box

_Value = TypeVar("_Value")


@ADAPTERS.register
@final
@dataclass(frozen=True, slots=True)
class Chain(Adapter):
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
        take_lists(self, Adapter, "steps")
        if not self.steps:
            raise ValueError("a chain needs at least one step")
        if any(isinstance(step, Chain) for step in self.steps):
            raise ValueError("a chain holds no other chain; write its steps out")

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(wanted for part in self._last.wants(key) for wanted in self._before.wants(part))

    @property
    def _last(self) -> Adapter:
        return self.steps[-1]

    @property
    def _before(self) -> Adapter:
        """All steps but the last, as one."""
        return Chain(self.steps[:-1]) if len(self.steps) > 1 else _Nothing()

    # Shapes, keys and tensors come in the order of `wants`: for each tensor that the last step takes, all those of the
    # file that the steps before it make that one of. So the same walk sorts each of the three.
    def _inputs(self, values: Sequence[_Value], key: str) -> list[tuple[str, list[_Value]]]:
        """The name of each tensor that the last step takes, and those of the values that it is made of."""
        left = iter(values)
        return [(part, [next(left) for _ in self._before.wants(part)]) for part in self._last.wants(key)]

    def _input_shapes(self, shapes: Sequence[Size], key: str) -> list[Size]:
        """The shapes that the last step takes."""
        inputs = [self._before.makes(seen, part) for part, seen in self._inputs(shapes, key)]
        if None in inputs:
            raise ValueError(f"{self.steps[-2]} makes whatever shape is asked for, so it must be the last of {self}")
        return [size for size in inputs if size is not None]

    def makes(self, shapes: Sequence[Size], key: str) -> Size | None:
        return self._last.makes(self._input_shapes(shapes, key), key)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        self._last.check(self._input_shapes(shapes, key), shape, key)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        plan = self.read_plan([tuple(tensor.shape) for tensor in tensors], shape, Box.whole(shape), key)
        return plan.combine([box.of(tensor) for box, tensor in zip(plan.boxes, tensors, strict=True)])

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        inputs = self._input_shapes(shapes, key)
        last = self._last.read_plan(inputs, shape, box, key)
        plans = [
            self._before.read_plan(seen, size, wanted, part)
            for (part, seen), size, wanted in zip(self._inputs(shapes, key), inputs, last.boxes, strict=True)
        ]

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            left = iter(tensors)
            return last.combine([plan.combine([next(left) for _ in plan.boxes]) for plan in plans])

        return ReadPlan(tuple(wanted for plan in plans for wanted in plan.boxes), combine)


@final
@dataclass(frozen=True, slots=True)
class _Nothing(Adapter):
    """The steps before the first: each tensor as the file has it."""

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        return shapes[0]

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return tensors[0]

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        return ReadPlan((box,), lambda tensors: tensors[0])
