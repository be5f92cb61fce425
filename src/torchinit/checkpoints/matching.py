"""Matching: the sites of a model brought to the keys of a checkpoint, and the account of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

import torch

from torchinit._text import count, did_you_mean, dtype_name, masked, some
from torchinit.checkpoints.adapters import Adapter, Transpose
from torchinit.checkpoints.formats import Info
from torchinit.checkpoints.key_mapping import KeyMap, unwrapped
from torchinit.checkpoints.open import open_cached
from torchinit.checkpoints.quantized import Companions
from torchinit.checkpoints.suggestions import by_case, guess, suggest_for_missing, suggest_for_shape, tied
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.errors import CheckpointError
from torchinit.initializers.elementwise import Fill
from torchinit.initializers.load_report import Cast, Guess, LoadReport, Mismatch
from torchinit.initializers.source import Resolution
from torchinit.model.names import glob_matches
from torchinit.model.sites import Site

_T = TypeVar("_T")

_COUNTER: Final = "num_batches_tracked"
"""The counter of a BatchNorm's runs. Old checkpoints lack it, and nothing depends on it."""


class Terms(Protocol):
    """The options of a rule by which sites are found and taken; :class:`torchinit.Pretrained` explains each."""

    @property
    def checkpoint(self) -> Any: ...
    @property
    def part(self) -> str | None: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def adapt(self) -> Mapping[str, Adapter]: ...
    @property
    def shape_globs(self) -> Mapping[str, str]: ...
    @property
    def missing_globs(self) -> tuple[str, ...]: ...
    @property
    def dtype(self) -> torch.dtype | None: ...
    def keymap(self) -> KeyMap:
        """The map from keys of the file to names of the model."""

    def fill(self, keys: tuple[str, ...], key: str, adapter: Adapter | None, like: tuple[str, ...]) -> Loaded:
        """The fill of a site that is made of ``keys``."""


