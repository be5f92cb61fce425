"""Regions: which elements of a tensor a view of its memory reaches."""

from __future__ import annotations

from torch import Tensor

from torchinit.core.shards import Box
from torchinit.tracing.writes import Region


def extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor reaches, and the one after the last."""
    if not tensor.numel():
        return 0, 0
    if tensor.is_contiguous():
        begin = int(tensor.storage_offset())
        return begin * tensor.element_size(), (begin + tensor.numel()) * tensor.element_size()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first, size = int(tensor.storage_offset()), tensor.element_size()
    return first * size, (first + reach) * size


def region_of(view: Tensor, base: Tensor) -> Region:
    """The region of ``base`` that a view of the same memory covers.

    >>> import torch
    >>> base = torch.zeros(4, 6)
    >>> region_of(base[1:3, 2], base), region_of(base.t(), base), region_of(base[:, ::2], base)
    (Box(start=(1, 2), shape=(2, 1)), None, 'part')
    """
    if view is base or _covers(view, base):
        return None
    place = _start(view, base) if view.dtype == base.dtype else None
    if place is None:
        return "part"
    shape: dict[int, int] = {}
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size != 1 and not _lay(size, stride, base, place, shape):
            return "part"
    return Box(place, tuple(shape.get(axis, 1) for axis in range(base.dim())))


def _covers(view: Tensor, base: Tensor) -> bool:
    """Whether the view reaches every element: it lies around the tensor and leaves no gaps."""
    (low, high), (begin, end) = extent(view), extent(base)
    if not (low <= begin and end <= high):
        return False
    same = (low, high) == (begin, end) and view.numel() == base.numel()
    return same or view.numel() * view.element_size() == high - low


def _start(view: Tensor, base: Tensor) -> tuple[int, ...] | None:
    """The index of the view's first element."""
    left = int(view.storage_offset()) - int(base.storage_offset())
    place = [0] * base.dim()
    if left < 0:
        return None
    for stride, axis in sorted(((base.stride(axis), axis) for axis in range(base.dim())), reverse=True):
        if base.shape[axis] > 1:
            place[axis], left = divmod(left, stride)
    inside = all(at < size for at, size in zip(place, base.shape, strict=True))
    return tuple(place) if inside and not left else None


def _lay(size: int, stride: int, base: Tensor, place: tuple[int, ...], shape: dict[int, int]) -> bool:
    """Lays a dimension of the view along the axes of the tensor that it runs along; False where it fits none."""
    while size > 1:
        axis = next((a for a in range(base.dim()) if base.stride(a) == stride and base.shape[a] > 1), None)
        if axis is None or axis in shape:
            return False
        here = base.shape[axis]
        if place[axis] + size <= here:
            shape[axis] = size
            return True
        if place[axis] or size % here:
            return False
        shape[axis], size, stride = here, size // here, stride * here
    return True
