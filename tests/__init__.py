"""Tests: a package of its own, since an environment may hold another that is called tests, too."""

from __future__ import annotations
