"""Linting: what goes wrong when models are initialized, found in their values and their past."""

from __future__ import annotations

from torchinit.linting import checks
from torchinit.linting.findings import Finding, Findings
from torchinit.linting.lint import assert_initialized, lint
from torchinit.linting.registry import CHECKS, SEVERITIES, Check, Severity, select_checks
from torchinit.linting.target import ConstructionRecorder

__all__ = [
    "CHECKS",
    "SEVERITIES",
    "Check",
    "ConstructionRecorder",
    "Finding",
    "Findings",
    "Severity",
    "assert_initialized",
    "checks",
    "lint",
    "select_checks",
]
