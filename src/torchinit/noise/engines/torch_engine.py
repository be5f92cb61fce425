"""Torch engine: the stream's definition in operations that any device can do, with which the fast engines must agree.

Every step is an integer operation or one binary32 ``+ - * /``, each in a kernel of its own, so nothing is
fused and every device gives the same bits. No square root and no logarithm of a library: neither is correctly
rounded everywhere. ``docs/reference/stream.md`` says the same in words.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchinit.noise.distributions import Draw, DrawKind
from torchinit.noise.engines.tasks import FillTask, is_stretch, ravel, strides

Key: TypeAlias = tuple[int, int, int, int]
"""Four 32-bit words: two are Philox's key, two the upper half of its counter."""

Blocks: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""The four words of each of many counters, as int64 tensors below 2**32."""

Philox: TypeAlias = Callable[[Key, Tensor], Blocks]
"""A function that gives the blocks of counters under a key: :func:`block`, or a faster one of the same words."""

key_of: Callable[[bytes], tuple[Any, ...]] = struct.Struct("<4I").unpack
"""The key that 16 bytes spell."""

GROUP = 32
"""Elements that share eight counters: the unit in which a stretch of elements is drawn."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = 0xFFFFFFFF
_CHUNK = {"cpu": 1 << 16}
_CHUNK_ELSEWHERE = 1 << 22

# Coefficients, highest power first, of minimax fits whose errors tests/noise measures against SciPy.
# z / x as a ratio of polynomials in (31/32)**2 - x**2, where x = 2 * probability - 1, |x| <= 31/32.
_CENTRAL_P = (17.243505477905273, 168.76193237304688, 173.4363250732422, 39.901187896728516, 2.2233541011810303)
_CENTRAL_Q = (38.3114013671875, 155.67552185058594, 110.02005767822266, 20.468231201171875, 1.0)
_CENTRAL_AT = 0.9384765625
# z as a ratio of polynomials in -4 - log(tail mass), for tail masses from 1/64 to 2**-33.
_TAIL_P = (1.371244707115693e-05, 0.0039749168790876865, 0.126626655459404, 1.0042545795440674, 2.089851140975952)
_TAIL_Q = (0.0002457695663906634, 0.01933625154197216, 0.2854769825935364, 1.0)
# The same in -log(tail mass) itself, from there to 38 standard deviations and 2**-33 of their mass.
_FAR_P = (
    *(5.557767024377824e-10, 1.3719080698137986e-06, 0.0005397485219873488),
    *(0.0453430600464344, 0.6984266638755798, 0.19581817090511322),
)
_FAR_Q = (
    *(2.63751997672812e-12, 2.569385237904953e-08, 2.3546856027678587e-05),
    *(0.004290077835321426, 0.1678876429796219, 1.0),
)
_FAR_FROM = 22.875
# log(1 + m) = m - m**2 / 2 + m**3 * polynomial in m, for 1 + m between sqrt(1/2) and sqrt(2).
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def block(key: Key, counter: Tensor) -> Blocks:
    """Philox4x32-10: the four words of each 64-bit counter.

    Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (2011).

    >>> [hex(int(word)) for word in block((0, 0, 0, 0), torch.tensor(0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    k0, k1, third, fourth = key
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.full_like(counter, third), torch.full_like(counter, fourth)
    for _ in range(ROUNDS):
        # int64 products wrap, which leaves the 64 bits of an unsigned product.
        p, q = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((q >> 32) & _LOW) ^ c1 ^ k0, q & _LOW
        c2, c3 = ((p >> 32) & _LOW) ^ c3 ^ k1, p & _LOW
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return c0, c1, c2, c3


def block_by_numpy(key: Key, counter: Tensor) -> Blocks:
    """:func:`block` of counters on the host, with Philox's rounds in NumPy: several times as fast on a CPU.

    Memory bounds it. So products are taken in place: the low half stays where the product was, the high half goes where
    the next round reads it. Torch could do the same, but multiplies int64 slowly: 11 ns a word were measured, beside 6
    here and 15 for the plain form. What follows, from words to values, torch does: a second copy of the arithmetic, in
    NumPy, drew a normal in 16 ns instead of 25, and had to be kept equal bit by bit to the first.
    """
    import numpy as np

    low, half = np.uint64(_LOW), np.uint64(32)
    k0, k1, third, fourth = key
    counters = counter.numpy().view(np.uint64)
    c0, c1 = counters & low, counters >> half
    c2, c3 = np.full_like(c0, third), np.full_like(c0, fourth)
    m0, m1 = map(np.uint64, MULTIPLIERS)
    high = np.empty_like(c0)
    for _ in range(ROUNDS):
        for product, multiplier, other, k in ((c2, m1, c1, k0), (c0, m0, c3, k1)):
            np.multiply(product, multiplier, out=product)
            np.right_shift(product, half, out=high)
            np.bitwise_xor(other, high, out=other)
            np.bitwise_xor(other, np.uint64(k), out=other)
            np.bitwise_and(product, low, out=product)
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    w0, w1, w2, w3 = (torch.from_numpy(words.view(np.int64)) for words in (c0, c1, c2, c3))
    return w0, w1, w2, w3


def fill(task: FillTask, block: Philox = block) -> None:
    """Draw the task's box on the device where it is."""
    out = task.out
    # A view of the destination where there is one, so that a large tensor is not held twice.
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    step = _CHUNK.get(out.device.type, _CHUNK_ELSEWHERE)
    for begin in range(0, out.numel(), step):
        end = min(begin + step, out.numel())
        flat[begin:end].copy_(values(words(task, begin, end, block), task.draw))
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def fill_by_numpy(task: FillTask) -> None:
    """The same on the host where there is NumPy, but no kernel."""
    fill(task, block_by_numpy)


