"""Fingerprints: a short text a site that is the same for the same bits, however the model is held."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.core.digests import Sums, digest
from torchinit.core.names import normalize
from torchinit.core.places import held
from torchinit.core.plans import Change
from torchinit.core.shards import Shard
from torchinit.errors import RunError, count

VERSION = "torchinit-fingerprint-1"
"""What stands in a fingerprint's JSON, and goes into each digest."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The digest of each site, 128 bits in hexadecimal, and one of them all.

    ``sites`` goes by site name; ``aliases`` tells which of them each other name of a tied tensor means;
    ``transient`` names the buffers that are not in a state dict.

    >>> one = Fingerprint({"weight": "9f", "bias": "02"})
    >>> print(*one.diff(Fingerprint({"weight": "9f", "bias": "03"})))
    changed bias: 02 -> 03
    """

    sites: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    transient: tuple[str, ...] = ()

    @property
    def total(self) -> str:
        """The digest of all sites, whatever their order."""
        return _hash(VERSION, *(part for pair in sorted(self.sites.items()) for part in pair))

    @property
    def persistent(self) -> Fingerprint:
        """The fingerprint without the buffers that no file of weights holds.

        >>> Fingerprint({"weight": "9f", "mask": "02"}, transient=("mask",)).persistent.sites
        {'weight': '9f'}
        """
        kept = {name: one for name, one in self.sites.items() if name not in self.transient}
        return Fingerprint(kept, {name: first for name, first in self.aliases.items() if first in kept})

    def of(self, name: str) -> str | None:
        """The digest of a site, by any of its names; None where there is no such site.

        >>> Fingerprint({"embed.weight": "9f"}, {"head.weight": "embed.weight"}).of("head.weight")
        '9f'
        """
        return self.sites.get(self.aliases.get(name, name))

    def diff(self, other: Fingerprint) -> tuple[Change, ...]:
        """What differs in the other: sites changed, added and removed, by name.

        A tensor that is tied in one and held twice in the other is no difference if its bits are the same.
        """
        found = []
        for name in sorted({*self.sites, *other.sites}):
            before, after = self.of(name), other.of(name)
            if after is None:
                found.append(Change(name, "removed", before=before or ""))
            elif before is None:
                found.append(Change(name, "added", after=after))
            elif before != after:
                found.append(Change(name, "changed", before, after))
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """The fingerprint as plain data."""
        known = {"fingerprint": VERSION, "total": self.total, "sites": dict(self.sites)}
        return {**known, "aliases": dict(self.aliases), "transient": list(self.transient)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The fingerprint as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: object) -> Fingerprint:
        """The fingerprint that :meth:`to_dict` wrote; raises ValueError for anything else.

        >>> Fingerprint.from_dict(Fingerprint({"w": "9f"}).to_dict()) == Fingerprint({"w": "9f"})
        True
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("sites"), Mapping):
            raise ValueError("this is no fingerprint: it has no table of sites")
        if data.get("fingerprint") != VERSION:
            raise ValueError(f"this is a fingerprint of version {data.get('fingerprint')!r}, not {VERSION!r}")
        read = cls(dict(data["sites"]), dict(data.get("aliases", {})), tuple(data.get("transient", ())))
        if read.total != data.get("total"):
            raise ValueError("the fingerprint was changed: its total does not belong to its sites")
        return read

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """The fingerprint that :meth:`to_json` wrote; raises ValueError for anything else."""
        return cls.from_dict(json.loads(text))


class _Held(NamedTuple):
    """The tensors of one site: one, or those that a parametrization computes it from."""

    name: str
    tensors: tuple[Tensor, ...]


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> Fingerprint:
    """The digest of every parameter and buffer: of its shape, its dtype and each of its bits at its place.

    A site's elements are summed up with their places mixed in (:func:`torchinit.core.digests.digest`), so that
    neither the order of the work nor a sharding shows; the sums, shape and dtype are hashed with BLAKE2b. A
    parametrized tensor stands for the tensors that it is computed from. A state dict has the fingerprint that
    the model's sites have, buffers that are not persistent aside. Memory is bounded, wherever the tensors are.

    A change of one element always shows. Any other two models have a site of the same digest with probability
    2**-128, as for random functions; this is a checksum, no protection against a forger.

    Raises RunError for tensors without elements to look at: on the meta device, lazy, sparse, quantized.

    >>> model = nn.Linear(2, 3)
    >>> before = fingerprint(model)
    >>> with torch.no_grad():
    ...     _ = model.bias[1].neg_()
    >>> [change.name for change in before.diff(fingerprint(model))]
    ['bias']
    """
    groups, aliases, transient = _of_model(model) if isinstance(model, nn.Module) else (_of_tensors(model), {}, ())
    sites, wrong = {}, []
    for name, tensors in groups:
        why = next(filter(None, map(_unreadable, tensors)), "")
        if why:
            wrong.append(f"{name}: {why}")
        elif not wrong:
            sites[name] = _hash(VERSION, *(text for tensor in tensors for text in _texts(tensor, _sums(name, tensor))))
    if wrong:
        raise RunError(f"{count(len(wrong), 'site')} without elements to look at", wrong)
    return Fingerprint(sites, aliases, transient)


def _of_model(model: nn.Module) -> tuple[Iterable[_Held], dict[str, str], tuple[str, ...]]:
    groups: dict[object, _Held] = {}
    aliases: dict[str, str] = {}
    transient = []
    for one in held(model):
        first = groups.setdefault(one.key, _Held(one.name, one.way.sources if one.way else (one.tensor,)))
        if first.name != one.name:
            aliases[one.name] = first.name
        elif one.kind == "buffer" and one.leaf in one.place.module._non_persistent_buffers_set:
            transient.append(one.name)
    return groups.values(), aliases, tuple(transient)


def _of_tensors(tensors: Mapping[str, Tensor]) -> Iterator[_Held]:
    """The tensors of a state dict, those behind one parametrized tensor together, read one site at a time.

    What else a state dict may hold (``get_extra_state``) is no site.
    """
    keys: dict[str, list[str]] = {}
    for key in tensors:
        keys.setdefault(normalize(key), []).append(key)
    for name, group in keys.items():
        read = tuple(value for value in (tensors[key] for key in sorted(group)) if isinstance(value, Tensor))
        if read:
            yield _Held(name, read)


def _unreadable(tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "has no shape yet: run the model once on an example"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is a sparse or a quantized tensor"
    return "is on the meta device" if tensor.is_meta else ""


def _sums(name: str, tensor: Tensor) -> Sums:
    return digest(Shard.whole(name, tensor))


def _texts(tensor: Tensor, sums: Sums) -> tuple[str, ...]:
    return str(tensor.dtype), str(tuple(tensor.shape)), *(f"{lane:016x}" for lane in sums)


def _hash(*texts: str) -> str:
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
