"""Experts: weights of the same shape as one stack, and one of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size
from torchinit.checkpoints.adapters.keys import check_pattern, numbered, swapped
from torchinit.core.arguments import is_whole
from torchinit.core.shards import Box, inserted, without


@final
@dataclass(frozen=True, slots=True)
class Stack(Adapter):
    """Weights of the same shape, stacked along a new dimension ``axis``: the experts of a mixture.

    A key is the site's own with ``into`` replaced by ``parts``, whose ``*`` is 0, 1, ... to ``count``.

    >>> Stack("experts.w1", "experts.*.w1.weight", count=2).wants("layers.0.experts.w1")
    ('layers.0.experts.0.w1.weight', 'layers.0.experts.1.w1.weight')
    """

    into: str
    parts: str
    count: int
    axis: int = 0

    def __post_init__(self) -> None:
        check_pattern("parts", self.parts)
        if not is_whole(self.count) or not is_whole(self.axis, 0):
            raise ValueError(
                f"count must be a whole number from 1 and axis one from 0, but got {self.count!r} and {self.axis!r}"
            )

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(swapped(key, self.into, self.parts.replace("*", str(number))) for number in range(self.count))

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        seen = shapes[0]
        other = next((size for size in shapes if size != seen), None)
        if other is not None or len(seen) < self.axis:
            also = f" and {list(other)}" if other else ""
            raise ValueError(
                f"{self} needs tensors of one shape, to be stacked at {self.axis}, but got {list(seen)}{also}"
            )
        return inserted(seen, self.axis, len(shapes))

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return torch.stack(tuple(tensors), self.axis)

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        start, size = without(box.start, self.axis), without(box.shape, self.axis)
        here = range(box.start[self.axis], box.start[self.axis] + box.shape[self.axis])
        boxes = (Box(start, size if number in here else (0,) * len(size)) for number in range(len(shapes)))

        def make(tensors: Sequence[Tensor]) -> Tensor:
            held = tensors[here.start : here.stop]
            return torch.stack(tuple(held), self.axis) if held else tensors[0].new_empty(box.shape)

        return Part(tuple(boxes), make)


@final
@dataclass(frozen=True, slots=True)
class Unstack(Adapter):
    """One of a stack: the reverse of :class:`Stack`. The site's own key says which, at the ``*`` of ``parts``.

    >>> one = Unstack("experts.w1", "experts.*.w1.weight")
    >>> one.wants("layers.0.experts.5.w1.weight"), one.makes([(8, 64, 16)], "layers.0.experts.5.w1.weight")
    (('layers.0.experts.w1',), (64, 16))
    """

    whole: str
    parts: str
    axis: int = 0

    def __post_init__(self) -> None:
        check_pattern("parts", self.parts)
        if not is_whole(self.axis, 0):
            raise ValueError(f"axis must be a whole number from 0, but got {self.axis!r}")

    def wants(self, key: str) -> tuple[str, ...]:
        _, part = numbered(key, self.parts)
        return (swapped(key, part, self.whole),)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        (seen,) = shapes
        number, _ = numbered(key, self.parts)
        if len(seen) <= self.axis or seen[self.axis] <= number:
            raise ValueError(f"{self} needs more than {number} along dimension {self.axis}, but got {list(seen)}")
        return without(seen, self.axis)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (stack,) = tensors
        return stack.select(self.axis, numbered(key, self.parts)[0])

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        number, _ = numbered(key, self.parts)
        one = Box(inserted(box.start, self.axis, number), inserted(box.shape, self.axis, 1))
        return Part((one,), lambda tensors: tensors[0].squeeze(self.axis))
