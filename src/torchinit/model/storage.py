"""Memory: which tensors are one, and which lie in part of each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.model.dtensor import is_distributed, local_part

_Key = TypeVar("_Key")

_LARGEST = 1 << 28
"""Above so many bytes, views of one memory are taken to share elements without a look."""


def identity(tensor: Tensor) -> object:
    """What two names of one tensor have in common: place, shape and strides in one memory, also on the meta device.

    >>> linear = nn.Linear(2, 2)
    >>> identity(linear.weight) == identity(linear.weight.data), identity(linear.weight) == identity(linear.weight.T)
    (True, False)
    """
    if is_distributed(tensor):
        layout = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
        return _place(local_part(tensor)), *layout
    # What has no elements shares none; of a distributed tensor there may be none here, and it is tied all the same.
    return _place(tensor) if is_lazy(tensor) or tensor.numel() else id(tensor)


def _place(tensor: Tensor) -> object:
    if not _is_plain(tensor):
        return id(tensor)
    home = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return home, tuple(tensor.shape), tensor.stride(), tensor.dtype


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has memory that can be compared: it is no subclass with rules of its own."""
    return type(tensor) in (Tensor, nn.Parameter) and not is_lazy(tensor) and tensor.layout == torch.strided


def overlaps(tensor: Tensor) -> bool:
    """Whether two indices may reach the same memory: no stride may lie within the reach of the smaller ones.

    >>> overlaps(torch.zeros(1).expand(3)), overlaps(torch.zeros(2, 3).T)
    (True, False)
    """
    tensor = local_part(tensor)
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def entangled(tensors: Mapping[_Key, Tensor]) -> dict[_Key, tuple[_Key, ...]]:
    """For each tensor that lies in part of another's memory the others' keys. The tensors must not be one.

    >>> memory = torch.zeros(4, 4)
    >>> entangled({"table": memory, "head": memory.T, "other": torch.zeros(4, 4)})
    {'table': ('head',), 'head': ('table',)}
    """
    found: dict[_Key, tuple[_Key, ...]] = {}
    for group in _by_memory(tensors.items()):
        for (name, tensor), (other, theirs) in combinations(group, 2):
            if _meet(tensor, theirs):
                found[name] = (*found.get(name, ()), other)
                found[other] = (*found.get(other, ()), name)
    return found


def _by_memory(items: Iterable[tuple[_Key, Tensor]]) -> Iterator[list[tuple[_Key, Tensor]]]:
    groups: dict[int, list[tuple[_Key, Tensor]]] = defaultdict(list)
    for name, tensor in ((name, local_part(tensor)) for name, tensor in items):
        if _is_plain(tensor) and tensor.numel():
            groups[tensor.untyped_storage()._cdata].append((name, tensor))
    return (group for group in groups.values() if len(group) > 1)


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether an element of one lies in the memory of the other."""
    (low, high), (begin, end) = _extent(one), _extent(other)
    if high <= begin or end <= low:
        return False
    base, top = min(low, begin), max(high, end)
    if one.dtype.itemsize != other.dtype.itemsize or top - base > _LARGEST:
        return True
    size = one.dtype.itemsize
    marks = torch.zeros((top - base) // size, dtype=torch.bool)
    marks.as_strided(one.shape, one.stride(), (low - base) // size).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), (begin - base) // size).any())


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The bytes from the first element to behind the last."""
    reach = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    first, size = int(tensor.storage_offset()), tensor.dtype.itemsize
    return first * size, (first + reach + 1) * size
