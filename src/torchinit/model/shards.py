"""Shards: the part of a site that is here, and where it begins in the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from torchinit._frozen import quickly_made
from torchinit.model.sandbox import check_values


@quickly_made
@dataclass(frozen=True, slots=True)
class Box:
    """A box of a tensor: where it starts and how far it reaches, an entry a dimension.

    >>> import torch
    >>> Box.whole((4, 3)), Box((0, 1), (2, 2)).of(torch.arange(6).view(2, 3)).tolist()
    (Box(start=(0, 0), shape=(4, 3)), [[1, 2], [4, 5]])
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """The box that holds all of a tensor of this shape."""
        return cls((0,) * len(shape), shape)

    @classmethod
    def nothing(cls, dimensions: int) -> Box:
        """A box without elements, of a tensor of so many dimensions."""
        return cls((0,) * dimensions, (0,) * dimensions)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor in the box, as a view."""
        return tensor[tuple(slice(low, low + size) for low, size in zip(self.start, self.shape, strict=True))]


@quickly_made
@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a site that is here.

    ``local`` holds the elements ``start[d] <= index[d] < start[d] + local.shape[d]`` of a tensor of
    shape ``shape`` that is called ``name``. A tensor that is wholly here starts at the origin.

    ``matrix`` is the box of the whole that a fill takes for *the tensor* where it cannot work element
    by element (orthogonal, identity): one gate of an LSTM, one expert of a stack. None: the whole.

    ``store`` takes the finished values to where the model keeps them, when ``local`` is not itself the
    model's memory (a parametrized weight), and returns what the model now makes of them; ``sources`` are the tensors
    there.

    ``spread`` says that other ranks hold parts or copies of the same tensor, so that values must not come from
    a generator that each rank has for itself. Raises RunError for a tensor that holds no values (:mod:`.sandbox`).

    >>> import torch
    >>> Shard("weight", torch.empty(2, 3), shape=(8, 3), start=(4, 0)).is_whole
    False
    """

    name: str
    local: Tensor
    shape: tuple[int, ...]
    start: tuple[int, ...]
    matrix: Box | None = None
    store: Callable[[Tensor], Tensor] | None = None
    sources: tuple[Tensor, ...] = ()
    spread: bool = False

    def __post_init__(self) -> None:
        check_values(self.name, self.local)

    @classmethod
    def whole(cls, name: str, local: Tensor, store: Callable[[Tensor], Tensor] | None = None) -> Shard:
        """The shard of a tensor that is wholly here."""
        shape = tuple(local.shape)
        return cls(name, local, shape, (0,) * len(shape), None, store)

    @property
    def is_whole(self) -> bool:
        return tuple(self.local.shape) == self.shape

    @property
    def region(self) -> Box:
        """The box that whole-tensor fills work on."""
        return self.matrix or Box.whole(self.shape)

    def cut(self, axis: int, low: int, high: int) -> Shard:
        """The part of this shard whose index along ``axis`` lies in ``[low, high)`` of the whole.

        That part becomes the ``matrix``; ``local`` may come out empty when none of it is here.
        """
        begin, size = self.start[axis], self.local.shape[axis]
        # The interval may lie wholly before the shard or behind it: `last` is then brought up to `first`, and `narrow`
        # begins at the end at most. So a part without elements still says where it would begin.
        first = max(low, begin)
        last = max(first, min(high, begin + size))
        box = self.region
        return replace(
            self,
            local=self.local.narrow(axis, min(first - begin, size), last - first),
            start=replaced(self.start, axis, first),
            matrix=Box(replaced(box.start, axis, low), replaced(box.shape, axis, high - low)),
        )


def replaced(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    """The values with another one in place of one: ``replaced((4, 8), 0, 2) == (2, 8)``."""
    return (*values[:at], value, *values[at + 1 :])


def without(values: tuple[int, ...], at: int) -> tuple[int, ...]:
    """The values without one: ``without((4, 8), 0) == (8,)``."""
    return (*values[:at], *values[at + 1 :])


def inserted(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    """The values with one more: ``inserted((4, 8), 1, 2) == (4, 2, 8)``."""
    return (*values[:at], value, *values[at:])
