"""Marks: what shows afterwards that a tensor was changed, when nobody saw it happen."""

from __future__ import annotations

import ctypes
import hashlib
from typing import NamedTuple

import torch  # noqa: F401 # for the doctest
from torch import Tensor
from torch.nn.parameter import is_lazy

from torchinit.tracing.observe import memory_of

SMALL = 2048
"""A tensor with no more elements than this is looked at whole: that is cheaper than to take a sample."""

SAMPLE = 256
"""Of any other so many elements are looked at, evenly spread."""


class Mark(NamedTuple):
    """A tensor at one moment: its memory, its version, its content (None where there is none to look at)."""

    storage: int | None
    version: int
    content: bytes | None


def mark(tensor: Tensor, *, exact: bool = False) -> Mark:
    """The mark of a tensor as it is now; ``exact`` looks at every element.

    >>> x = torch.zeros(3)
    >>> before = mark(x)
    >>> _ = x.numpy().fill(1.0)
    >>> mark(x) == before
    False
    """
    if is_lazy(tensor):
        return Mark(None, 0, None)
    memory = memory_of(tensor)
    storage = None if memory is None else memory.untyped_storage()._cdata
    version = 0 if tensor.is_inference() else tensor._version
    return Mark(storage, version, None if memory is None else content(memory, exact=exact))


def content(tensor: Tensor, *, exact: bool = False) -> bytes | None:
    """The bytes of a sample of a plain tensor's elements, or the digest of all; None where it has no memory."""
    if tensor.is_meta or not tensor.untyped_storage().nbytes():
        return None
    numel = tensor.numel()
    if exact or not tensor.is_contiguous():
        flat = tensor.detach().flatten()
        return _digest((flat if exact else flat[:: max(1, numel // SAMPLE)]).contiguous().cpu())
    # A model has hundreds of small tensors: no more operations than it takes.
    sample = tensor if numel <= SMALL else tensor.as_strided((SAMPLE,), (numel // SAMPLE,)).contiguous()
    sample = sample if sample.is_cpu else sample.detach().cpu()
    return ctypes.string_at(sample.data_ptr(), sample.numel() * sample.element_size()) if numel else b""


def _digest(flat: Tensor) -> bytes:
    size = flat.numel() * flat.element_size()
    held = (ctypes.c_char * size).from_address(flat.data_ptr()) if size else b""
    return hashlib.blake2b(held, digest_size=16).digest()
