"""The compiled kernel: its sources in C, and the script that builds it."""

from __future__ import annotations
