"""Regions: which tensors share memory, and which elements of one another reaches; locks and snapshots of them."""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from torchinit._text import count, did_you_mean
from torchinit.errors import LockError, RunError
from torchinit.model.dtensor import is_distributed
from torchinit.model.names import check_glob, glob_matches
from torchinit.model.shards import Box, Shard
from torchinit.model.sites import group_sites
from torchinit.model.storage import extent
from torchinit.model.traversal import walk_tensors
from torchinit.tracing.trace import Region

_PLAIN, _STRIDED = frozenset((Tensor, nn.Parameter)), torch.strided


def memory_of(tensor: Tensor) -> Tensor | None:
    """The plain tensor whose memory holds the values: itself, or the local part of a ``DTensor``; None for others."""
    if type(tensor) in _PLAIN:
        return tensor if tensor.layout is _STRIDED else None
    return memory_of(tensor._local_tensor) if is_distributed(tensor) else None


def storage_of(tensor: Tensor) -> int | None:
    """The address that identifies the memory of a tensor while it lives; None where it has no memory of its own."""
    memory = memory_of(tensor)
    return None if memory is None else memory.untyped_storage()._cdata


class MemoryIndex:
    """Tensors by the memory that they cover, so that a write through any view of it is found to be theirs.

    Tensors without memory of their own (sparse ones, subclasses that wrap others) are known by identity; a ``DTensor``
    by the memory of its local part.

    >>> index, tensor = MemoryIndex(), torch.zeros(4)
    >>> index.add(7, tensor[:2])
    >>> index.find(tensor), index.find(tensor[2:])
    ({7}, set())
    """

    # An operation nearly always writes another tensor than the watched one: a view, `.data` or `.detach()`, with
    # an identity of its own and the same storage. So tensors are found by storage, which is one look-up in a dict for
    # all that is not watched. Where several watched tensors lie in one storage, as slices of a flattened parameter do,
    # the bytes between the first and the last that each reaches are compared. That is two comparisons, and takes
    # interleaved views (every second column) for overlapping ones: a write to one is then told for both. A storage is
    # known by the address of its C++ object, which is not given away while its tensors, kept here, live; a tensor that
    # gets other memory without `follow` being called is known by its identity alone.

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[int, Tensor]] = {}
        self._spans: dict[int, list[tuple[int, int, int, int]]] = {}
        self._homes: dict[int, int] = {}

    def add(self, key: int, tensor: Tensor) -> None:
        """Watch a tensor under a key; a second call with the same tensor follows it to new memory."""
        if id(tensor) in self._tensors:
            self.drop(tensor)
        self._tensors[id(tensor)] = (key, tensor)  # which is kept so that its id is not given to another one
        memory = memory_of(tensor)
        if memory is not None:
            storage = self._homes[id(tensor)] = memory.untyped_storage()._cdata
            self._spans.setdefault(storage, []).append((*extent(memory), key, id(tensor)))

    def drop(self, tensor: Tensor) -> None:
        """Stop watching a tensor."""
        self._tensors.pop(id(tensor), None)
        old = self._homes.pop(id(tensor), None)
        if old is not None:
            self._spans[old] = [span for span in self._spans[old] if span[3] != id(tensor)]

    def find(self, tensor: Tensor) -> set[int]:
        """The keys of the watched tensors that share elements with this one."""
        memory = memory_of(tensor)
        spans = None if memory is None else self._spans.get(memory.untyped_storage()._cdata)
        known = self._tensors.get(id(tensor))
        own = {known[0]} if known else set()
        if memory is None or not spans or (known and len(spans) == 1):
            return own
        low, high = extent(memory)
        near = ((key, self._tensors[held][1]) for start, end, key, held in spans if start < high and low < end)
        # A tensor that was given other memory, and not followed, has left the address to others.
        return own | {key for key, each in near if storage_of(each) == storage_of(memory)}

    def follow(self, tensor: Tensor) -> set[int]:
        """The key of a watched tensor that has just been given other memory."""
        known = self._tensors.get(id(tensor))
        if known is None:
            return set()
        self.add(known[0], tensor)
        return {known[0]}


def region_within(target: Tensor, site: Tensor) -> Region:
    """The region of a site's tensor that a written tensor covers; of a ``DTensor`` only all or ``"part"``."""
    view, memory = memory_of(target), memory_of(site)
    if target is site or view is None or memory is None:
        return None if target is site else "part"
    found = region_of(view, memory)
    return found if memory is site or (found is None and type(target) is type(site)) else "part"


def region_of(view: Tensor, base: Tensor) -> Region:
    """The region of ``base`` that a view of the same memory covers.

    >>> base = torch.zeros(4, 6)
    >>> region_of(base[1:3, 2], base), region_of(base.t(), base), region_of(base[:, ::2], base)
    (Box(start=(1, 2), shape=(2, 1)), None, 'part')
    """
    # A view is a first element and pairs of size and stride. It makes a box where its strides are those of the base's
    # axes and the box between its first and its last element has as many elements as the view. So a dimension may also
    # run along several axes, as after `flatten()`: it has the stride of the innermost, covers that one whole and goes
    # on along the next. All else is "part": every second column, a diagonal, a row and a half, another dtype.
    if view is base or _covers(view, base):
        return None
    strides = {stride for size, stride in zip(base.shape, base.stride(), strict=True) if size > 1}
    steps = [(size, stride) for size, stride in zip(view.shape, view.stride(), strict=True) if size != 1]
    if view.dtype != base.dtype or any(stride not in strides for _, stride in steps):
        return "part"
    offset = int(view.storage_offset()) - int(base.storage_offset())
    first, last = _index(base, offset), _index(base, offset + sum((size - 1) * stride for size, stride in steps))
    if first is None or last is None:
        return "part"
    shape = tuple(high - low + 1 for low, high in zip(first, last, strict=True))
    return Box(first, shape) if min(shape) > 0 and math.prod(shape) == view.numel() else "part"


def _index(base: Tensor, offset: int) -> tuple[int, ...] | None:
    """The index of the element of a tensor that lies so far behind the first, if there is one."""
    index = [0] * base.dim()
    if offset < 0:
        return None
    for stride, axis in sorted(((base.stride(axis), axis) for axis in range(base.dim())), reverse=True):
        if base.shape[axis] > 1:
            index[axis], offset = divmod(offset, stride)
    inside = all(at < size for at, size in zip(index, base.shape, strict=True))
    return tuple(index) if inside and not offset else None


def _covers(view: Tensor, base: Tensor) -> bool:
    """Whether the view reaches every element: it lies around the tensor and leaves no gaps."""
    (low, high), (begin, end) = extent(view), extent(base)
    if not (low <= begin and end <= high):
        return False
    same = (low, high) == (begin, end) and view.numel() == base.numel()
    return same or view.numel() * view.element_size() == high - low


def region_of_shards(parts: Sequence[Shard]) -> Region:
    """The region of a site that the shards hold."""
    if all(part.is_whole for part in parts):
        return None
    return Box(parts[0].start, tuple(parts[0].local.shape)) if len(parts) == 1 else "part"


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
