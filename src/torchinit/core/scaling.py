"""Scaling: a fill with all its values times a factor."""

from __future__ import annotations

from dataclasses import replace

from torchinit.core.composites import Blockwise, Padded
from torchinit.core.fills import Constant, Fill, Normal, TruncNormal, Uniform
from torchinit.core.matrices import DeltaOrthogonal, Orthogonal, Sparse


def scaled(fill: Fill, factor: float) -> Fill:
    """The fill with all its values times ``factor``; raises ValueError where that is no fill.

    >>> scaled(Uniform(-1.0, 1.0), 0.5)
    Uniform(a=-0.5, b=0.5)
    """
    size = abs(factor)
    if isinstance(fill, Constant):
        return Constant(fill.val * factor)
    if isinstance(fill, Normal):
        return Normal(fill.mean * factor, fill.std * size)
    if isinstance(fill, Uniform):
        return Uniform(*sorted((fill.a * factor, fill.b * factor)))
    if isinstance(fill, TruncNormal):
        return _scaled_truncated(fill, factor)
    if isinstance(fill, (Orthogonal, DeltaOrthogonal)):
        return replace(fill, gain=fill.gain * factor)
    if isinstance(fill, Sparse):
        return replace(fill, std=fill.std * size)
    if isinstance(fill, Padded):
        return replace(fill, fill=scaled(fill.fill, factor))
    if isinstance(fill, Blockwise):
        return replace(fill, fills=tuple(scaled(part, factor) for part in fill.fills))
    raise ValueError(f"{fill} cannot be scaled")


def _scaled_truncated(fill: TruncNormal, factor: float) -> Fill:
    bounds = (fill.a, fill.b) if fill.unit == "sigma" else (fill.a * abs(factor), fill.b * abs(factor))
    low, high = bounds if factor >= 0 else (-bounds[1], -bounds[0])
    if low >= high:  # by a factor of 0, or one so small that the interval is gone
        return Constant(fill.mean * factor)
    return replace(fill, mean=fill.mean * factor, std=fill.std * abs(factor), a=low, b=high)
