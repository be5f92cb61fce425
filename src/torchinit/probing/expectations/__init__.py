"""Expectations: what a start promises of each tensor that a pass makes, before anything has a value."""

from __future__ import annotations

from torchinit.probing.expectations.expectation import Expectations, known_of, sizes_of
from torchinit.probing.expectations.propagation import KEEPS, Expected

__all__ = ["Expectations", "Expected", "KEEPS", "known_of", "sizes_of"]
