"""Open: a checkpoint from wherever it is, once for all the rules and sites that read it; the hashes of its files."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

from torch import nn

from torchinit._text import with_article
from torchinit.checkpoints.formats.base import Checkpoint
from torchinit.checkpoints.formats.detect import detect_format, weights_in
from torchinit.checkpoints.formats.numpy import NumpyCheckpoint
from torchinit.checkpoints.formats.safetensors import SafetensorsCheckpoint
from torchinit.checkpoints.formats.sharded import DistributedCheckpoint, ShardedCheckpoint, read_index
from torchinit.checkpoints.formats.torch_save import MemoryCheckpoint, TorchCheckpoint, find_state_dict
from torchinit.checkpoints.hub.cache import hash_of, lock_of
from torchinit.checkpoints.hub.schemes import fetch
from torchinit.checkpoints.hub.urls import member_of
from torchinit.errors import CheckpointError
from torchinit.initializers.source import is_verbatim
from torchinit.noise import Noise
from torchinit.plans.origin import Origin, Verb
from torchinit.plans.plan import Plan

_log = logging.getLogger("torchinit")

_MOST: Final = 16
_OPEN: Final[OrderedDict[tuple[str, str | None, str | None], tuple[Checkpoint, object]]] = OrderedDict()
"""The checkpoints that were opened last by source, each with the file and the pin that this stood for."""


def open_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module | Checkpoint,
    *,
    part: str | None = None,
    trust: bool = False,
) -> Checkpoint:
    """The named tensors of a file, a dict or a model; the format of a file is told by its content, not by its name.

    Read are safetensors, files of ``torch.save``, the indices of sharded ones, and NumPy's; in a folder the index or
    the one file of weights. Of nested training checkpoints the weights are found; ``part`` says where they are instead.
    No code in a file is run, unless ``trust`` allows it for a folder of torch.distributed.checkpoint. Sources are those
    of :func:`fetch`. Files that an index names and that are not there are a warning, and an error where they are read.
    Raises CheckpointError, and FileNotFoundError for a path where nothing is.

    >>> import torch
    >>> checkpoint = open_checkpoint({"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2, 3)}})
    >>> checkpoint.part, checkpoint.keys(), checkpoint.info("fc.weight").shape
    ('state_dict', ('fc.weight',), (2, 3))
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        return MemoryCheckpoint.of_model(source)
    if isinstance(source, Mapping):
        name = "dict in memory"
        tensors, where, notes = find_state_dict(source, name, part)
        return MemoryCheckpoint(name, tensors, "dict", where, notes)
    try:
        source, notes = weights_in(os.fspath(source))
        if trust and (path := fetch(source)).is_dir():
            return DistributedCheckpoint(path)
        checkpoint = _open(source, part, notes=notes)
        if isinstance(checkpoint, ShardedCheckpoint) and checkpoint.gone:  # a plan has it in its account
            _log.warning("%s: %s", checkpoint.name, checkpoint.notes[0])
        return checkpoint
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{os.fspath(source)}: cannot be read: {error}") from error


def open_file(path: Path, source: str, part: str | None = None) -> Checkpoint:
    """A local file, which is what ``source`` stands for; the files of an index are had from beside the source."""
    form = detect_format(path)
    if form in ("zip", "pickle"):
        return TorchCheckpoint(path, part)
    if part is not None:
        raise CheckpointError(f"{path}: is not a nested checkpoint, so it has no part {part!r}")
    if form == "index":
        return ShardedCheckpoint(path, source, _open_shard)
    return SafetensorsCheckpoint(path) if form == "safetensors" else NumpyCheckpoint(path)


def _open_shard(source: str) -> Checkpoint:
    checkpoint = open_file(path := fetch(source), source)
    if isinstance(checkpoint, ShardedCheckpoint):
        raise CheckpointError(f"{path}: is an index again, where an index named a file of weights")
    return checkpoint


@final
class InMemory:
    """A dict, a model or an open checkpoint as the source of values, equal to itself alone."""

    def __init__(self, source: Mapping[str, Any] | nn.Module | Checkpoint, part: str | None = None) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(source, part=part)
        # What two rules may have been given both: a model, or a dict of the same tensors. A dict itself may hold more
        # than them, such as the state of an optimizer, so it is not kept.
        same = self.checkpoint._entries.values() if isinstance(source, Mapping) else [source]
        self._kept: tuple[object, ...] = tuple(same)

    @property
    def model(self) -> nn.Module | None:
        """The model, where it is one."""
        return next((each for each in self._kept if isinstance(each, nn.Module)), None)

    @property
    def identity(self) -> tuple[int, ...]:
        """Equal for what is given twice."""
        return tuple(map(id, self._kept))

    @classmethod
    def wrap(cls, source: object, part: str | None = None) -> str | InMemory:
        """A source as a rule can hold it: text as it is, anything else in here, of a nested dict a part.

        Raises TypeError for anything that is not a source, ValueError for empty text.
        """
        if source == "":
            raise ValueError("a checkpoint needs a path or an address, but got ''")
        if isinstance(source, (str, os.PathLike)):
            return os.fspath(source)
        if isinstance(source, (Mapping, nn.Module, Checkpoint)):
            return cls(source, part)
        if isinstance(source, InMemory):
            return source
        kind = with_article(type(source).__name__)
        raise TypeError(f"a checkpoint is a path, an address, a dict or a model, but got {kind}")

    def __repr__(self) -> str:
        return self.checkpoint.name


def open_cached(
    source: object,
    *,
    part: str | None = None,
    sha256: str | None = None,
    again: bool = True,
    keys: Iterable[str] | None = None,
) -> Checkpoint:
    """The checkpoint that a source names, opened once while its files and the lock file stay as they are.

    ``again`` looks whether they do: of an index only at the files that hold ``keys``, if these are given.

    Raises CheckpointError where it cannot be had, is refused, or has another SHA-256; and for the SHA-256 of an
    index without a lock file, since the files that an index names would go unchecked.
    """
    if isinstance(source, InMemory):
        return source.checkpoint
    # Three visits of one load come here: the plan reads shapes, the check before the run reads values, and the run
    # copies them. Between the first two a file may change, so it is looked at again. The last has again=False: it must
    # copy the very bytes that were checked, which stay mapped even where another file has taken the name since.
    sha256 = sha256.lower() if sha256 else None
    entry = str(source), part, sha256
    checkpoint, meant = _OPEN.get(entry, (None, None))
    if checkpoint is not None and not again:
        return checkpoint
    try:
        name, notes = weights_in(str(source))
        if checkpoint is None or not checkpoint.is_current(keys) or (name, _pinned(name, sha256)) != meant:
            checkpoint = _open(name, part, sha256, notes)
            _OPEN[entry] = checkpoint, (name, _pinned(name, sha256))
            while len(_OPEN) > _MOST:
                _OPEN.popitem(last=False)
        _OPEN.move_to_end(entry)
    except OSError as error:
        raise CheckpointError(str(error)) from error
    return checkpoint


def _open(source: str, part: str | None, sha256: str | None = None, notes: tuple[str, ...] = ()) -> Checkpoint:
    checkpoint = open_file(fetch(source, sha256=sha256), source, part)
    checkpoint.notes += notes
    if sha256 and checkpoint.format == "sharded" and lock_of(None, None).path is None:
        remedy = "Let a lock file have the hash of each: TORCHINIT_LOCK=init.lock"
        raise CheckpointError(f"{source} is an index: its sha256 says nothing of the files that it names. {remedy}")
    return checkpoint


def _pinned(source: str, sha256: str | None) -> object:
    """The lock file that is in use, and the pin that it has of a source."""
    lockfile = lock_of(None, None)
    return lockfile, lockfile.pin(source, sha256)


def forget() -> None:
    """Close the checkpoints that are kept open."""
    _OPEN.clear()


def origin_of(verb: Verb, plan: Plan, noise: Noise, recipe: object = None, **options: Any) -> Origin:
    """The origin of a start, with the hashes of the recipe's files and of all that its checkpoints are read from."""
    items = recipe if isinstance(recipe, (list, tuple)) else (recipe,)
    paths = (Path(item) for item in items if isinstance(item, (str, os.PathLike)))
    files = {str(path): hash_of(path) for path in paths if path.is_file()}
    rules = {id(step.rule): step.rule for step in plan.writes if is_verbatim(step.rule.init)}
    given = [getattr(rule.init, "checkpoint", None) for rule in rules.values()]
    sources = hashes_of(each for each in given if isinstance(each, str))
    return Origin.of(verb, plan, noise, files=files, sources=sources, **options)


def hashes_of(sources: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every file that these checkpoints are read from, those that an index names among them."""
    return {name: hash_of(path) for source in dict.fromkeys(sources) for name, path in _files(source)}


def _files(source: str) -> Iterator[tuple[str, Path]]:
    name, _ = weights_in(source)
    path = fetch(name)
    yield name, path
    if detect_format(path) == "index":
        for member in sorted(set(read_index(path).values())):
            inner = member_of(name, member)
            yield inner, fetch(inner)
