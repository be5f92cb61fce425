"""Commands: one file each; its name is the command's."""

from __future__ import annotations
