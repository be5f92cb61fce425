"""Engines: three ways to draw the same bits."""

from __future__ import annotations
