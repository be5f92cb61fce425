"""The command line, `torchinit`: the commands of :data:`torchinit.cli.main.COMMANDS`."""

from __future__ import annotations

from torchinit.cli.main import main

__all__ = ["main"]
