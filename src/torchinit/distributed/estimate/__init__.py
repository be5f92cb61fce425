"""Estimate: what a plan costs on a mesh of devices, before it runs."""

from __future__ import annotations
