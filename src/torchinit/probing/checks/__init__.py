"""The checks of a measurement, TI801 to TI818, a file for each kind of what is measured."""

from __future__ import annotations

from torchinit.probing.checks import ti8_parameters as ti8_parameters
from torchinit.probing.checks import ti8_stream as ti8_stream
from torchinit.probing.checks import ti8_units as ti8_units
from torchinit.probing.registry import PROBE_CHECKS as PROBE_CHECKS
