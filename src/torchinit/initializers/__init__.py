"""Initializers: what is written: fills that know their numbers, the formulas and compositions that make them."""

from __future__ import annotations

from torchinit.initializers.base import Blockwise, Fill, Initializer, ScaledFill, StackedFill
from torchinit.initializers.composed import Blocks, DepthScaled, Opaque, Padded, Scaled, Stacked
from torchinit.initializers.elementwise import Constant, Normal, TruncNormal, Uniform
from torchinit.initializers.expressions import Computed
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.matrices import DeltaOrthogonal, Dirac, Identity, Orthogonal, Sparse
from torchinit.initializers.moments import Moments
from torchinit.initializers.variance_scaling import (
    Caffe2Xavier,
    Kaiming,
    LeCun,
    Neutral,
    Ones,
    Prior,
    VarianceScaling,
    Xavier,
    Zeros,
)

__all__ = [
    "Blocks",
    "Blockwise",
    "Caffe2Xavier",
    "Computed",
    "Constant",
    "DeltaOrthogonal",
    "DepthScaled",
    "Dirac",
    "Fill",
    "Identity",
    "Initializer",
    "Kaiming",
    "LeCun",
    "LoadReport",
    "Moments",
    "Neutral",
    "Normal",
    "Ones",
    "Opaque",
    "Orthogonal",
    "Padded",
    "Prior",
    "Scaled",
    "ScaledFill",
    "Sparse",
    "Stacked",
    "StackedFill",
    "TruncNormal",
    "Uniform",
    "VarianceScaling",
    "Xavier",
    "Zeros",
]
