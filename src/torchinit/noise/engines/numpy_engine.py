"""NumPy engine: the reference with Philox's rounds in NumPy, several times as fast on a CPU, for where no kernel is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchinit.noise.engines import torch_engine
from torchinit.noise.engines.tasks import FillTask
from torchinit.noise.engines.torch_engine import MULTIPLIERS, ROUNDS, WEYL, Blocks, Key

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def fill(task: FillTask) -> None:
    """Draw the task's box, which has to be in the memory of the host."""
    torch_engine.fill(task, block)


def block(key: Key, counter: Tensor) -> Blocks:
    """:func:`torch_engine.block` of counters on the host.

    Memory bounds it. So products are taken in place: the low half stays where the product was, the high half goes where
    the next round reads it. Torch could do the same, but multiplies int64 slowly: 11 ns a word were measured, beside 6
    here and 15 for the plain form. What follows, from words to values, torch does: a second copy of the arithmetic, in
    NumPy, drew a normal in 16 ns instead of 25, and had to be kept equal bit by bit to the first.
    """
    k0, k1, third, fourth = key
    counters = counter.numpy().view(np.uint64)
    c0, c1 = counters & _LOW, counters >> _HALF
    c2, c3 = np.full_like(c0, third), np.full_like(c0, fourth)
    m0, m1 = map(np.uint64, MULTIPLIERS)
    high = np.empty_like(c0)
    for _ in range(ROUNDS):
        for product, multiplier, other, k in ((c2, m1, c1, k0), (c0, m0, c3, k1)):
            np.multiply(product, multiplier, out=product)
            np.right_shift(product, _HALF, out=high)
            np.bitwise_xor(other, high, out=other)
            np.bitwise_xor(other, np.uint64(k), out=other)
            np.bitwise_and(product, _LOW, out=product)
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    w0, w1, w2, w3 = (torch.from_numpy(words.view(np.int64)) for words in (c0, c1, c2, c3))
    return w0, w1, w2, w3
