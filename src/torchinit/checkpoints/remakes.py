"""Remakes: missing sites that a file does hold in another guise, and the adapters that would make them of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torchinit.checkpoints.adapters import Adapter, WeightNorm
from torchinit.checkpoints.guesses import beginning
from torchinit.core.globs import glob_matches
from torchinit.core.sites import Site
from torchinit.errors import count


def parametrized(missing: Sequence[str], keys: Mapping[str, str]) -> list[str]:
    """A word on weights that the file holds as what they are computed from; ``keys`` are the file's by name.

    >>> for line in parametrized(["ups.0.weight"], dict.fromkeys(["ups.0.weight_g", "ups.0.weight_v", "ups.0.bias"])):
    ...     print(line)
    ups.0.weight is kept under weight norm in the file: adapt={'ups.*.weight': WeightNorm()} makes it one
    """
    for adapter in (WeightNorm(), WeightNorm(parametrized=True)):
        if made := [name for name in missing if all(key in keys for key in adapter.wants(name))]:
            few = len(made) == 1
            more = "" if few else f" and {count(len(made) - 1, 'other')}"
            told = f"adapt={_told(_globs(made, keys), adapter)} makes {'it' if few else 'each'} one"
            return [f"{made[0]}{more} {'is' if few else 'are'} kept under weight norm in the file: {told}"]
    tails = {name: f"parametrizations.{name.rpartition('.')[2]}.original0" for name in missing}
    ends = {".".join(key.split(".")[-3:]) for key in keys} if tails else set[str]()
    held = [name for name, tail in tails.items() if tail in ends]
    return [f"{held[0]} is computed by a parametrization in the file; remove it there before saving"] if held else []


def _globs(made: Sequence[str], keys: Mapping[str, str]) -> list[str]:
    """The names, with ``*`` for numbers where that takes in nothing that the file has under its own name."""
    wide = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in made)
    return [*made] if any(glob_matches(glob, key) for glob in wide for key in keys) else [*wide]


def _told(globs: Sequence[str], adapter: Adapter) -> str:
    return f"{{{', '.join(f'{glob!r}: {adapter}' for glob in globs)}}}"


def tied(missing: Sequence[Site], loaded: Sequence[Site]) -> list[str]:
    """A word on a last layer that the file's model shares with its embedding, and this one does not.

    >>> table, head = (Site(f"{name}.weight", (9, 4)) for name in ("embed", "head"))
    >>> from dataclasses import replace
    >>> table, head = (replace(site, owner=replace(site.owner, name=name)) for site, name in
    ...                ((table, "Embedding"), (head, "Linear")))
    >>> print(*tied([head], [table]))
    head.weight may be tied to embed.weight in the file's model: another rule, for Name('head.weight'), ...
    """
    heads = [site for site in missing if site.owner.name == "Linear" and site.leaf == "weight" and len(site.shape) == 2]
    found = []
    for site in heads:
        tables = [one for one in loaded if one.owner.name == "Embedding" and one.shape == site.shape]
        if len(tables) == 1:
            old, new = tables[0].name.removesuffix("weight"), site.name.removesuffix("weight")
            found.append(
                f"{site.name} may be tied to {tables[0].name} in the file's model: another rule, for"
                f" Name({site.name!r}), with rename={[[beginning(old), new]]} takes a copy"
            )
    return found
