"""Probing: whether a start is any good, measured by running the model once."""

from __future__ import annotations

from torchinit.probing.checks import PROBE_CHECKS
from torchinit.probing.coordinates import assert_flat, coord_check
from torchinit.probing.lsuv import Lsuv, LsuvLayer, lsuv
from torchinit.probing.measure import predict
from torchinit.probing.measurement import Measurement
from torchinit.probing.preserves import OutputDistance, Preservation, preserves
from torchinit.probing.probe import assert_healthy, probe
from torchinit.probing.result import Probe
from torchinit.probing.slopes import CoordCheck, CoordinateSlope

__all__ = [
    "CoordCheck",
    "CoordinateSlope",
    "Lsuv",
    "LsuvLayer",
    "Measurement",
    "OutputDistance",
    "PROBE_CHECKS",
    "Preservation",
    "Probe",
    "assert_flat",
    "assert_healthy",
    "coord_check",
    "lsuv",
    "predict",
    "preserves",
    "probe",
]
