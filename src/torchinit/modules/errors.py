"""Errors of an ``init_cfg``: torchinit's, and at the same time of the types that MMEngine raises there.

::

    TorchinitError
    └── InitCfgError
        ├── InitCfgTypeError (TypeError)            a value of the wrong type, an unknown argument
        ├── InitCfgValueError (ValueError)          a value that cannot be, an incomplete override
        │   └── InitCfgRangeError (RuntimeError)    a spread below 0, bounds in the wrong order
        ├── InitCfgKeyError (KeyError)              no type, or one that nobody registered
        ├── InitCfgNameError (RuntimeError)         an override for a part that the module does not have
        └── InitCfgAssertionError (AssertionError)  a choice that there is not, a parameter added on the way
"""

from __future__ import annotations

from torchinit.errors import TorchinitError


class InitCfgError(TorchinitError):
    """An ``init_cfg`` that cannot be carried out."""


class InitCfgTypeError(InitCfgError, TypeError):
    """A value of the wrong type, or an argument that the initializer does not have."""


class InitCfgValueError(InitCfgError, ValueError):
    """A value that cannot be, or an override that is not complete."""


class InitCfgRangeError(InitCfgValueError, RuntimeError):
    """A spread below 0, or bounds in the wrong order, for which torch raises RuntimeError."""


class InitCfgKeyError(InitCfgError, KeyError):
    """An entry without ``type``, or with one that nobody registered."""

    # KeyError shows the repr of its argument, quotes and all.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InitCfgNameError(InitCfgError, RuntimeError):
    """An override for a part that the module does not have."""


class InitCfgAssertionError(InitCfgError, AssertionError):
    """A choice that there is not, or a parameter that was added while weights were initialized."""
