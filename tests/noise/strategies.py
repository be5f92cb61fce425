"""Strategies for tests of noise: boxes of tensors, distributions, destinations of any layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from torchinit.noise import Distribution

INF = math.inf

DISTRIBUTIONS: list[tuple[Distribution, tuple[float, ...]]] = [
    ("normal", (0.0, 1.0)),
    ("normal", (0.5, 0.02)),
    ("normal", (-1.0, 0.0)),
    ("uniform", (0.0, 1.0)),
    ("uniform", (-0.1, 0.1)),
    ("truncated", (0.0, 1.0, -2.0, 2.0)),
    ("truncated", (0.0, 0.02, -2.0, 2.0)),
    ("truncated", (0.1, 0.5, -0.3, INF)),
    ("truncated", (0.0, 1.0, -3.0, 3.0)),
    ("truncated", (0.0, 1.0, 0.3, 0.3001)),
    ("truncated", (0.0, 1.0, -0.0001, 0.0002)),
    ("truncated", (0.0, 1.0, -0.0002, 0.0001)),
    ("truncated", (0.0, 1.0, 5.0, INF)),
    ("truncated", (1.0, 0.1, -INF, -2.0)),
    ("truncated", (0.0, 1.0, 2.2, 2.21)),
    ("bernoulli", (0.25,)),
    ("bernoulli", (0.0,)),
    ("bernoulli", (1.0,)),
    ("integer", (-3.0, 10.0)),
    ("sign", ()),
]
"""Every kind of arithmetic, with and without bounds that bite."""

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Boxed:
    """A box of a tensor."""

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))


@st.composite
def boxes(draw: st.DrawFn, most: int = 40) -> Boxed:
    """Any box of a tensor of 0 to 4 dimensions; empty ones, too."""
    shape = tuple(draw(st.lists(st.integers(0, most), max_size=4).filter(lambda s: math.prod(s) <= 20_000)))
    start = tuple(draw(st.integers(0, size)) for size in shape)
    size = tuple(draw(st.integers(0, n - a)) for n, a in zip(shape, start, strict=True))
    return Boxed(shape, start, size)


@st.composite
def destinations(draw: st.DrawFn, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this size whose memory is contiguous, permuted, spread out, or a window of another."""
    order = draw(st.permutations(range(len(size))))
    spread = [draw(st.sampled_from([1, 1, 2, 3])) for _ in size]
    margin = [draw(st.sampled_from([0, 0, 1])) for _ in size]
    permuted = [size[axis] * spread[axis] + 2 * margin[axis] for axis in order]
    base = torch.full(permuted, torch.nan, dtype=dtype)
    back = base.permute([order.index(axis) for axis in range(len(size))])
    return back[tuple(slice(m, m + n * s, s) for m, n, s in zip(margin, size, spread, strict=True))]