def words(task: FillTask, begin: int, end: int, block: Philox = block) -> Tensor:
    """The words of the box's elements ``begin`` to ``end``, counted in row-major order within the box."""
    shape, box, key, device = task.shape, tuple(task.out.shape), key_of(task.key), task.out.device
    if is_stretch(box, shape):
        return words_between(key, ravel(task.start, shape) + begin, end - begin, device, block)
    place = torch.arange(begin, end, dtype=torch.int64, device=device)
    index = torch.zeros_like(place)
    for size, offset, stride in zip(reversed(box), reversed(task.start), reversed(strides(shape)), strict=True):
        # Products beyond 2**63 wrap, and are read as unsigned again.
        index += (place % size + offset) * ((stride + (1 << 63)) % (1 << 64) - (1 << 63))
        place //= size
    return words_at(key, index, block)


def words_at(key: Key, index: Tensor, block: Philox = block) -> Tensor:
    """The words of the elements with these flat logical indices (64 bits each, taken as unsigned)."""
    group = (index >> 5) & ((1 << 59) - 1)
    row = (index >> 3) & 3
    w0, w1, w2, w3 = block(key, (group << 3) | (index & 7))
    return torch.where(row < 2, torch.where(row == 0, w0, w1), torch.where(row == 2, w2, w3))


def words_between(key: Key, first: int, count: int, device: torch.device, block: Philox = block) -> Tensor:
    """The words of ``count`` elements in a row: a quarter of the work of ``words_at``."""
    begin, end = first // GROUP, -(-(first + count) // GROUP)
    # Counters fit into 61 bits for any index below 2**64.
    counter = torch.arange(begin * 8, end * 8, dtype=torch.int64, device=device)
    rows = torch.stack([word.view(-1, 8) for word in block(key, counter)], dim=1)
    skip = first - begin * GROUP
    return rows.view(-1)[skip : skip + count]


def values(words: Tensor, draw: Draw) -> Tensor:
    """The float32 values that a draw makes of words."""
    value = _standard(words, draw)
    value *= draw.scale
    value += draw.shift
    return value.clamp_(draw.low, draw.high) if draw.bounded else value


def _standard(words: Tensor, draw: Draw) -> Tensor:
    match draw.kind:
        case DrawKind.UNIFORM:
            return (words >> 8).to(torch.float32)
        case DrawKind.NORMAL:
            return quantile(signed(words))
        case DrawKind.SCALED:
            return quantile(signed((multiply_shift(words, draw.width) + draw.start) & _LOW))
        case DrawKind.NARROW:
            return _central((words >> 8).to(torch.float32) * draw.step + draw.first)
        case DrawKind.TAIL:
            # 31 bits, because int32 is what converts to float32 in one rounding everywhere.
            part = (words >> 1).to(torch.int32).to(torch.float32) * draw.step + draw.first
            return outer(draw.depth - log(part))
        case DrawKind.BERNOULLI:
            return (words <= draw.width).to(torch.float32)
        case DrawKind.INTEGER:
            return multiply_shift(words, draw.width).to(torch.float32)
        case _:
            return 1.0 - (words >> 31).to(torch.float32) * 2.0


def signed(words: Tensor) -> Tensor:
    """Words as the int32 of the same bits."""
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)


def multiply_shift(words: Tensor, width: int) -> Tensor:
    """``floor(word * width / 2**32)``, exact: maps words evenly onto 0 ... width - 1."""
    return ((words * width) >> 32) & _LOW


def quantile(s: Tensor) -> Tensor:
    """The normal quantile of ``(s + 2**31 + 1/2) / 2**32`` for int32 s."""
    x = s.to(torch.float32).mul_(2.0**-31).add_(2.0**-32)
    z = _central(x)
    outside = x * x > _CENTRAL_AT
    # One word in 32 lies in the tails, and their logarithm is most of the work. On the host the others are spared it,
    # which makes normals twice as fast; elsewhere counting them means waiting for the device, and fake tensors cannot.
    at = outside.nonzero(as_tuple=True) if type(s) is Tensor and s.device.type == "cpu" else ...
    t = s[at]
    mass = (0x7FFFFFFF - ((t >> 31) ^ t)).to(torch.float32) * 2.0**-32 + 2.0**-33
    tail = _ratio(-log(mass) - 4.0, _TAIL_P, _TAIL_Q)
    z[at] = torch.where(outside[at], torch.where(t < 0, -tail, tail), z[at])
    return z


def _central(x: Tensor) -> Tensor:
    """The normal quantile of ``(1 + x) / 2`` for ``|x| <= 31/32``."""
    return x * _ratio(_CENTRAL_AT - x * x, _CENTRAL_P, _CENTRAL_Q)


def outer(depth: Tensor) -> Tensor:
    """The z whose tail mass is ``exp(-depth)``, for depths from 4 to 760."""
    near, far = _ratio(depth - 4.0, _TAIL_P, _TAIL_Q), _ratio(depth, _FAR_P, _FAR_Q)
    return torch.where(depth <= _FAR_FROM, near, far)


def log(x: Tensor) -> Tensor:
    """The natural logarithm of positive normal numbers, after Cephes' ``logf``, term by term."""
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).view(torch.float32) - 1.0
    z, e = m * m, exponent.to(torch.float32)
    small = _polynomial(m, _LOG) * (m * z) + (e * -2.12194440e-4 - z * 0.5)
    return small + (m + e * 0.693359375)


def _ratio(x: Tensor, above: tuple[float, ...], below: tuple[float, ...]) -> Tensor:
    return _polynomial(x, above).div_(_polynomial(x, below))


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = x * coefficients[0]
    total += coefficients[1]
    for coefficient in coefficients[2:]:
        total *= x
        total += coefficient
    return total
