"""Locks: values that no code may write while it is traced."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import final

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from torchinit.core.globs import check_glob, glob_matches
from torchinit.core.places import held
from torchinit.core.sites import grouped
from torchinit.errors import LockError, RunError, count, did_you_mean

_LOCKED: WeakIdKeyDictionary = WeakIdKeyDictionary()


@final
class Lock:
    """The locked sites, by name; :meth:`release`, or the end of a ``with`` block, lets them be written again.

    >>> with lock(nn.Linear(2, 2), "weight") as locked:
    ...     locked.names
    ('weight',)
    """

    def __init__(self, tensors: dict[str, list[Tensor]]) -> None:
        self.names = tuple(tensors)
        self._tensors = [tensor for held in tensors.values() for tensor in held]
        for tensor in self._tensors:
            _LOCKED[tensor] = _LOCKED.get(tensor, 0) + 1

    def release(self) -> None:
        """Lets the sites be written again; a second call does nothing."""
        for tensor in self._tensors:
            _LOCKED[tensor] -= 1
            if not _LOCKED[tensor]:
                del _LOCKED[tensor]
        self._tensors = []

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock(model: nn.Module, names: str | Iterable[str]) -> Lock:
    """Locks sites of a model, by globs of their names: a write to them inside a trace is a LockError.

    The error names the line, and is raised in it, before anything is written. What a trace sees only afterwards
    (:func:`trace`) is an error at the end of the trace. A lock belongs to the tensor: one that is put in its place
    while no trace looks is not locked. Raises RunError for names that no site has, and locks nothing then;
    TypeError and ValueError for what is no name.

    >>> model = nn.Linear(2, 2)
    >>> from torchinit import trace
    >>> with lock(model, "weight"), trace(model):
    ...     _ = nn.init.zeros_(model.bias)
    ...     _ = nn.init.zeros_(model.weight)
    Traceback (most recent call last):
    torchinit.errors.LockError: weight is locked, and ... would write it: zero_
    """
    globs = [names] if isinstance(names, str) else list(names)
    for glob in globs:
        check_glob(glob)
    found: dict[str, list[Tensor]] = {}
    known: set[str] = set()
    unused = dict.fromkeys(globs)
    for site, group in grouped(held(model)):
        views = [view.name for view in site.views]
        known.update(views)
        matched = [glob for glob in globs if any(glob_matches(glob, name) for name in views)]
        for glob in matched:
            unused.pop(glob, None)
        if matched:
            found[site.name] = list(group[0].way.sources) if group[0].way else [group[0].tensor]
    if unused:
        missing = [f"no site is called {glob!r}{did_you_mean(glob, known)}" for glob in unused]
        raise RunError(f"{count(len(missing), 'name')} cannot be locked; nothing is", missing)
    return Lock(found)


def is_locked(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors is locked."""
    return bool(_LOCKED) and any(tensor in _LOCKED for tensor in tensors)


def refuse(name: str, what: str, line: str) -> LockError:
    """The error of a write to a locked site; an empty line is one that nobody saw."""
    if not line:
        return LockError(f"{name} is locked, and was changed by something that the trace did not see ({what})")
    return LockError(f"{name} is locked, and {line} would write it: {what}")
