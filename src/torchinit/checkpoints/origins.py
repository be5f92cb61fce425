"""Origins of starts: the files behind a recipe and a plan, each with its SHA-256."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torchinit.checkpoints.formats.detect import detect_format, weights_in
from torchinit.checkpoints.formats.sharded import read_index
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.checkpoints.hub.schemes import fetch
from torchinit.checkpoints.hub.urls import member_of
from torchinit.initializers.source import is_verbatim
from torchinit.noise import Noise
from torchinit.plans.origin import Origin, Verb
from torchinit.plans.plan import Plan


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
