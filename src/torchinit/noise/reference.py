"""Tasks: boxes of logical tensors to be filled from the stream, and the plain way to fill them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchinit.noise import philox
from torchinit.noise.draws import Draw, Kind

_CHUNK = {"cpu": 1 << 16}
_CHUNK_ELSEWHERE = 1 << 22


@dataclass(frozen=True, slots=True)
class Task:
    """A real-valued tensor, and which box of the logical tensor goes into it."""

    out: Tensor
    shape: tuple[int, ...]
    start: tuple[int, ...]
    key: philox.Key
    draw: Draw


def fill(task: Task) -> None:
    """Draws the task's box in torch operations, on the device where it is."""
    out = task.out
    # A view of the destination where there is one, so that a large tensor is not held twice.
    flat = (
        out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    )
    step = _CHUNK.get(out.device.type, _CHUNK_ELSEWHERE)
    for begin in range(0, out.numel(), step):
        end = min(begin + step, out.numel())
        flat[begin:end].copy_(philox.values(words(task, begin, end), task.draw))
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def words(task: Task, begin: int, end: int) -> Tensor:
    """The words of the box's elements ``begin`` to ``end``, counted in row-major order within the box."""
    shape, box = task.shape, tuple(task.out.shape)
    if is_stretch(box, shape):
        return philox.words_between(task.key, ravel(task.start, shape) + begin, end - begin, task.out.device)
    place = torch.arange(begin, end, dtype=torch.int64, device=task.out.device)
    index = torch.zeros_like(place)
    for size, offset, stride in zip(
        reversed(box), reversed(task.start), reversed(strides(shape)), strict=True
    ):
        # Products beyond 2**63 wrap, and are read as unsigned again.
        index += (place % size + offset) * _wrapped(stride)
        place //= size
    return philox.words_at(task.key, index)


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


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


WORDS = Draw(Kind.WORDS)
