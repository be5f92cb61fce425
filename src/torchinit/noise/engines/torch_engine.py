"""Reference: fills tasks in torch operations, on any device: the plain way that the fast ones must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from torchinit.noise.engines import philox
from torchinit.noise.engines.tasks import Task, is_stretch, ravel, strides

_CHUNK = {"cpu": 1 << 16}
_CHUNK_ELSEWHERE = 1 << 22


def fill(task: Task) -> None:
    """Draws the task's box on the device where it is."""
    out = task.out
    # A view of the destination where there is one, so that a large tensor is not held twice.
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    step = _CHUNK.get(out.device.type, _CHUNK_ELSEWHERE)
    for begin in range(0, out.numel(), step):
        end = min(begin + step, out.numel())
        flat[begin:end].copy_(philox.values(words(task, begin, end), task.draw))
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def words(task: Task, begin: int, end: int) -> Tensor:
    """The words of the box's elements ``begin`` to ``end``, counted in row-major order within the box."""
    shape, box, device = task.shape, tuple(task.out.shape), task.out.device
    if is_stretch(box, shape):
        return philox.words_between(philox.key_of(task.key), ravel(task.start, shape) + begin, end - begin, device)
    place = torch.arange(begin, end, dtype=torch.int64, device=device)
    index = torch.zeros_like(place)
    axes = zip(reversed(box), reversed(task.start), reversed(strides(shape)), strict=True)
    for size, offset, stride in axes:
        # Products beyond 2**63 wrap, and are read as unsigned again.
        index += (place % size + offset) * _wrapped(stride)
        place //= size
    return philox.words_at(philox.key_of(task.key), index)


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
