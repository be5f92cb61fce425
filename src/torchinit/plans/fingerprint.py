"""Fingerprints: a short text a site that is the same for the same bits, however the model is held."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._folding import Column, Row, RowGroup, fold
from torchinit._frozen import collector_paused
from torchinit._tables import Table, Tabular
from torchinit._text import count
from torchinit.errors import ConfigError, RunError
from torchinit.model.dtensor import cut_dimensions, is_distributed, shards_of
from torchinit.model.names import normalize
from torchinit.model.ranks import over_meshes
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.traversal import walk_tensors
from torchinit.plans.diff import Diff
from torchinit.plans.digest import LaneSums, digest, digests, is_small
from torchinit.serialization.schema import Schema, parse

VERSION: Final = "torchinit-fingerprint-1"
"""The mark of a fingerprint in its JSON, and a part of each digest."""


_COLUMNS: Final = (Column("digest"),)
_MOST: Final = 10
"""The lines of an error on tensors that ranks do not share."""


@dataclass(frozen=True, slots=True, repr=False)
class Fingerprint(Tabular):
    """The digest of each site, 128 bits in hexadecimal, and one of them all.

    ``sites`` goes by site name; ``aliases`` tells which of them each other name of a tied tensor means;
    ``transient`` names the buffers that are not in a state dict.

    >>> before = Fingerprint({"weight": "9f", "mask": "02"}, {"head.weight": "weight"}, transient=("mask",))
    >>> before.of("head.weight"), before.persistent.sites
    ('9f', {'weight': '9f'})
    >>> print(before.diff(Fingerprint({"weight": "9f", "mask": "03"})))
    ~  mask  other bits
    <BLANKLINE>
    1 kind changes (1 tensor); 1 kind is the same.
    """

    sites: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    transient: tuple[str, ...] = ()

    @property
    def total(self) -> str:
        """The digest of all sites, whatever their order."""
        return hashed(VERSION, *(part for pair in sorted(self.sites.items()) for part in pair))

    @property
    def persistent(self) -> Fingerprint:
        """The fingerprint without the buffers that no file of weights holds."""
        kept = {name: text for name, text in self.sites.items() if name not in self.transient}
        return Fingerprint(kept, {name: first for name, first in self.aliases.items() if first in kept})

    def of(self, name: str) -> str | None:
        """The digest of a site, by any of its names; None where there is no such site."""
        return self.sites.get(self.aliases.get(name, name))

    def _table(self, *, full: bool = False) -> Table:
        groups = fold((Row(name, (text,)) for name, text in self.sites.items()), _COLUMNS, full=full)
        return Table("tensor", _COLUMNS, groups, f"{self.total}, the fingerprint of {count(len(self.sites), 'tensor')}")

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        return f"Fingerprint {self.total} of {count(len(self.sites), 'tensor')}"

    def diff(self, other: Fingerprint) -> Diff:
        """The sites that are added, removed or have other bits in the other.

        A tensor that is tied in one and held twice in the other is not a difference if its bits are the same.
        """
        names = sorted({*self.sites, *other.sites})
        digests = ({name: prints.of(name) for name in names} for prints in (self, other))
        before, after = ({name: text for name, text in each.items() if text is not None} for each in digests)
        return Diff.between(before, after, gist=lambda old, new: "other bits" if old and new else "")

    def to_dict(self) -> dict[str, object]:
        """The fingerprint as plain data."""
        stored = StoredFingerprint(VERSION, self.total, self.sites, self.aliases, self.transient)
        return dict(Schema({}).encode(stored, StoredFingerprint))

    def to_json(self, *, indent: int | None = 2) -> str:
        """The fingerprint as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: object) -> Fingerprint:
        """The fingerprint that :meth:`to_dict` wrote; raises ConfigError with every mistake for anything else."""
        stored: StoredFingerprint = Schema({}).decode(data, StoredFingerprint, "the fingerprint")
        return stored.checked()

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """The fingerprint that :meth:`to_json` wrote; raises ConfigError with every mistake for anything else."""
        return cls.from_dict(parse(text, "a fingerprint"))


