"""Philox: the keyed stream's definition, in torch operations that any device can do.

Every step is an integer operation or one binary32 ``+ - * /``, each in a kernel of its own, so nothing is
fused and every device gives the same bits. No square root and no logarithm of a library: neither is correctly
rounded everywhere. ``docs/reference/stream.md`` says the same in words.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchinit.noise.distributions import Draw, Kind

Key = tuple[int, int, int, int]
"""Four 32-bit words: two are Philox's key, two the upper half of its counter."""

key_of: Callable[[bytes], Any] = struct.Struct("<4I").unpack
"""The key that 16 bytes spell."""

GROUP = 32
"""Elements that share eight counters: the unit in which a stretch of elements is drawn."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = 0xFFFFFFFF

# z / x as a ratio of polynomials in (31/32)**2 - x**2, where x = 2 * probability - 1, |x| <= 31/32.
CENTRAL_P = (
    17.243505477905273,
    168.76193237304688,
    173.4363250732422,
    39.901187896728516,
    2.2233541011810303,
)
CENTRAL_Q = (38.3114013671875, 155.67552185058594, 110.02005767822266, 20.468231201171875, 1.0)
CENTRAL_AT = 0.9384765625
# z as a ratio of polynomials in -4 - log(tail mass), for tail masses from 1/64 to 2**-33.
TAIL_P = (
    1.371244707115693e-05,
    0.0039749168790876865,
    0.126626655459404,
    1.0042545795440674,
    2.089851140975952,
)
TAIL_Q = (0.0002457695663906634, 0.01933625154197216, 0.2854769825935364, 1.0)
# The same in -log(tail mass) itself, from there to 38 standard deviations and 2**-33 of their mass.
FAR_P = (
    5.557767024377824e-10,
    1.3719080698137986e-06,
    0.0005397485219873488,
    0.0453430600464344,
    0.6984266638755798,
    0.19581817090511322,
)
FAR_Q = (
    2.63751997672812e-12,
    2.569385237904953e-08,
    2.3546856027678587e-05,
    0.004290077835321426,
    0.1678876429796219,
    1.0,
)
FAR_FROM = 22.875
# log(1 + m) = m - m**2 / 2 + m**3 * polynomial in m, for 1 + m between sqrt(1/2) and sqrt(2).
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def block(key: Key, counter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: the four words of each 64-bit counter, as int64 tensors below 2**32.

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


def words_at(key: Key, index: Tensor) -> Tensor:
    """The words of the elements with these flat logical indices (64 bits each, taken as unsigned)."""
    group = (index >> 5) & ((1 << 59) - 1)
    row = (index >> 3) & 3
    w0, w1, w2, w3 = block(key, (group << 3) | (index & 7))
    return torch.where(row < 2, torch.where(row == 0, w0, w1), torch.where(row == 2, w2, w3))


def words_between(key: Key, first: int, count: int, device: torch.device) -> Tensor:
    """The words of ``count`` elements in a row: a quarter of the work of ``words_at``."""
    begin, end = first // GROUP, -(-(first + count) // GROUP)
    # Counters fit into 61 bits for any index below 2**64.
    counter = torch.arange(begin * 8, end * 8, dtype=torch.int64, device=device)
    rows = torch.stack([word.view(-1, 8) for word in block(key, counter)], dim=1)
    skip = first - begin * GROUP
    return rows.view(-1)[skip : skip + count]


def values(words: Tensor, draw: Draw) -> Tensor:
    """The float32 values that a draw makes of words."""
    standard = _STANDARD[draw.kind](words, draw)
    value = standard * draw.scale + draw.shift
    return value.clamp(draw.low, draw.high) if draw.bounded else value


def signed(words: Tensor) -> Tensor:
    """Words as the int32 of the same bits."""
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)


def multiply_shift(words: Tensor, width: int) -> Tensor:
    """``floor(word * width / 2**32)``, exact: maps words evenly onto 0 ... width - 1."""
    return ((words * width) >> 32) & _LOW


def central(x: Tensor) -> Tensor:
    """The normal quantile of ``(1 + x) / 2`` for ``|x| <= 31/32``."""
    r = CENTRAL_AT - x * x
    return x * (_polynomial(r, CENTRAL_P) / _polynomial(r, CENTRAL_Q))


def log(x: Tensor) -> Tensor:
    """The natural logarithm of positive normal numbers, after Cephes' ``logf``, term by term."""
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).view(torch.float32) - 1.0
    z = m * m
    e = exponent.to(torch.float32)
    small = _polynomial(m, LOG) * (m * z) + (e * -2.12194440e-4 - z * 0.5)
    return small + (m + e * 0.693359375)


def outer(depth: Tensor) -> Tensor:
    """The z whose tail mass is ``exp(-depth)``, for depths from 4 to 760."""
    u = depth - 4.0
    near = _polynomial(u, TAIL_P) / _polynomial(u, TAIL_Q)
    far = _polynomial(depth, FAR_P) / _polynomial(depth, FAR_Q)
    return torch.where(depth <= FAR_FROM, near, far)


def quantile(s: Tensor) -> Tensor:
    """The normal quantile of ``(s + 2**31 + 1/2) / 2**32`` for int32 s."""
    x = s.to(torch.float32) * 2.0**-31 + 2.0**-32
    magnitude = (s >> 31) ^ s
    mass = (0x7FFFFFFF - magnitude).to(torch.float32) * 2.0**-32 + 2.0**-33
    u = -log(mass) - 4.0
    tail = _polynomial(u, TAIL_P) / _polynomial(u, TAIL_Q)
    return torch.where(x * x > CENTRAL_AT, torch.where(s < 0, -tail, tail), central(x))


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        total = total * x + coefficient
    return total


def _uniform(words: Tensor, draw: Draw) -> Tensor:
    return (words >> 8).to(torch.float32)


def _normal(words: Tensor, draw: Draw) -> Tensor:
    return quantile(signed(words))


def _scaled(words: Tensor, draw: Draw) -> Tensor:
    return quantile(signed((multiply_shift(words, draw.width) + draw.start) & _LOW))


def _narrow(words: Tensor, draw: Draw) -> Tensor:
    return central((words >> 8).to(torch.float32) * draw.step + draw.first)


def _tail(words: Tensor, draw: Draw) -> Tensor:
    # 31 bits, because int32 is what converts to float32 in one rounding everywhere.
    part = (words >> 1).to(torch.int32).to(torch.float32) * draw.step + draw.first
    return outer(draw.depth - log(part))


def _bernoulli(words: Tensor, draw: Draw) -> Tensor:
    return (words <= draw.width).to(torch.float32)


def _integer(words: Tensor, draw: Draw) -> Tensor:
    return multiply_shift(words, draw.width).to(torch.float32)


def _sign(words: Tensor, draw: Draw) -> Tensor:
    return 1.0 - (words >> 31).to(torch.float32) * 2.0


_STANDARD = {
    Kind.UNIFORM: _uniform,
    Kind.NORMAL: _normal,
    Kind.SCALED: _scaled,
    Kind.NARROW: _narrow,
    Kind.TAIL: _tail,
    Kind.BERNOULLI: _bernoulli,
    Kind.INTEGER: _integer,
    Kind.SIGN: _sign,
}
