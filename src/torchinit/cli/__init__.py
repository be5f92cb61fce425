"""The command line, `torchinit`: plan, apply, check, diff, list, explain."""

from __future__ import annotations

from torchinit.cli.entry import main

__all__ = ["main"]