@dataclass(frozen=True, slots=True)
class StoredFingerprint:
    """A fingerprint as plain data: with its version, and the total that shows whether somebody changed it."""

    fingerprint: Literal["torchinit-fingerprint-1"]
    total: str
    sites: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    transient: tuple[str, ...] = ()

    def checked(self) -> Fingerprint:
        """The fingerprint; raises ConfigError if the total is not that of its sites."""
        read = Fingerprint(self.sites, self.aliases, self.transient)
        if read.total != self.total:
            raise ConfigError("the fingerprint was changed: its total does not belong to its sites")
        return read


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> Fingerprint:
    """The digest of every parameter and buffer: of its shape, its dtype and each of its bits at its place.

    A site's elements are summed up with their places mixed in (:func:`torchinit.plans.digest.digest`), so that
    neither the order of the work nor a sharding shows; the sums, shape and dtype are hashed with BLAKE2b. A change of
    one element always shows; any other two models have a site of the same digest with probability 2**-128. This is a
    checksum, not a protection against a forger. A parametrized tensor stands for the tensors that it is computed from.
    A state dict has the fingerprint of the model's sites, buffers that are not persistent aside. Memory is bounded.

    The parts of a DTensor are added up over the ranks that hold them, so all ranks of its mesh have to call this;
    each gets the fingerprint of the replica that it belongs to (:func:`torchinit.verify_replicas` compares them).

    Raises RunError for tensors without elements to look at: on the meta device, lazy, sparse, quantized, a sum
    whose terms lie on several ranks, on a mesh without this rank.

    >>> model = nn.Linear(2, 3)
    >>> before = fingerprint(model)
    >>> with torch.no_grad():
    ...     _ = model.bias[1].neg_()
    >>> [change.name for change in before.diff(fingerprint(model))]
    ['bias']
    """
    refuse_fakes()
    # A state dict may be read from a file, which takes long.
    with collector_paused() if isinstance(model, nn.Module) else nullcontext():
        sources = sources_of(model) if isinstance(model, nn.Module) else Sources(_in_state_dict(model), {}, ())
        found, problems = digest_tensors(sources.each)
    _check_ranks(found, problems)
    totals = _added_over_ranks(found)
    texts: dict[str, list[str]] = {}
    for each, sums in zip(found, totals, strict=True):
        texts.setdefault(each.name, []).append(each.text(sums))
    sites = {name: hashed(VERSION, *lines) for name, lines in texts.items()}
    return Fingerprint(sites, sources.aliases, sources.transient)


def hashed(*texts: str) -> str:
    """The digest of some texts, 128 bits in hexadecimal."""
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# --- the tensors that a site stands for ------------------------------------------------------------------------


class Sources(NamedTuple):
    """Each site with the tensors that it stands for: one, or those that a parametrization computes it from.

    A tied tensor is there once, ``aliases`` are its other names; ``transient`` are the buffers not in a state dict.
    """

    each: Iterable[tuple[str, tuple[Tensor, ...]]]
    aliases: dict[str, str]
    transient: tuple[str, ...]


def sources_of(model: nn.Module) -> Sources:
    """The tensors of a model's sites, in the order of ``Module.apply``."""
    sources: dict[object, tuple[str, tuple[Tensor, ...]]] = {}
    aliases: dict[str, str] = {}
    transient = []
    for entry in walk_tensors(model):
        first, _ = sources.setdefault(
            entry.key, (entry.name, entry.computed_as.sources if entry.computed_as else (entry.tensor,))
        )
        if first != entry.name:
            aliases[entry.name] = first
        elif entry.kind == "buffer" and entry.leaf in entry.place.module._non_persistent_buffers_set:
            transient.append(entry.name)
    return Sources(sources.values(), aliases, tuple(transient))


