"""Commands: one file each, found here. Its first line is the command's name and its line of help.

A command has ``add(parser)``, which describes its arguments, and ``run(arguments)``, which returns the exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

COMMANDS: Final[dict[str, str]] = {
    path.stem.replace("_", "-"): path.read_text("utf-8").partition("\n")[0].partition(": ")[2].rstrip('."')
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))
}
"""Each command with its line of help; read, not imported, since most commands import torch."""
