"""Locks: values that no code may write while it is traced. Snapshots: what a tensor was, to find unseen writes."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable
from typing import NamedTuple, final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from torchinit._text import count, did_you_mean
from torchinit.errors import LockError, RunError
from torchinit.model.names import check_glob, glob_matches
from torchinit.model.sites import group_sites
from torchinit.model.traversal import walk_tensors
from torchinit.tracing.regions import memory_of, storage_of

# A lock belongs to tensors, not to names, and holds in traces alone: code that is not traced runs as ever, and
# init_weights() switches locks off, since MMEngine lets user code write after a checkpoint.
_LOCKED: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The locked tensors, each with the number of its locks."""


@final
class Lock:
    """The locked sites, by name; :meth:`release`, or the end of a ``with`` block, lets them be written again.

    >>> with lock(nn.Linear(2, 2), "weight") as locked:
    ...     locked.names
    ('weight',)
    """

    def __init__(self, sites: dict[str, tuple[Tensor, ...]]) -> None:
        self.names: tuple[str, ...] = tuple(sites)
        self._tensors = [tensor for tensors in sites.values() for tensor in tensors]
        for tensor in self._tensors:
            _LOCKED[tensor] = _LOCKED.get(tensor, 0) + 1

    def release(self) -> None:
        """Let the sites be written again; a second call does nothing."""
        for tensor in self._tensors:
            _LOCKED[tensor] -= 1
            if not _LOCKED[tensor]:
                del _LOCKED[tensor]
        self._tensors = []

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def lock(model: nn.Module, names: str | Iterable[str]) -> Lock:
    """Lock sites of a model, by globs of their names: a write to them inside a trace is a LockError.

    The error names the line, and is raised in it, before anything is written; what a trace sees only afterwards is an
    error at its end. A lock belongs to the tensor: one that is put in its place while no trace looks is not locked.
    Raises RunError for names that no site has, and locks nothing then; TypeError and ValueError for what is not a name.

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
    sites = {tuple(view.name for view in site.views): holders[0] for site, holders in group_sites(walk_tensors(model))}
    known = [name for views in sites for name in views]
    missing = [glob for glob in globs if not any(glob_matches(glob, name) for name in known)]
    if missing:
        problems = [f"no site is called {glob!r}{did_you_mean(glob, known)}" for glob in missing]
        raise RunError(f"{count(len(missing), 'name')} cannot be locked; nothing is", problems)
    matched = {name for name in known if any(glob_matches(glob, name) for glob in globs)}
    return Lock({views[0]: holder.sources for views, holder in sites.items() if not matched.isdisjoint(views)})


def is_locked(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors is locked."""
    return bool(_LOCKED) and any(tensor in _LOCKED for tensor in tensors)


def refusal(name: str, operation: str, line: str) -> LockError:
    """The error of a write to a locked site; the line is empty where the write was not seen."""
    if not line:
        return LockError(f"{name} is locked, and was changed by something that the trace did not see ({operation})")
    return LockError(f"{name} is locked, and {line} would write it: {operation}")


# --- snapshots ---------------------------------------------------------------------------------------------

_SMALL = 2048
"""A tensor with no more elements than this is looked at whole, which is cheaper than to take a sample."""

_SAMPLE = 256
"""The number of elements of any other that are looked at, evenly spread."""


class Snapshot(NamedTuple):
    """A tensor at one moment: its memory, its version, its content (None where it has none here)."""

    storage: int | None
    version: int
    content: bytes | None


def snapshot(tensor: Tensor, *, exact: bool = False) -> Snapshot:
    """The tensor as it is now, by a sample of its elements, or with ``exact`` by every element."""
    if is_lazy(tensor):
        return Snapshot(None, 0, None)
    memory = memory_of(tensor)
    version = 0 if tensor.is_inference() else tensor._version
    return Snapshot(storage_of(tensor), version, None if memory is None else _content(memory, exact=exact))


def _content(tensor: Tensor, *, exact: bool) -> bytes | None:
    """The bytes of a sample of a plain tensor's elements, or the digest of all; None where it has no memory."""
    if tensor.is_meta or not tensor.untyped_storage().nbytes():
        return None
    numel = tensor.numel()
    if exact or not tensor.is_contiguous():
        flat = tensor.detach().flatten()
        flat = (flat if exact else flat[:: max(1, numel // _SAMPLE)]).contiguous().cpu()
        raw = (ctypes.c_char * flat.nbytes).from_address(flat.data_ptr()) if numel else b""
        return hashlib.blake2b(raw, digest_size=16).digest()
    # A model has hundreds of small tensors: no more operations than it takes.
    sample = tensor if numel <= _SMALL else tensor.as_strided((_SAMPLE,), (numel // _SAMPLE,)).contiguous()
    sample = sample if sample.is_cpu else sample.detach().cpu()
    return ctypes.string_at(sample.data_ptr(), sample.numel() * sample.element_size()) if numel else b""
