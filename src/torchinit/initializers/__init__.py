"""Initializers: what is written: fills that know their numbers, the formulas and compositions that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchinit.initializers.base import Blockwise, Fill, Initializer, ScaledFill, StackedFill
from torchinit.initializers.composed import Blocks, DepthScaled, Opaque, Padded, Scaled, Stacked
from torchinit.initializers.elementwise import Constant, Normal, TruncNormal, Uniform
from torchinit.initializers.expressions import Computed
from torchinit.initializers.functions import FromIndex
from torchinit.initializers.functions import hint as _hint
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.mapped import ICNR, Chrono, LogUniform, Mapped, MappedFill, RepeatedFill
from torchinit.initializers.matrices import DeltaOrthogonal, Dirac, Identity, Orthogonal, Sparse
from torchinit.initializers.statistics import Moments
from torchinit.initializers.tables import AlibiSlopes, Bilinear, DeformableRing, Ramp, SinCos
from torchinit.initializers.variance_scaling import (
    Caffe2Xavier,
    Kaiming,
    LeCun,
    Neutral,
    Ones,
    Prior,
    TorchDefault,
    VarianceScaling,
    Xavier,
    Zeros,
)

__all__ = [
    "AlibiSlopes",
    "Bilinear",
    "Blocks",
    "Blockwise",
    "Caffe2Xavier",
    "Chrono",
    "Computed",
    "Constant",
    "DeformableRing",
    "DeltaOrthogonal",
    "DepthScaled",
    "Dirac",
    "Fill",
    "FromIndex",
    "ICNR",
    "Identity",
    "Initializer",
    "Kaiming",
    "LeCun",
    "LoadReport",
    "LogUniform",
    "Mapped",
    "MappedFill",
    "Moments",
    "Neutral",
    "Normal",
    "Ones",
    "Opaque",
    "Orthogonal",
    "Padded",
    "Prior",
    "Ramp",
    "RepeatedFill",
    "Scaled",
    "ScaledFill",
    "SinCos",
    "Sparse",
    "Stacked",
    "StackedFill",
    "TorchDefault",
    "TruncNormal",
    "Uniform",
    "VarianceScaling",
    "Xavier",
    "Zeros",
]

if not TYPE_CHECKING:  # they would take every name for one that exists

    def __getattr__(name: str) -> object:
        near = "" if name.startswith("_") else _hint(name, __all__, as_call=True)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
