"""Initializers: what is written: fills that know their numbers, the formulas and compositions that make them."""

from __future__ import annotations
