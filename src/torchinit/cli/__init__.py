"""The command line, `torchinit`: the commands are the files of :mod:`torchinit.cli.commands`."""

from __future__ import annotations

from torchinit.cli.main import main

__all__ = ["main"]
