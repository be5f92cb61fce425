"""Linting: what goes wrong when models are initialized, found in their values and their past."""

from __future__ import annotations

from torchinit.linting import checks
from torchinit.linting.construction import ConstructionRecorder
from torchinit.linting.findings import SEVERITIES, Finding, Findings, Severity
from torchinit.linting.lint import assert_initialized, lint
from torchinit.linting.registry import CHECKS, Check, select_checks

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
