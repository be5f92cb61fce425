"""The command line, `torchinit`: plan, apply, check, diff, fingerprint, list, explain,
inspect, check-ckpt, convert, fetch, cache.
"""

from __future__ import annotations

from torchinit.cli.main import main

__all__ = ["main"]