class Search:
    """One look at a checkpoint for the sites that a rule matches; what it finds is gathered here."""

    # What the file lacks is left to the other rules of a site, with a warning; without one, and where nothing matches
    # at all, it is an error. Suggestions are offered with their proof and never applied: a model that trains from the
    # wrong weights is worse than one that does not start. Hooks of modules for loading are not run, since a plan is
    # made of names and shapes before any value is read; the account says where a model has some and something is lost.

    def __init__(self, rule: Terms, matched: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> None:
        self.rule = rule
        self.groups: dict[str, list[Site]] = {}
        for view, site in matched:
            self.groups.setdefault(site.name, []).append(view)
        self.checkpoint = open_cached(rule.checkpoint, part=rule.part, sha256=rule.sha256)
        self.names = rule.keymap().names(self.checkpoint.keys())
        self.there = {view.name for site in known for view in site.views}
        called = ((key, self.names.names.get(key, key)) for key in self.checkpoint)
        self.companions = Companions(called, self.there, self.checkpoint.info)
        self.used: set[str] = set()
        self.loaded: list[str] = []
        self.adapted: list[tuple[str, str]] = []
        self.declined: list[tuple[str, str]] = []
        self.expected: list[str] = []
        self.missing: list[str] = []
        self.mismatched: list[Mismatch] = []
        self.casts: list[Cast] = []
        self.doubts: dict[str, list[str]] = {}
        self.turned = False
        self.remedies: dict[str, None] = {}
        self.lacking: dict[str, str] = {}

    def lookup(self) -> Resolution:
        fills: dict[str, Fill] = {}
        taken = wanted = 0
        for views in self.groups.values():
            fill = self._search(views)
            wanted += views[0].numel
            if fill is not None:
                taken += views[0].numel
                fills |= {view.name: fill for view in views}
        return Resolution(fills, account=self._report((taken, wanted)))

    # --- one site ------------------------------------------------------------------------------------------

    def _search(self, views: list[Site]) -> Loaded | None:
        """The fill of a site, None where the checkpoint has none for it."""
        site, known = views[0], self.names.keys
        # A tied site may be matched under any of its names; an adapter knows it by the one that its glob fits.
        globs = ((view.name, last_match(self.rule.adapt, view.name)) for view in views)
        key, adapter = next((pair for pair in globs if pair[1] is not None), ("", None))
        own = tuple(known[view.name] for view in views if view.name in known)
        try:
            keys = self._sources(key, adapter) if adapter else self._unique(views, own)
            infos = [self.checkpoint.info(key) for key in keys]
        except CheckpointError as error:
            self.used.update(own)
            self.mismatched.append(Mismatch(site.name, str(error)))
            return None
        self.used.update((*own, *keys))
        if not keys:
            self._note_missing(views, key, adapter)
            return None
        mismatch = self._quantized(site, keys, infos) or misfit(site, infos, key, adapter)
        turns = any(isinstance(step, Transpose) for step in getattr(adapter, "steps", (adapter,)))
        self.turned |= turns or (mismatch is not None and infos[0].shape == site.shape[::-1])
        if mismatch is None:
            self._note_found(site, keys, infos, adapter)
            return self.rule.fill(keys, key, adapter, () if adapter else own[1:])
        if mismatch.reason == "shape" and last_match(self.rule.shape_globs, site.name) == "skip":
            self.declined.append((site.name, mismatch.why))
        elif mismatch.reason == "shape" and not adapter:
            more = suggest_for_shape(infos[0].shape, site.shape, site.name)
            self.mismatched.append(replace(mismatch, why=mismatch.why + more))
        else:
            self.mismatched.append(mismatch)
        return None

    def _unique(self, views: list[Site], own: tuple[str, ...]) -> tuple[str, ...]:
        """The key that a site is loaded from; none if there is none, CheckpointError if there are several."""
        for view in views:
            if clash := self.names.clashes.get(view.name):
                raise CheckpointError(f"may be any of {some(clash)} in the file: give a prefix")
        return own[:1]

    def _sources(self, name: str, adapter: Adapter) -> tuple[str, ...]:
        """The keys of the file that an adapter makes a site of; none if it is to have none."""
        try:
            wanted = adapter.wants(name)
        except ValueError as error:
            raise CheckpointError(f"cannot be made by {adapter}: {error}") from error
        known = self.names.keys
        gone = [key for key in wanted if key not in known]
        if not gone:
            return tuple(known[key] for key in wanted)
        lacks = f"needs {some(gone)} for {adapter}, which the file lacks"
        if name in known and name not in wanted:
            raise CheckpointError(f"{lacks}; it has {name!r} itself")
        lacks += did_you_mean(gone[0], known)
        if len(gone) < len(wanted):
            raise CheckpointError(lacks)
        self.lacking.setdefault(str(adapter), f"{name} {lacks}")
        return ()

    def _quantized(self, site: Site, keys: Sequence[str], infos: Sequence[Info]) -> Mismatch | None:
        """The mismatch of a tensor that means nothing without others, which the site is not made of."""
        for key, info in zip(keys, infos, strict=True):
            if found := self.companions.of(key, info, site.dtype, keys):
                self.remedies[found.remedy] = None
                return Mismatch(site.name, found.why)
        return None

    def _note_found(self, site: Site, keys: Sequence[str], infos: Sequence[Info], adapter: Adapter | None) -> None:
        if adapter is None:
            self.loaded.append(site.name)
        else:
            changes = adapter.changes([info.shape for info in infos], site.shape)
            self.adapted.append((site.name, f"{adapter}{'' if changes else ', which has nothing to change'}"))
        for doubt in self.companions.doubts(keys, infos, site.dtype):
            self.doubts.setdefault(doubt, []).append(site.name)
        rounded = (self.rule.dtype,) if self.rule.dtype else ()
        cast = Cast(site.name, (infos[0].dtype, *rounded, site.dtype))
        if len(set(cast.dtypes)) > 1:
            self.casts.append(cast)

    def _note_missing(self, views: list[Site], key: str, adapter: Adapter | None) -> None:
        site, names = views[0], adapter.wants(key) if adapter else [view.name for view in views]
        if not names:
            self.declined.append((site.name, str(adapter)))
        elif site.leaf == _COUNTER or any(glob_matches(glob, site.name) for glob in self.rule.missing_globs):
            self.expected.append(site.name)
        elif found := next(filter(None, map(self.companions.instead, names)), None):
            self.remedies[found.remedy] = None
            self.mismatched.append(Mismatch(site.name, found.why))
        else:
            self.missing.append(site.name)

    # --- all of them ---------------------------------------------------------------------------------------

    def _report(self, elements: tuple[int, int]) -> LoadReport:
        found, hints = None, list[str]()
        if self.missing or not (self.loaded or self.adapted):
            found, hints = self._advice()
        hooked = self._hooked() if not found or found.matching < found.wanted else []
        outside = len(self.checkpoint) - len(self.names.names)
        start = [f"{count(outside, 'key')} outside of prefix {self.rule.keymap().start!r}"] if outside else []
        unexpected = (key for key, name in self.names.names.items() if key not in self.used and name not in self.there)
        names = ("loaded", "adapted", "declined", "expected", "missing", "mismatched", "casts")
        lists: dict[str, Any] = {name: tuple(getattr(self, name)) for name in names}
        return LoadReport(
            source=masked(str(self.rule.checkpoint)),
            part=self.checkpoint.part,
            **lists,
            unexpected=tuple(unexpected),
            unused_patterns=self._unused_patterns(),
            elements=elements,
            notes=(*self.checkpoint.notes, *start, *self._square()),
            doubts=tuple(f"{some(names)}: {doubt}" for doubt, names in self.doubts.items()),
            hints=(*self.remedies, *hints, *hooked),
            guess=found,
        )

    def _unused_patterns(self) -> tuple[str, ...]:
        """The globs of adapters, shapes and missing sites that no site fits, each with the near name."""
        names = [view.name for views in self.groups.values() for view in views]
        rule = self.rule
        globs = {"adapt": rule.adapt, "on_shape": rule.shape_globs, "expect_missing": rule.missing_globs}
        return tuple(
            f"{word}: {glob!r} matches no site{did_you_mean(glob, names)}"
            for word, given in globs.items()
            for glob in given
            if not any(glob_matches(glob, name) for name in names)
        )

    def _square(self) -> list[str]:
        """A word on square weights that are taken as they are, though others are transposed."""
        sites = [self.groups[name][0] for name in self.loaded if self.turned]
        square = [site.name for site in sites if site.owner.name == "Linear" and site.shape == site.shape[:1] * 2]
        return [f"square, so they fit transposed or not, and are taken as they are: {some(square)}"] if square else []

    def _hooked(self) -> list[str]:
        """A word on what may be lost because hooks are not run here: a plan is made of the header alone."""
        lost = [self.groups[name][0] for name in (*self.missing, *(site.site for site in self.mismatched))]
        hooked = {site.name: site.hooks for site in lost if site.hooks}
        if not hooked:
            return []
        which = some([*dict.fromkeys(hooked.values())], 3)
        lost_to = f"{which} may change what load_state_dict gives to {some([*hooked], 3)}, by hooks that a rule does"
        return [f"{lost_to} not run: load_checkpoint(model, file) runs them; or say the same by rename and adapt"]

    def _advice(self) -> tuple[Guess | None, list[str]]:
        """Suggestions by which more of the model would be found, as arguments and in words."""
        wanted = {views[0].name: views[0].shape for views in self.groups.values()}
        shapes = {key: self._shape(key) for key in self.checkpoint}
        found = guess(wanted, shapes, len(self.loaded) + len(self.adapted))
        if found:
            hints = [self._starts() + str(found)]
        else:
            spare = {name: shapes[key] for name, key in self.names.keys.items() if key not in self.used}
            missing = {name: wanted[name] for name in self.missing}
            hints = self._look() + suggest_for_missing(missing, spare, self.names.keys)
        sides = ([self.groups[name][0] for name in names] for names in (self.missing, self.loaded))
        return found, [*hints, *self.lacking.values(), *tied(*sides)]

    def _shape(self, key: str) -> tuple[int, ...]:
        try:
            return self.checkpoint.info(key).shape
        except CheckpointError:
            return ()

    def _starts(self) -> str:
        """The beginning that every key of the file has, as a sentence."""
        starts = {unwrapped(key).partition(".")[0] for key in self.checkpoint if "." in key}
        whole = len(starts) == 1 and all("." in key for key in self.checkpoint)
        return f"Every key of the file starts with {min(starts) + '.'!r}; " if whole else ""

    def _look(self) -> list[str]:
        """Some names of either side, where nothing is alike and no guess helps."""
        if self.missing and (differing := by_case(self.groups, self.names.keys)):
            return ["The model has {!r} and the file {!r}, which differ by case: give a rename".format(*differing)]
        if self.loaded or self.adapted or not self.missing:
            return []
        keys = tuple(self.names.names) or self.checkpoint.keys()
        return [f"The file has {some(keys, 3)}; the model has {some(self.missing, 3)}"]


def misfit(site: Site, infos: Sequence[Info], key: str, adapter: Adapter | None) -> Mismatch | None:
    """Why tensors cannot become those of a site, by their kinds and shapes; None if they can.

    >>> print(misfit(Site("w", (2,)), [Info((2,), torch.int64)], "w", None).why)
    is float32, but the file holds whole numbers (int64)
    """
    if site.state not in ("ready", "integer") or site.missing:
        return Mismatch(site.name, site.why)
    for info in infos:
        kinds = [kind_of(info.dtype), kind_of(site.dtype)]
        if len(set(kinds)) > 1 and kinds != ["truth values", "whole numbers"]:
            seen = f"{kinds[0]} ({dtype_name(info.dtype)})"
            return Mismatch(site.name, f"is {dtype_name(site.dtype)}, but the file holds {seen}", "kind")
    shapes = [info.shape for info in infos]
    if adapter is None:
        why = f"has shape {list(site.shape)}, but the file {list(shapes[0])}"
        return Mismatch(site.name, why, "shape") if shapes[0] != site.shape else None
    try:
        adapter.check(shapes, site.shape, key)
    except ValueError as error:
        return Mismatch(site.name, str(error), "shape")
    return None


def kind_of(dtype: torch.dtype) -> str:
    """The kind of numbers that a dtype holds; from one kind to another nothing is cast."""
    if dtype == torch.bool:
        return "truth values"
    if dtype.is_complex:
        return "complex numbers"
    return "floats" if dtype.is_floating_point else "whole numbers"


def last_match(globs: Mapping[str, _T], name: str) -> _T | None:
    """The value of the last glob that matches a name.

    >>> last_match({"**": 1, "head.*": 2}, "head.weight"), last_match({"a": 1}, "b")
    (2, None)
    """
    return next((globs[glob] for glob in reversed([*globs]) if glob_matches(glob, name)), None)
