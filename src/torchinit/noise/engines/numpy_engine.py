"""Arrays: the stream in NumPy, several times as fast on a CPU as torch operations, for where no kernel is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchinit.noise.distributions import Draw, Kind
from torchinit.noise.engines import philox
from torchinit.noise.engines.tasks import Task, is_stretch, ravel, strides

_CHUNK = 1 << 15
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Longs = npt.NDArray[np.uint64]


def fill(task: Task) -> None:
    """Draws the task's box, which has to be in the memory of the host."""
    out = task.out
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype)
    for begin in range(0, out.numel(), _CHUNK):
        end = min(begin + _CHUNK, out.numel())
        flat[begin:end].copy_(torch.from_numpy(values(words(task, begin, end), task.draw)))
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def words(task: Task, begin: int, end: int) -> Words:
    """The words of the box's elements ``begin`` to ``end``, counted in row-major order within the box."""
    shape, box = task.shape, tuple(task.out.shape)
    if is_stretch(box, shape):
        return _words_between(philox.key_of(task.key), ravel(task.start, shape) + begin, end - begin)
    place = np.arange(begin, end, dtype=np.uint64)
    index = np.zeros_like(place)
    axes = zip(reversed(box), reversed(task.start), reversed(strides(shape)), strict=True)
    for size, offset, stride in axes:
        place, along = np.divmod(place, np.uint64(size))
        index += (along + np.uint64(offset)) * np.uint64(stride % (1 << 64))
    return _words_at(philox.key_of(task.key), index)


def _words_at(key: philox.Key, index: Longs) -> Words:
    counter = index >> np.uint64(5) << np.uint64(3) | index & np.uint64(7)
    row = (index >> np.uint64(3) & np.uint64(3)).astype(np.intp)
    return np.choose(row, _block(key, counter)).astype(np.uint32)


def _words_between(key: philox.Key, first: int, count: int) -> Words:
    group = first // philox.GROUP
    groups = -(-(first + count) // philox.GROUP) - group
    rows = np.empty((groups, 4, 8), np.uint32)
    counter = np.arange(groups * 8, dtype=np.uint64) + np.uint64(group * 8)
    for row, block in enumerate(_block(key, counter)):
        rows[:, row, :] = block.reshape(-1, 8)
    skip = first - group * philox.GROUP
    return rows.reshape(-1)[skip : skip + count]


def _block(key: philox.Key, counter: Longs) -> tuple[Longs, Longs, Longs, Longs]:
    k0, k1, third, fourth = key
    c0, c1 = counter & _LOW, counter >> _HALF
    c2, c3 = np.full_like(counter, third), np.full_like(counter, fourth)
    m0, m1 = (np.uint64(m) for m in philox.MULTIPLIERS)
    # Memory is what bounds this: products are taken in place, and their halves put where the next round reads them.
    spare = np.empty_like(counter)
    for _ in range(philox.ROUNDS):
        np.multiply(c0, m0, out=c0)
        np.multiply(c2, m1, out=c2)
        np.right_shift(c2, _HALF, out=spare)
        np.bitwise_xor(spare, c1, out=c1)
        np.bitwise_xor(c1, np.uint64(k0), out=c1)
        np.right_shift(c0, _HALF, out=spare)
        np.bitwise_xor(spare, c3, out=c3)
        np.bitwise_xor(c3, np.uint64(k1), out=c3)
        np.bitwise_and(c0, _LOW, out=c0)
        np.bitwise_and(c2, _LOW, out=c2)
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + philox.WEYL[0]) & 0xFFFFFFFF, (k1 + philox.WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def values(drawn: Words, draw: Draw) -> Floats:
    """The float32 values that a draw makes of words."""
    value = _standard(drawn, draw)
    value *= np.float32(draw.scale)
    value += np.float32(draw.shift)
    return np.clip(value, draw.low, draw.high, out=value) if draw.bounded else value


def _standard(drawn: Words, draw: Draw) -> Floats:
    match draw.kind:
        case Kind.UNIFORM:
            return _floats(drawn >> np.uint32(8))
        case Kind.NORMAL:
            return _quantile(drawn.view(np.int32))
        case Kind.SCALED:
            moved = _multiply_shift(drawn, draw.width) + np.uint32(draw.start)
            return _quantile(moved.view(np.int32))
        case Kind.NARROW:
            return _central(_affine(_floats(drawn >> np.uint32(8)), draw.step, draw.first))
        case Kind.TAIL:
            part = _affine(_floats(drawn >> np.uint32(1)), draw.step, draw.first)
            return _outer(np.float32(draw.depth) - _log(part))
        case Kind.BERNOULLI:
            return (drawn <= np.uint32(draw.width)).astype(np.float32)
        case Kind.INTEGER:
            return _floats(_multiply_shift(drawn, draw.width))
        case _:
            return np.float32(1) - _floats(drawn >> np.uint32(31)) * np.float32(2)


def _floats(drawn: Words) -> Floats:
    return drawn.view(np.int32).astype(np.float32)


def _affine(x: Floats, scale: float, shift: float) -> Floats:
    x *= np.float32(scale)
    x += np.float32(shift)
    return x


def _multiply_shift(drawn: Words, width: int) -> Words:
    return (drawn.astype(np.uint64) * np.uint64(width) >> _HALF).astype(np.uint32)


def _quantile(s: npt.NDArray[np.int32]) -> Floats:
    x = _affine(s.astype(np.float32), 2.0**-31, 2.0**-32)
    outside = np.flatnonzero(x * x > np.float32(philox.CENTRAL_AT))
    z = _central(x)
    if outside.size:
        t = s[outside]
        mass = _affine((0x7FFFFFFF - ((t >> 31) ^ t)).astype(np.float32), 2.0**-32, 2.0**-33)
        tail = _ratio(-_log(mass) - np.float32(4), philox.TAIL_P, philox.TAIL_Q)
        z[outside] = np.where(t < 0, -tail, tail)
    return z


def _central(x: Floats) -> Floats:
    r = x * x
    np.subtract(np.float32(philox.CENTRAL_AT), r, out=r)
    x *= _ratio(r, philox.CENTRAL_P, philox.CENTRAL_Q)
    return x


def _outer(depth: Floats) -> Floats:
    # The branch that is not taken may leave the range that it is made for.
    with np.errstate(all="ignore"):
        near = _ratio(depth - np.float32(4), philox.TAIL_P, philox.TAIL_Q)
        far = _ratio(depth, philox.FAR_P, philox.FAR_Q)
    chosen: Floats = np.where(depth <= np.float32(philox.FAR_FROM), near, far)
    return chosen


def _log(x: Floats) -> Floats:
    bits = x.view(np.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).view(np.float32) - np.float32(1)
    z, e = m * m, exponent.astype(np.float32)
    small: Any = _polynomial(m, philox.LOG) * (m * z)
    small += e * np.float32(-2.12194440e-4) - z * np.float32(0.5)
    return np.asarray(small + (m + e * np.float32(0.693359375)), np.float32)


def _ratio(x: Floats, above: tuple[float, ...], below: tuple[float, ...]) -> Floats:
    p = _polynomial(x, above)
    p /= _polynomial(x, below)
    return p


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    total = _affine(x.copy(), coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        total *= x
        total += np.float32(coefficient)
    return total
