"""Errors: the tree of exceptions; their texts say where, what was seen, and the way out.

::

    TorchinitError
    ├── ConfigError (ValueError)          a recipe or an init_cfg that cannot be read; carries .problems
    ├── FanError (ValueError)             a fan was asked of a tensor that has none
    ├── PlanError (ValueError)            a plan that would do something wrong; carries .problems
    ├── RunError (RuntimeError)           a plan that cannot be run on this model, found before any write
    │   └── LockError                     code that is traced is about to write a locked value
    ├── ProbeError (RuntimeError)         a model that cannot be probed; carries .problems
    ├── ReportError (AssertionError)      what was written is not what was planned; carries .problems
    ├── CheckpointError (RuntimeError)    a checkpoint that cannot be had, read or loaded; carries .problems
    │   └── FetchError (CheckpointError)  a source whose file cannot be had, or is not the right one
    └── MissingExtraError (ImportError)   an optional dependency is not installed; carries .extra
"""

from __future__ import annotations

from collections.abc import Iterable

from torchinit._text import masked, plain


class TorchinitError(Exception):
    """The base of all that torchinit raises on purpose."""


class _ManyProblemsError(TorchinitError):
    """An error that lists every problem found, one a line, under one headline."""

    def __init__(self, headline: str, problems: Iterable[str] = ()) -> None:
        self.headline: str = plain(headline)
        self.problems: tuple[str, ...] = tuple(map(plain, problems))
        super().__init__("\n  ".join([self.headline, *self.problems]))

    # Exceptions pickle by their `args`, which hold the joined text; ours are built from two parts.
    def __reduce__(self) -> tuple[type[_ManyProblemsError], tuple[str, tuple[str, ...]]]:
        return type(self), (self.headline, self.problems)


class ConfigError(_ManyProblemsError, ValueError):
    """A recipe or an ``init_cfg`` that cannot be read; ``problems`` holds every mistake with its path."""


class FanError(TorchinitError, ValueError):
    """A fan was asked of a tensor that has none."""


class PlanError(_ManyProblemsError, ValueError):
    """A plan that would do something wrong; ``problems`` holds every finding."""


class RunError(_ManyProblemsError, RuntimeError):
    """A plan that cannot be run on this model; raised before anything is written."""


class LockError(RunError):
    """Code that is traced is about to write a locked value, or has changed it unseen."""


class ProbeError(_ManyProblemsError, RuntimeError):
    """A model that cannot be probed: it raises, lacks inputs, returns nothing that a loss can be taken of."""


class ReportError(_ManyProblemsError, AssertionError):
    """What was written is not what was planned; ``problems`` holds every site that differs."""


class CheckpointError(_ManyProblemsError, RuntimeError):
    """A checkpoint that cannot be had, is refused, or does not fit; ``problems`` has every finding, secrets masked."""

    def __init__(self, headline: str, problems: Iterable[str] = ()) -> None:
        super().__init__(masked(headline), map(masked, problems))


class FetchError(CheckpointError):
    """A source whose file cannot be had, or is not the file that it should be."""


class MissingExtraError(TorchinitError, ImportError):
    """An optional dependency is not installed; ``extra`` names the group that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        self.what = what
        self.extra = extra
        super().__init__(f"{what} needs an optional dependency: pip install 'torchinit[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.what, self.extra)
