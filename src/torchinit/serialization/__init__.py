"""Serialization: plain data and JSON in, objects out, with every mistake named."""

from __future__ import annotations
