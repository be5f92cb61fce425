"""The checks of a measurement, TI801 to TI819, and what they say of several runs."""

from __future__ import annotations

from torchinit.probing.checks import ti8_parts as ti8_parts
from torchinit.probing.checks import ti8_stream as ti8_stream
from torchinit.probing.checks.registry import PROBE_CHECKS as PROBE_CHECKS
from torchinit.probing.checks.registry import judge as judge
from torchinit.probing.checks.registry import near_bounds as near_bounds
