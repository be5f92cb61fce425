"""Probing: whether a start is any good, measured by running the model once."""

from __future__ import annotations

from torchinit.probing.checks import PROBE_CHECKS
from torchinit.probing.measurement import Measurement
from torchinit.probing.prediction import predict
from torchinit.probing.probe import assert_healthy, probe
from torchinit.probing.result import Probe

__all__ = ["Measurement", "PROBE_CHECKS", "Probe", "assert_healthy", "predict", "probe"]
