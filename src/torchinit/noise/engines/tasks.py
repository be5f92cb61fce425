"""Tasks of engines: boxes of logical tensors to fill from the stream, and which memory the kernel can work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.noise.distributions import Draw


class FillTask(NamedTuple):
    """A real-valued tensor, and which box of the logical tensor goes into it.

    A tuple, since a dataclass costs three times as much to make, and a model has hundreds of small tensors.
    """

    out: Tensor
    shape: tuple[int, ...]
    start: tuple[int, ...]
    key: bytes
    draw: Draw


COMMON = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes that the kernel knows."""

# Where other subclasses keep their values is not known.
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_COMMON = frozenset(COMMON)


def is_simple(out: Tensor) -> bool:
    """Whether a tensor has its values behind each other in the memory of the host, in a common dtype."""
    # Spelled out, since it is asked of every tensor several times, and a call costs as much as the rest.
    return type(out) in _PLAIN and out.dtype in _COMMON and out.is_cpu and out.is_contiguous() and not out.is_neg()


def are_simple(outs: Sequence[Tensor]) -> bool:
    """Whether all of some tensors are simple; a look at one property of all after the other takes half the time."""
    return (
        _PLAIN.issuperset(map(type, outs))
        and _COMMON.issuperset([out.dtype for out in outs])
        and all([out.is_cpu and out.is_contiguous() and not out.is_neg() for out in outs])  # noqa: C419  # as above
    )


def is_plain(out: Tensor) -> bool:
    """The same, wherever on the host each value is. (A lazily negated view means other bits than it holds.)"""
    return type(out) in _PLAIN and out.dtype in _COMMON and out.is_cpu and not out.is_neg()


class ValueSums(NamedTuple):
    """The sum of distances from ``shift``, that of their squares, and the extremes, which are NaN if any value is."""

    shift: float
    total: float
    square: float
    low: float
    high: float


def is_stretch(box: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a box of a row-major tensor is one stretch of it."""
    first = next((axis for axis, size in enumerate(box) if size != 1), len(box))
    return box[first + 1 :] == shape[first + 1 :]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The distance of neighbours along each axis of a row-major tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def ravel(start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The flat index of an element in a row-major tensor."""
    return sum(at * stride for at, stride in zip(start, strides(shape), strict=True))
