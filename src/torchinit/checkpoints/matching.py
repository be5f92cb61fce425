"""Matching: the sites of a model brought to the keys of a checkpoint, and the account of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from torchinit.checkpoints.adapters import Adapter
from torchinit.checkpoints.adapters.offers import offer
from torchinit.checkpoints.adapters.pieces import pieces
from torchinit.checkpoints.fits import check_kinds, misfit, short
from torchinit.checkpoints.guesses import by_case, guess
from torchinit.checkpoints.keymaps import KeyMap, unwrapped
from torchinit.checkpoints.loaded import Loaded
from torchinit.checkpoints.opening import opened
from torchinit.checkpoints.quantized import Companions
from torchinit.checkpoints.readers import Info
from torchinit.checkpoints.remakes import parametrized, tied
from torchinit.core.accounts import Account, Guess
from torchinit.core.fills import Fill
from torchinit.core.globs import glob_matches
from torchinit.core.loaders import Resolution
from torchinit.core.sites import Site
from torchinit.core.tables import some
from torchinit.errors import CheckpointError, count, did_you_mean, masked

_T = TypeVar("_T")

_COUNTER = "num_batches_tracked"
"""How often a BatchNorm has run. Old checkpoints lack it, and nobody misses it."""


class Terms(Protocol):
    """What a rule says of how sites are to be found and taken; :class:`torchinit.Pretrained` tells what each is."""

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
    @property
    def map_location(self) -> str: ...
    @property
    def finite(self) -> bool: ...
    @property
    def lock(self) -> bool: ...
    def keymap(self) -> KeyMap:
        """How keys of the file become names of the model."""


class Search:
    """One look at a checkpoint for the sites that a rule matches; what it finds is gathered here."""

    def __init__(self, rule: Terms, matched: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> None:
        self.rule = rule
        self.known = known
        self.groups: dict[str, list[Site]] = {}
        for view, site in matched:
            self.groups.setdefault(site.name, []).append(view)
        self.checkpoint = opened(rule.checkpoint, part=rule.part, sha256=rule.sha256)
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
        self.mismatched: list[tuple[str, str]] = []
        self.casts: list[tuple[str, str]] = []
        self.doubts: dict[str, list[str]] = {}
        self.ways: dict[str, None] = {}
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
        return Resolution(fills, account=self._account((taken, wanted)))

    # --- one site ------------------------------------------------------------------------------------------

    def _search(self, views: list[Site]) -> Loaded | None:
        """The fill of a site, None where the checkpoint has none for it."""
        site, known = views[0], self.names.keys
        key, adapter = self._adapter(views) if self.rule.adapt else ("", None)
        held = tuple(known[view.name] for view in views if view.name in known)
        self.used.update(held)
        try:
            keys = self._sources(key, adapter) if adapter else self._unique(views, held)
            infos = [self.checkpoint.info(name) for name in keys]
            self._check_quantized(site, keys, infos)
            check_kinds(site, infos)
        except (ValueError, CheckpointError) as error:
            self.mismatched.append((site.name, str(error)))
            return None
        if not keys:
            if adapter is not None and not adapter.wants(key):
                self.declined.append((site.name, str(adapter)))
            else:
                self._note_missing(site, adapter.wants(key) if adapter else [view.name for view in views])
            return None
        self.used.update(keys)
        if why := misfit(site, infos, key, adapter):
            if last_match(self.rule.shape_globs, site.name) == "skip":
                self.declined.append((site.name, why))
            else:
                self.mismatched.append(
                    (site.name, why + ("" if adapter else offer(infos[0].shape, site.shape, site.name)))
                )
            return None
        self._note_found(site, keys, infos, adapter)
        rule = self.rule
        return Loaded(
            rule.checkpoint, keys, key, adapter, () if adapter else held[1:], rule.part, rule.dtype,
            rule.map_location, rule.finite, rule.lock, rule.sha256,
        )  # fmt: skip

    def _adapter(self, views: list[Site]) -> tuple[str, Adapter | None]:
        """The name by which an adapter knows a site, and the adapter; of a tied site under any of its names."""
        found = ((view.name, last_match(self.rule.adapt, view.name)) for view in views)
        return next((pair for pair in found if pair[1] is not None), ("", None))

    def _unique(self, views: list[Site], held: tuple[str, ...]) -> tuple[str, ...]:
        """The key that a site is loaded from; none if there is none, CheckpointError if there are several."""
        for view in views:
            if clash := self.names.clashes.get(view.name):
                raise CheckpointError(f"may be any of {some(clash)} in the file: give a prefix")
        return held[:1]

    def _sources(self, name: str, adapter: Adapter) -> tuple[str, ...]:
        """The keys of the file that an adapter makes a site of; none if it is to have none."""
        try:
            wanted = adapter.wants(name)
        except ValueError as error:
            raise CheckpointError(f"cannot be made by {adapter}: {error}") from error
        known = self.names.keys
        gone = [one for one in wanted if one not in known]
        if not gone:
            return tuple(known[one] for one in wanted)
        lacks = f"needs {some(gone)} for {adapter}, which the file lacks"
        if name in known and name not in wanted:
            raise CheckpointError(f"{lacks}; it has {name!r} itself")
        lacks += did_you_mean(gone[0], known)
        if len(gone) < len(wanted):
            raise CheckpointError(lacks)
        self.lacking.setdefault(str(adapter), f"{name} {lacks}")
        return ()

    def _check_quantized(self, site: Site, keys: Sequence[str], infos: Sequence[Info]) -> None:
        """Raises CheckpointError for a tensor that means nothing without others, which the site is not made of."""
        for key, info in zip(keys, infos, strict=True):
            if found := self.companions.of(key, info, site.dtype, keys):
                self.ways[found.way] = None
                raise CheckpointError(found.why)

    def _note_found(self, site: Site, keys: Sequence[str], infos: Sequence[Info], adapter: Adapter | None) -> None:
        if adapter is None:
            self.loaded.append(site.name)
        else:
            idle = (
                "" if adapter.changes([info.shape for info in infos], site.shape) else ", which has nothing to change"
            )
            self.adapted.append((site.name, f"{adapter}{idle}"))
        for doubt in self.companions.doubts(keys, infos, site.dtype):
            self.doubts.setdefault(doubt, []).append(site.name)
        steps = [infos[0].dtype, *([self.rule.dtype] if self.rule.dtype else []), site.dtype]
        if len(set(steps)) > 1:
            self.casts.append((site.name, " -> ".join(map(short, steps))))

    def _note_missing(self, site: Site, names: Sequence[str]) -> None:
        if site.leaf == _COUNTER or any(glob_matches(glob, site.name) for glob in self.rule.missing_globs):
            self.expected.append(site.name)
        elif found := next(filter(None, map(self.companions.instead, names)), None):
            self.ways[found.way] = None
            self.mismatched.append((site.name, found.why))
        else:
            self.missing.append(site.name)

    # --- all of them ---------------------------------------------------------------------------------------

    def _account(self, elements: tuple[int, int]) -> Account:
        lost = self.missing or not (self.loaded or self.adapted)
        found, hints = self._advice() if lost else (None, list[str]())
        return Account(
            source=masked(str(self.rule.checkpoint)),
            part=self.checkpoint.part,
            loaded=tuple(self.loaded),
            adapted=tuple(self.adapted),
            declined=tuple(self.declined),
            expected=tuple(self.expected),
            missing=tuple(self.missing),
            mismatched=tuple(self.mismatched),
            unexpected=self._unexpected(),
            casts=tuple(self.casts),
            idle=self._idle(),
            elements=elements,
            notes=(*self.checkpoint.notes, *self._outside(), *self._square()),
            doubts=tuple(f"{some(names)}: {doubt}" for doubt, names in self.doubts.items()),
            hints=(*self.ways, *hints, *(self._hooked() if not found or found.matching < found.wanted else ())),
            guess=found,
        )

    def _unexpected(self) -> tuple[str, ...]:
        """The keys within the prefix that no site of the model is called, whether the rule matches it or not."""
        return tuple(key for key, name in self.names.names.items() if key not in self.used and name not in self.there)

    def _idle(self) -> tuple[str, ...]:
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

    def _outside(self) -> list[str]:
        outside = len(self.checkpoint) - len(self.names.names)
        return [f"{count(outside, 'key')} outside of prefix {self.rule.keymap().start!r}"] if outside else []

    def _square(self) -> list[str]:
        """A word on square weights that are taken as they are, though others are transposed."""
        turned = any("Transpose" in why for _, why in (*self.adapted, *self.mismatched))
        sites = [self.groups[name][0] for name in self.loaded if turned]
        square = [site.name for site in sites if site.owner.name == "Linear" and site.shape == site.shape[:1] * 2]
        return [f"square, so they fit transposed or not, and are taken as they are: {some(square)}"] if square else []

    def _hooked(self) -> list[str]:
        """A word on what may be lost because hooks are not run here: a plan is made of the header alone."""
        lost = [self.groups[name][0] for name in (*self.missing, *dict(self.mismatched))]
        hooked = {site.name: site.hooks for site in lost if site.hooks}
        if not hooked:
            return []
        which = some([*dict.fromkeys(hooked.values())], 3)
        lost_to = f"{which} may change what load_state_dict gives to {some([*hooked], 3)}, by hooks that a rule does"
        return [f"{lost_to} not run: load_checkpoint(model, file) runs them; or say the same by rename and adapt"]

    def _advice(self) -> tuple[Guess | None, list[str]]:
        """How more of the model would be found, as arguments and in words; nothing of it is done unasked."""
        wanted = {views[0].name: views[0].shape for views in self.groups.values()}
        keys = {key: self._shape(key) for key in self.checkpoint}
        found = guess(wanted, keys, len(self.loaded) + len(self.adapted))
        hints = [self._starts() + str(found)] if found else self._look()
        if not found:
            spare = {name: keys[key] for name, key in self.names.keys.items() if key not in self.used}
            hints += pieces({name: wanted[name] for name in self.missing}, spare)
        missing, loaded = ([self.groups[name][0] for name in names] for names in (self.missing, self.loaded))
        hints += [*self.lacking.values(), *parametrized(self.missing, self.names.keys), *tied(missing, loaded)]
        return found, hints

    def _shape(self, key: str) -> tuple[int, ...]:
        try:
            return self.checkpoint.info(key).shape
        except CheckpointError:
            return ()

    def _starts(self) -> str:
        """What every key of the file begins with, as a sentence."""
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


def last_match(globs: Mapping[str, _T], name: str) -> _T | None:
    """What the last glob that matches a name stands for.

    >>> last_match({"**": 1, "head.*": 2}, "head.weight"), last_match({"a": 1}, "b")
    (2, None)
    """
    return next((globs[glob] for glob in reversed([*globs]) if glob_matches(glob, name)), None)
