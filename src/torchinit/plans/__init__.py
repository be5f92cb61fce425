"""Plans: what will be written, worked out, carried out and reported."""

from __future__ import annotations
