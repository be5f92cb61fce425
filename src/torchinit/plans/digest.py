"""Digests: the bits of a shard in two sums, which add up to those of the whole tensor."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.model.shards import Shard
from torchinit.noise.engines import dispatch, kernel
from torchinit.noise.engines.tasks import is_simple, ravel, strides

_ALL = (1 << 64) - 1
_BLOCK = {"cpu": 1 << 15}
_BLOCK_ELSEWHERE = 1 << 22
_ELEMENTS_A_THREAD = 1 << 20
_FEW = 1 << 13
_ORDINARY = frozenset((Tensor, nn.Parameter))
_BOX = struct.Struct(f"<QQQQ{kernel.AXES}Q{kernel.AXES}Q{kernel.AXES}q")
_REST = 8 * (kernel.AXES - 1)
_WHOLE = struct.Struct(f"<QQQQQ{_REST}xQ{_REST}xq{_REST}x")
"""A box that is one stretch: one axis, the others left empty."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_STEP = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: its multiples lie far apart."""
_FIRST = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), 33)
"""The finalizer of MurmurHash3. https://github.com/aappleby/smhasher"""
_SECOND = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), 31)
"""The finalizer of SplitMix64, variant 13 of https://zimbry.blogspot.com/2011/09/better-bit-mixing-improving-on.html"""

_Place: TypeAlias = tuple[int, ...]
_Mix: TypeAlias = tuple[tuple[int, int], tuple[int, int], int]


class LaneSums(NamedTuple):
    """Two sums modulo 2**64, one a lane, over the elements of a box."""

    first: int = 0
    second: int = 0

    def __add__(self, other: object) -> LaneSums:
        if not isinstance(other, LaneSums):
            return NotImplemented
        return LaneSums(*(mine + theirs & _ALL for mine, theirs in zip(self, other, strict=True)))


# A hash of the bytes in order, such as SHA-256, cannot begin in the middle, as a rank of a sharded model would have to.
# A plain sum of bits would not tell two swapped elements apart. So each element is mixed with its place by a
# permutation, and the results are added, in any order. Two lanes, since by chance one sum of 64 bits would be the same
# for two among some 2**32 tensors. Whoever knows the formula can forge it: it is a checksum, not a signature.
def digest(shard: Shard) -> LaneSums:
    """The sums of a shard's elements; those of a tensor's parts add up to those of the whole.

    An element's bits ``w``, read as one unsigned number, at place ``p`` of the whole, counted in row-major
    order, add ``x = f(w ^ (p + 1) * c)`` to the first sum and ``g(x + (p + 1) * c)`` to the second; ``f`` and
    ``g`` are finalizers of hash functions, permutations of the 64-bit numbers. A complex number is two elements.

    >>> values = torch.arange(6.0).reshape(2, 3)
    >>> rows = [Shard("w", values[i : i + 1], (2, 3), (i, 0)) for i in range(2)]
    >>> digest(rows[0]) + digest(rows[1]) == digest(Shard.whole("w", values))
    True
    """
    local, shape, start = shard.local.detach(), shard.shape, shard.start
    if local.is_complex():
        local, shape, start = torch.view_as_real(local.resolve_conj()), (*shape, 2), (*start, 0)
    if not local.numel():
        return LaneSums()
    compiled = _compiled()
    if compiled and local.is_cpu and not local.is_neg() and type(local) is Tensor and local.dim() < kernel.AXES:
        return _by_kernel(compiled, local, shape, start)
    return _by_torch(local, shape, start)


def is_small(tensor: Tensor) -> bool:
    """Whether :func:`digests` takes a tensor: an ordinary one with values of its own, wholly here, of few elements."""
    return (
        type(tensor) in _ORDINARY
        and tensor.layout is torch.strided
        and 0 < tensor.numel() <= _FEW
        and is_simple(tensor)
        and not (torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor))
        and _compiled() is not None
    )


def digests(tensors: Sequence[Tensor]) -> list[LaneSums]:
    """The sums of many small tensors, in one call of the kernel."""
    function = _compiled("torchinit_digests_1")
    if function is None:
        return [digest(Shard.whole("", tensor)) for tensor in tensors]
    boxes = [_WHOLE.pack(x.data_ptr(), 0, x.dtype.itemsize, 1, x.numel(), 1, 1) for x in tensors]
    sums = (ctypes.c_uint64 * (2 * len(boxes)))()
    function(b"".join(boxes), len(boxes), sums)
    lanes = iter(sums)
    return [LaneSums(first, second) for first, second in zip(lanes, lanes, strict=True)]


