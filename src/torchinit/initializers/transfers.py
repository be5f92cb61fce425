"""Transfers: values that come from elsewhere: looked through first, then copied."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import is_simple

_SMALL = 1 << 20
"""Fewer bytes than this are copied by torch: whoever reads them next finds them in the caches."""

_FORMATS = {torch.float32: ("<I", "<f"), torch.float64: ("<Q", "<d"), torch.float16: ("<H", "<e")}
"""How ``struct`` calls a word and a number of a dtype."""


def magnitude(values: Tensor) -> float:
    """The largest absolute value of floating-point numbers, NaN if one is, 0 of none; of complex ones of all parts.

    >>> magnitude(torch.tensor([1.0, -3.0])), magnitude(torch.tensor([float("nan"), float("inf")]))
    (3.0, nan)
    """
    if not values.numel():
        return 0.0
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    kernel = chosen_kernel() if is_simple(values) else None
    if kernel:
        return _number(kernel.largest(values, torch.get_num_threads()), values.dtype)
    if values.dtype.itemsize == 1:  # torch compares no 8-bit floats
        values = values.float()
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def _number(bits: int, dtype: torch.dtype) -> float:
    """The number that has these bits."""
    if dtype == torch.bfloat16:  # the upper half of a float32
        bits, dtype = bits << 16, torch.float32
    word, number = _FORMATS[dtype]
    found: float = struct.unpack(number, struct.pack(word, bits))[0]
    return found


def transfer(values: Tensor, out: Tensor) -> None:
    """Copies values into a tensor, as ``out.copy_(values)`` does; large ones without a detour through the caches.

    >>> out = torch.zeros(2)
    >>> transfer(torch.ones(2), out)
    >>> out
    tensor([1., 1.])
    """
    kernel = chosen_kernel() if _is_large_twin(values, out) else None
    if kernel:
        kernel.copy(out, values, torch.get_num_threads())
    else:
        out.copy_(values)


def _is_large_twin(values: Tensor, out: Tensor) -> bool:
    """Whether bytes can be copied as they are, between memory of their own."""
    return (
        out.nbytes >= _SMALL
        and is_simple(values)
        and is_simple(out)
        and (values.dtype, values.shape) == (out.dtype, out.shape)
        and out.untyped_storage().resizable()  # what torch allocated can be written, what is mapped perhaps not
        and abs(values.data_ptr() - out.data_ptr()) >= out.nbytes
    )
