"""Linting: what goes wrong when models are initialized, found in their values and their past."""

from __future__ import annotations

# Importing them registers their checks.
from torchinit.linting import filling, formats, intents, loading, sameness, scales, ties, writing
from torchinit.linting.building import Building
from torchinit.linting.checks import CHECKS, Check, about, chosen
from torchinit.linting.findings import SEVERITIES, Finding, Findings, Severity
from torchinit.linting.lint import assert_initialized, lint

__all__ = [
    "Building",
    "CHECKS",
    "SEVERITIES",
    "Check",
    "Finding",
    "Findings",
    "Severity",
    "about",
    "assert_initialized",
    "chosen",
    "filling",
    "formats",
    "intents",
    "lint",
    "loading",
    "sameness",
    "scales",
    "ties",
    "writing",
]
