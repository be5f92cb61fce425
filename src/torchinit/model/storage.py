"""Storage: tensors that are one, and tensors that share part of their memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.model.dtensor import is_distributed, local_part

_Key = TypeVar("_Key")

_PLAIN = frozenset((Tensor, nn.Parameter))

_LARGEST = 1 << 28
"""Above so many bytes, views of one memory are taken to share elements without a look."""


def identity(tensor: Tensor) -> object:
    """A key that all names of one tensor share: place, shape and strides in one memory, also on the meta device.

    >>> linear = nn.Linear(2, 2)
    >>> identity(linear.weight) == identity(linear.weight.data), identity(linear.weight) == identity(linear.weight.T)
    (True, False)
    """
    if is_distributed(tensor):
        layout = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
        return _place(local_part(tensor)), *layout
    # What has no elements shares none; of a distributed tensor there may be none here, and it is tied all the same.
    return _place(tensor) if is_lazy(tensor) or tensor.numel() else id(tensor)


def keys_of_met(tensors: Sequence[Tensor]) -> dict[int, object]:
    """A key for each tensor that has others in its memory, by its id, that all its names share; none for the rest.

    >>> linear, buffer = nn.Linear(2, 2), torch.zeros(2)
    >>> keys = keys_of_met([linear.weight, linear.weight.T, buffer])
    >>> id(buffer) in keys, keys[id(linear.weight)] == identity(linear.weight)
    (False, True)
    """
    # Nearly all tensors of a model are alone in their memory. So only those that are not are looked at more closely.
    if _PLAIN.issuperset(map(type, tensors)):
        with suppress(NotImplementedError, RuntimeError):  # not all have memory of their own
            if len({tensor.untyped_storage()._cdata for tensor in tensors}) == len(tensors):
                return {}
    first: dict[int, Tensor] = {}
    met: dict[int, Tensor] = {}
    for tensor in tensors:
        local = tensor if type(tensor) is nn.Parameter else local_part(tensor)
        if _is_plain(local):
            other = first.setdefault(local.untyped_storage()._cdata, tensor)
            if other is not tensor:
                met[id(other)], met[id(tensor)] = other, tensor
    return {key: identity(tensor) for key, tensor in met.items()}


def _place(tensor: Tensor) -> object:
    if not _is_plain(tensor):
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has memory that can be compared: it is not of a subclass with rules of its own."""
    is_ordinary = type(tensor) in _PLAIN and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return is_ordinary and tensor.layout is torch.strided


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
    """The keys of all others in whose memory a tensor lies in part, for each that does. No two may be one tensor.

    >>> memory = torch.zeros(4, 4)
    >>> entangled({"table": memory, "head": memory.T, "other": torch.zeros(4, 4)})
    {'table': ('head',), 'head': ('table',)}
    """
    by_memory: dict[int, list[tuple[_Key, Tensor]]] = defaultdict(list)
    for key, tensor in tensors.items():
        local = local_part(tensor)
        if _is_plain(local) and local.numel():
            by_memory[local.untyped_storage()._cdata].append((key, local))
    others: dict[_Key, tuple[_Key, ...]] = {}
    for group in by_memory.values():
        for (key, tensor), (other_key, other) in combinations(group, 2):
            if _meet(tensor, other):
                others[key] = (*others.get(key, ()), other_key)
                others[other_key] = (*others.get(other_key, ()), key)
    return others


def _meet(tensor: Tensor, other: Tensor) -> bool:
    """Whether an element of one lies in the memory of the other: one marks its elements, the other looks for marks."""
    (low, high), (begin, end) = extent(tensor), extent(other)
    if high <= begin or end <= low:
        return False
    base, top, size = min(low, begin), max(high, end), tensor.dtype.itemsize
    if size != other.dtype.itemsize or top - base > _LARGEST:
        return True
    marks = torch.zeros((top - base) // size, dtype=torch.bool, device="cpu")
    marks.as_strided(tensor.shape, tensor.stride(), (low - base) // size).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), (begin - base) // size).any())


def extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor reaches, and the one after the last."""
    if not tensor.numel():
        return 0, 0
    first, size = int(tensor.storage_offset()), tensor.element_size()
    if tensor.is_contiguous():
        return first * size, (first + tensor.numel()) * size
    reach = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first * size, (first + reach) * size