def _by_torch(local: Tensor, shape: _Place, start: _Place) -> LaneSums:
    """The definition, in torch operations, on any device, in bounded memory."""
    # torch has no unsigned 64-bit arithmetic. Sums and products of signed numbers have the same bits modulo 2**64, so
    # only shifts to the right differ, which would draw the sign in, and constants, which must be given as signed.
    total, steps = LaneSums(), strides(shape)
    for block, at in _blocks(local, start, _BLOCK.get(local.device.type, _BLOCK_ELSEWHERE)):
        place = torch.full((), ravel(at, shape) + 1, dtype=torch.int64, device=local.device)
        for axis, size in enumerate(block.shape):
            along = torch.arange(size, dtype=torch.int64, device=local.device) * steps[axis]
            place = place + along.reshape(-1, *(1,) * (block.dim() - axis - 1))
        place *= _signed(_STEP)
        first = _mix(_words(block) ^ place, _FIRST)
        total += LaneSums(*(int(lane.sum()) & _ALL for lane in (first, _mix(first + place, _SECOND))))
    return total


def _blocks(local: Tensor, start: _Place, most: int, axis: int = 0) -> Iterator[tuple[Tensor, _Place]]:
    """Views of at most so many elements that make up the tensor, each with its place in the whole."""
    if local.numel() <= most:
        yield local, start
        return
    # Where a single row is too large it is cut along the next axis, and so on. These are views, so nothing is copied,
    # however the memory lies.
    rows = max(1, most * local.shape[axis] // local.numel())
    low = start[axis]
    for part in local.split(rows, axis):
        yield from _blocks(part, (*start[:axis], low, *start[axis + 1 :]), most, axis + 1)
        low += rows


def _words(block: Tensor) -> Tensor:
    """The bits of each element as an ``int`` from 0 to 2**64, read as signed."""
    size = block.dtype.itemsize
    bits = block.resolve_neg().view(_WORDS[size]).to(torch.int64)
    return bits if size == 8 else bits & ((1 << 8 * size) - 1)


def _mix(x: Tensor, finalizer: _Mix) -> Tensor:
    *rounds, last = finalizer
    for shift, factor in rounds:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, last)


def _shifted(x: Tensor, shift: int) -> Tensor:
    return (x >> shift) & ((1 << 64 - shift) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _compiled(name: str = "torchinit_digest_1") -> Callable[..., None] | None:
    """A function of the kernel, where there is a kernel, it is not ruled out, and it has this digest."""
    chosen = dispatch.chosen_kernel()
    return _declared(chosen.library, name) if chosen else None


@lru_cache(maxsize=8)
def _declared(library: ctypes.CDLL, name: str) -> Callable[..., None] | None:
    function: Any = getattr(library, name, None)
    if function is not None:
        numbers = [ctypes.c_uint64] * (2 if name == "torchinit_digest_1" else 1)
        function.restype = None
        function.argtypes = [ctypes.c_char_p, *numbers, ctypes.POINTER(ctypes.c_uint64)]
    return function  # type: ignore[no-any-return]  # ctypes makes functions of unknown type


def _by_kernel(function: Callable[..., None], local: Tensor, shape: _Place, start: _Place) -> LaneSums:
    if local.shape == shape and local.is_contiguous():
        box = _WHOLE.pack(local.data_ptr(), 0, local.dtype.itemsize, 1, local.numel(), 1, 1)
    else:
        axes = kernel.merge(tuple(local.shape), strides(shape), local.stride())
        padded = [*axes, *[(0, 0, 0)] * (kernel.AXES - len(axes))]
        head = (local.data_ptr(), ravel(start, shape), local.dtype.itemsize, len(axes))
        box = _BOX.pack(*head, *(number for column in zip(*padded, strict=True) for number in column))

    def part(begin: int, end: int) -> LaneSums:
        sums = (ctypes.c_uint64 * 2)()
        function(box, begin, end, sums)
        return LaneSums(*sums)

    count = local.numel()
    threads = max(1, min(torch.get_num_threads(), count // _ELEMENTS_A_THREAD))
    cuts = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        return part(*cuts)
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
        return sum(pool.map(part, cuts, cuts[1:]), LaneSums())
