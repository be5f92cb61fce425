"""Expectations: what a start promises of each tensor that a pass makes, before anything has a value."""

from __future__ import annotations

from torchinit.probing.expectations.expectation import Expectations, known_of, sizes_of
from torchinit.probing.expectations.expected import Expected
from torchinit.probing.expectations.propagation import KEEPS

__all__ = ["Expectations", "Expected", "KEEPS", "known_of", "sizes_of"]
