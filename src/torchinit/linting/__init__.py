"""Linting: what goes wrong when models are initialized, found in their values and their past."""

from __future__ import annotations

from torchinit.linting import checks as checks
from torchinit.linting.lint import ConstructionRecorder as ConstructionRecorder
from torchinit.linting.lint import assert_initialized, lint
from torchinit.linting.parity import assert_meta_parity, meta_parity
from torchinit.linting.registry import CHECKS, SEVERITIES, Finding, Findings, Hit, Severity, check
from torchinit.linting.registry import Check as Check
from torchinit.linting.registry import known_checks as known_checks
from torchinit.linting.registry import select_checks as select_checks
from torchinit.linting.target import LintTarget as LintTarget

__all__ = [
    "CHECKS",
    "Finding",
    "Findings",
    "Hit",
    "SEVERITIES",
    "Severity",
    "assert_initialized",
    "assert_meta_parity",
    "check",
    "lint",
    "meta_parity",
]
