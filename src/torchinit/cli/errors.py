"""Errors of the command line: what kept a command from being carried out as it was written."""

from __future__ import annotations

from torchinit.errors import TorchinitError


class UsageError(TorchinitError):
    """A command that cannot be carried out as it was written; the exit code is 2."""


class ModelError(UsageError):
    """A MODEL that cannot be found or built."""