def _in_state_dict(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """The sites of a state dict, those behind one parametrized tensor together, read one site at a time.

    Anything else that a state dict may hold (``get_extra_state``) is not a site.
    """
    keys: dict[str, list[str]] = {}
    for key in tensors:
        keys.setdefault(normalize(key), []).append(key)
    for name, group in keys.items():
        if read := tuple(value for value in (tensors[key] for key in sorted(group)) if isinstance(value, Tensor)):
            yield name, read


class TensorDigest(NamedTuple):
    """The dtype and shape of a tensor, and the sums of the part that is here.

    ``distributed`` is the tensor itself if it is a DTensor: its other parts are elsewhere.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sums: LaneSums
    distributed: Any = None

    def text(self, sums: LaneSums) -> str:
        """The tensor in one line, with sums that may be those of more than is here."""
        return f"{self.dtype} {self.shape} {sums.first:016x} {sums.second:016x}"


_TO_COME = TensorDigest("", "", (), LaneSums())
_MANY = 1 << 9


def digest_tensors(sources: Iterable[tuple[str, tuple[Tensor, ...]]]) -> tuple[list[TensorDigest], list[str]]:
    """The digest of what is here of each tensor, and for each that cannot be read the reason."""
    found, problems = list[TensorDigest](), list[str]()
    waiting: dict[int, tuple[str, Tensor]] = {}

    def look() -> None:
        for (at, (name, tensor)), sums in zip(
            waiting.items(), digests([tensor for _, tensor in waiting.values()]), strict=True
        ):
            found[at] = TensorDigest(name, str(tensor.dtype), tuple(tensor.shape), sums)
        waiting.clear()

    for name, tensors in sources:
        for tensor in tensors:
            sums = LaneSums()
            if is_small(tensor):  # many by one call, but not all, since a state dict may read each as it is asked for
                waiting[len(found)] = name, tensor
                found.append(_TO_COME)
                if len(waiting) == _MANY:
                    look()
                continue
            if why := _unreadable(tensor):
                problems.append(f"{name}: {why}")
            else:
                try:
                    first, *rest = [*map(digest, shards_of(name, tensor))] or [sums]
                    sums = sum(rest, first)
                except RunError as error:
                    problems.append(str(error))
            shape = () if is_lazy(tensor) else tuple(tensor.shape)
            found.append(TensorDigest(name, str(tensor.dtype), shape, sums, tensor if is_distributed(tensor) else None))
    look()
    return found, problems


def _unreadable(tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "has no shape yet: run the model once on an example"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is a sparse or a quantized tensor"
    if is_distributed(tensor) and tensor.device_mesh.get_coordinate() is None:
        return "is on a mesh that this rank does not belong to"
    return "is on the meta device" if tensor.is_meta else ""


# --- sums over ranks -------------------------------------------------------------------------------------------


def _check_ranks(digests: Sequence[TensorDigest], problems: Sequence[str]) -> None:
    """Raise RunError on every rank unless all have the sums of the same distributed tensors.

    What each is about to add up it tells in one gathering along the meshes, in an order that does not depend on the
    tensors: otherwise ranks with other tensors, or one that failed, would be waited for.
    """
    held: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for each in digests:
        if (whole := each.distributed) is not None:
            line = f"{each.name}: {each.dtype} {each.shape} in {whole.placements} on {tuple(whole.device_mesh.shape)}"
            held[tuple(whole.device_mesh.mesh.flatten().tolist())].append(line)
    wholes = (each.distributed for each in digests if each.distributed is not None)
    spread = over_meshes(wholes, "torchinit.fingerprint")
    told = spread((len(problems), held)) if spread else {}
    if problems:
        raise RunError(f"{count(len(problems), 'site')} without elements to look at", problems)
    if failed := [str(rank) for rank, (number, _) in told.items() if number]:
        raise RunError(f"no fingerprint: rank {', '.join(failed)} has sites without elements to look at")
    # Ranks are to agree in what lies on a mesh that both are in: beside it each may have others, as experts.
    apart = [
        f"rank {rank}: {line}"
        for ranks in dict.fromkeys(ranks for _, theirs in told.values() for ranks in theirs)
        for every in [{rank: told[rank][1].get(ranks, []) for rank in ranks if rank in told}]
        for rank, lines in every.items()
        for line in sorted(lines)
        if not all(line in others for others in every.values())
    ]
    if apart:
        raise RunError("no fingerprint: the ranks hold other tensors than each other", apart[:_MOST])


def _added_over_ranks(digests: Sequence[TensorDigest]) -> list[LaneSums]:
    """The sums of whole tensors.

    A DTensor's are added up along those dimensions of its mesh that cut it, so that each replica counts for itself;
    a plain tensor's stay as they are. Every rank of the meshes has to come here with the same tensors.
    """
    # One collective for each dimension of a mesh, not for each tensor: a model has hundreds. The groups come in the
    # order of their meshes, and the tensors in that of their names: a rank may have others between that its
    # neighbours lack.
    sums = [each.sums for each in digests]
    groups: dict[tuple[Any, int], list[int]] = defaultdict(list)
    for index, each in enumerate(digests):
        tensor = each.distributed
        if tensor is not None and tensor.device_mesh.get_coordinate() is not None:
            for dimension in cut_dimensions(tensor):
                groups[tensor.device_mesh, dimension].append(index)

    def turn(group: tuple[Any, int]) -> tuple[Any, ...]:
        mesh, dimension = group
        return -mesh.size(), mesh.mesh.flatten().tolist(), tuple(mesh.shape), dimension

    for mesh, dimension in sorted(groups, key=turn):
        indices = sorted(groups[mesh, dimension], key=lambda index: digests[index].name)
        # The lanes go as halves of 32 bits: torch adds signed 64-bit numbers, which 2**31 halves do not overflow.
        halves = [half for index in indices for lane in sums[index] for half in (lane & 0xFFFFFFFF, lane >> 32)]
        buffer = torch.tensor(halves, dtype=torch.int64, device=mesh.device_type)
        torch.distributed.all_reduce(buffer, group=mesh.get_group(dimension))
        halves = buffer.tolist()
        lanes = (low + (high << 32) & (1 << 64) - 1 for low, high in zip(halves[::2], halves[1::2], strict=True))
        for index in indices:
            sums[index] = LaneSums(next(lanes), next(lanes))
    return sums
