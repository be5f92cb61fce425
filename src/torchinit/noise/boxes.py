"""Tasks: boxes of logical tensors that are to be filled from the stream."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from torchinit.noise.draws import Draw


class Task(NamedTuple):
    """A real-valued tensor, and which box of the logical tensor goes into it.

    A tuple, since a dataclass costs three times as much to make, and a model has hundreds of small tensors.
    """

    out: Tensor
    shape: tuple[int, ...]
    start: tuple[int, ...]
    key: bytes
    draw: Draw


def is_stretch(box: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a box of a row-major tensor is one stretch of it.

    >>> is_stretch((2, 5), (4, 5)), is_stretch((1, 3), (4, 5)), is_stretch((2, 3), (4, 5))
    (True, True, False)
    """
    first = next((axis for axis, size in enumerate(box) if size != 1), len(box))
    return box[first + 1 :] == shape[first + 1 :]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many elements apart neighbours along each axis are in a row-major tensor.

    >>> strides((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def ravel(start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The flat index of an element in a row-major tensor."""
    return sum(at * stride for at, stride in zip(start, strides(shape), strict=True))
