"""Fingerprints: a short text a site that is the same for the same bits, however the model is held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal

from torch import Tensor, nn

from torchinit._text import count
from torchinit.errors import ConfigError, RunError
from torchinit.plans.plan import Change
from torchinit.plans.reductions import reduced
from torchinit.plans.sources import look_at, sources_in, sources_of
from torchinit.serialization.schema import Schema, parse

VERSION: Final = "torchinit-fingerprint-1"
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
        return hashed(VERSION, *(part for pair in sorted(self.sites.items()) for part in pair))

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
        """The fingerprint that :meth:`to_dict` wrote; raises ConfigError with every mistake for anything else.

        >>> Fingerprint.from_dict(Fingerprint({"w": "9f"}).to_dict()) == Fingerprint({"w": "9f"})
        True
        """
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
    neither the order of the work nor a sharding shows; the sums, shape and dtype are hashed with BLAKE2b. A
    parametrized tensor stands for the tensors that it is computed from. A state dict has the fingerprint that
    the model's sites have, buffers that are not persistent aside. Memory is bounded, wherever the tensors are.

    The parts of a DTensor are added up over the ranks that hold them, so all ranks of its mesh have to call this;
    each gets the fingerprint of the replica that it belongs to (:func:`torchinit.verify_replicas` compares them).

    A change of one element always shows. Any other two models have a site of the same digest with probability
    2**-128, as for random functions; this is a checksum, no protection against a forger.

    Raises RunError for tensors without elements to look at: on the meta device, lazy, sparse, quantized, a sum
    whose terms lie on several ranks, on a mesh without this rank.

    >>> import torch
    >>> model = nn.Linear(2, 3)
    >>> before = fingerprint(model)
    >>> with torch.no_grad():
    ...     _ = model.bias[1].neg_()
    >>> [change.name for change in before.diff(fingerprint(model))]
    ['bias']
    """
    each, aliases, transient = sources_of(model) if isinstance(model, nn.Module) else sources_in(model)
    looks, problems = look_at(each)
    whole, failed = reduced(looks, failed=bool(problems))
    if problems:
        raise RunError(f"{count(len(problems), 'site')} without elements to look at", problems)
    if failed:
        raise RunError("no fingerprint: another rank has sites without elements to look at")
    texts: dict[str, list[str]] = {}
    for look, sums in zip(looks, whole, strict=True):
        texts.setdefault(look.name, []).append(look.text(sums))
    return Fingerprint({name: hashed(VERSION, *lines) for name, lines in texts.items()}, aliases, transient)


def hashed(*texts: str) -> str:
    """The digest of some texts, 128 bits in hexadecimal.

    >>> hashed("a", "b") == hashed("ab")
    False
    """
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
