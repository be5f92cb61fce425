"""Pretrained: the initializer that takes values from a checkpoint, and its search for each site's keys."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, final

import torch

from torchinit._text import abbreviate, count, did_you_mean, masked
from torchinit.checkpoints import fits, promises
from torchinit.checkpoints.adapters import Adapter, Chain, Transpose
from torchinit.checkpoints.adapters.surroundings import Surroundings
from torchinit.checkpoints.depth import Deepened, Layers, layers_by_glob
from torchinit.checkpoints.formats import Info
from torchinit.checkpoints.key_mapping import KeyMap, in_order, is_numbered, pairs
from torchinit.checkpoints.open import InMemory, open_cached
from torchinit.checkpoints.quantized import Companions, Quantized
from torchinit.checkpoints.suggestions import advise, offered, suggest_for_shape, tied
from torchinit.checkpoints.tensor_fill import CheckpointSource, Loaded
from torchinit.errors import CheckpointError, MissingExtraError
from torchinit.initializers.base import Fill
from torchinit.initializers.elementwise import Constant
from torchinit.initializers.load_report import Cast, LoadReport, Mismatch, Promise, weakest
from torchinit.initializers.source import Resolution, SourceInitializer
from torchinit.model.names import check_globs, glob_matches
from torchinit.model.sites import Site
from torchinit.rules.rule import INITIALIZERS
from torchinit.serialization.json import FrozenDict
from torchinit.serialization.schema import check_bool, check_choice, check_str

OnShape: TypeAlias = Literal["error", "skip"]
Order: TypeAlias = Literal["names", "parameters"]

_FROZEN: Final = ("on_shape", "expect_missing", "expect_unexpected", "layers")
_PASSED_ON: Final = ("part", "dtype", "map_location", "finite", "lock", "sha256")
"""The options that a fill has under the same names."""


@final
@dataclass(frozen=True, slots=True)
class Pretrained(SourceInitializer):
    r"""The values of a checkpoint: a file, an address, a dict of tensors or a model.

    A site that the checkpoint has is loaded, any other stays with its other rules; what became of everything is in the
    plan and in the report. The rule matches buffers, too. Nothing of the file is read before the plan is carried out,
    and then only what the model needs; no code in it is run.

    Names: ``prefix`` takes the keys below it, without it; ``rename`` is a list of ``(pattern, replacement)`` for
    ``re.sub``, in order; wrappers (``module.`` and so on) are dropped on both sides. ``part`` says where in a nested
    checkpoint the weights are (``"ema"``), if not where they usually are.

    What does not fit: ``expect_missing`` are globs of sites that the file need not have. A site that is missing
    otherwise, and that no other rule writes, is an error. ``expect_unexpected`` are globs of what the file may have
    besides, by key or by name; other keys that nothing in the model is called are a warning, and an error where
    ``strict`` is asked for. ``on_shape`` is ``"error"`` or ``"skip"``, for all or for each glob. ``adapt`` gives an
    adapter to each glob. Of several globs that match, the last counts.

    Another depth: ``layers`` says which block of the file each block of the model is loaded from, ``[0, 2, 4]``, with
    ``"new"`` for one that is left to its other rules, or how they are chosen: ``"first"`` and ``"even"`` of a deeper
    model, ``"stack"`` (all, and all again) and ``"interleave"`` (each several times) of a shallower one, ``"identity"``
    with copies in between whose ways out are zero, so that they pass on what comes. Blocks count from 0. A dict says it
    for several lists of blocks, by globs of their names.

    What is written: values are cast to the site's dtype, floats never from whole numbers, and nothing from quantized
    values, which need the scale beside them; ``dtype`` rounds them before. ``finite=False`` takes NaN and infinities.
    With ``sha256`` the file must have it; for an index that is not enough, and a lock file (TORCHINIT_LOCK) must have
    the hashes of the files that it names. ``lock=False`` lets later rules write over what is loaded. ``map_location``
    is the device on which adapters work.

    Raises TypeError or ValueError for arguments that cannot be; what is wrong with the file shows in a plan.

    >>> from torchinit import Name, Rule
    >>> from torchinit.plans import make_plan
    >>> rule = Rule(Name("**"), Pretrained({"net.weight": torch.ones(2)}, prefix="net"))
    >>> print(make_plan([Site("weight", (2,))], [rule])["weight"].fill)
    net.weight of dict in memory
    """

    checkpoint: CheckpointSource
    prefix: str | None = None
    map_location: str = "cpu"
    rename: tuple[tuple[str, str], ...] = ()
    expect_missing: str | tuple[str, ...] = ()
    on_shape: OnShape | Mapping[str, OnShape] = "error"
    adapt: Mapping[str, Adapter] = FrozenDict()
    dtype: torch.dtype | None = None
    part: str | None = None
    finite: bool = True
    sha256: str | None = None
    lock: bool = True
    expect_unexpected: str | tuple[str, ...] = ()
    order: Order = "names"
    layers: Layers = None

    def __post_init__(self) -> None:
        check_choice("order", self.order, Order)
        if self.order != "names" and (self.prefix or self.rename or self.layers):
            raise ValueError(f"order={self.order!r} is for tensors without names: no prefix, no rename, no layers")
        for name in ("prefix", "part", "sha256"):
            check_str(name, getattr(self, name))
        for name in ("finite", "lock"):
            check_bool(name, getattr(self, name))
        part = "" if self.part is None and self.order != "names" else self.part
        values = {
            "checkpoint": InMemory.wrap(self.checkpoint, part),
            "map_location": fits.device_name(self.map_location),
            "part": part,
            "rename": pairs(self.rename),
            "dtype": fits.float_dtype(self.dtype),
            "adapt": _adapters(self.adapt),
            **{name: _frozen(getattr(self, name)) for name in _FROZEN},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for choices in self.globs["on_shape"].values():
            check_choice("on_shape", choices, OnShape)
        for name, globs in self.globs.items():
            check_globs(name, globs)
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, but got {self.sha256!r}")
        self.keymap()
        layers_by_glob(self.layers)

    @property
    def asks_for(self) -> frozenset[str]:
        """What it looks at of sites beside what is always known: their roles, attentions, what leads out of blocks."""
        roles = {"role", "attention"} if self.layers or self.adapt else set()
        return frozenset(roles | ({"exit"} if "identity" in layers_by_glob(self.layers).values() else set()))

    def keymap(self) -> KeyMap:
        """The map from keys of the file to names of the model."""
        return KeyMap(self.prefix or "", self.rename)

    @property
    def globs(self) -> dict[str, Any]:
        """The options that go by globs: of sites, and of what the file may have beside them."""
        on_shape = self.on_shape if isinstance(self.on_shape, Mapping) else {"**": self.on_shape}
        several = {name: getattr(self, name) for name in ("expect_missing", "expect_unexpected")}
        as_lists = {name: (globs,) if isinstance(globs, str) else globs for name, globs in several.items()}
        return {"adapt": self.adapt, "on_shape": on_shape, **as_lists}

    def resolve_all(self, pairs: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Resolution:
        try:
            return _Search(self, pairs, known).run()
        except (CheckpointError, MissingExtraError) as error:
            names = tuple(dict.fromkeys(site.name for _, site in pairs))
            return Resolution({}, account=LoadReport(masked(str(self.checkpoint)), missing=names, failure=str(error)))


def _frozen(given: object) -> Any:
    """A list as a tuple and a table as a frozen one, with what they hold; anything else as it is."""
    if isinstance(given, Mapping):
        return FrozenDict({key: _frozen(value) for key, value in given.items()})
    return tuple(given) if isinstance(given, list) else given


def _adapters(adapt: object) -> FrozenDict[Adapter]:
    """Adapters by glob. Raises TypeError for anything else."""
    if not isinstance(adapt, Mapping):
        raise TypeError(f"adapt gives an adapter to each glob, {{'conv1.weight': InputChannels()}}, but got {adapt!r}")
    for glob, adapter in adapt.items():
        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapt[{glob!r}] must be an adapter such as InputChannels(), but got {adapter!r}")
    return FrozenDict(adapt)


# --- the search ------------------------------------------------------------------------------------------------------


class _Search:
    """One look at a checkpoint for the sites that a rule matches; what it finds is gathered here."""

    # What the file lacks is left to the other rules of a site, with a warning; without one, and where nothing matches
    # at all, it is an error. Suggestions are offered with their proof and never applied: a model that trains from the
    # wrong weights is worse than one that does not start. Hooks of modules for loading are not run, since a plan is
    # made of names and shapes before any value is read; the account says where a model has some and something is lost.

    def __init__(self, rule: Pretrained, matched: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> None:
        self.rule, self.globs = rule, rule.globs
        self.groups: dict[str, list[Site]] = defaultdict(list)
        for view, site in matched:
            self.groups[site.name].append(view)
        self.checkpoint = open_cached(rule.checkpoint, part=rule.part, sha256=rule.sha256)
        by_name = rule.order == "names"
        names = rule.keymap().apply(self.checkpoint.keys()) if by_name else in_order(self.checkpoint, known)
        self.depth = Deepened.of(names, known, layers_by_glob(rule.layers))
        self.names, self.around = self.depth.names, Surroundings(known)
        self.model_names = {view.name for site in known for view in site.views}
        aliases = ((key, self.names.name_of.get(key, key)) for key in self.checkpoint)
        self.companions = Companions(aliases, self.model_names, self.checkpoint.info)
        self.sizes = {key: stored.numel for key in self.checkpoint if (stored := self.companions.look(key))}
        self.used: set[str] = set()
        self.lists: dict[str, list[Any]] = defaultdict(list)
        """The lists of the report, by the names of its fields."""
        self.promises: list[Promise | None] = [self.depth.promise]
        self.doubts: dict[str, list[str]] = {}
        self.options = {name: getattr(rule, name) for name in _PASSED_ON}
        self.transposes = False
        self.remedies: dict[str, None] = {}
        self.offers: Counter[str] = Counter()
        self.lacking: dict[str, str] = {}

    def run(self) -> Resolution:
        fills: dict[str, Fill] = {}
        for views in self.groups.values():
            if (fill := self._search(views)) is not None:
                fills |= {view.name: fill for view in views}
        taken = {key for fill in fills.values() if isinstance(fill, Loaded) for key in (*fill.keys, *fill.like)}
        sizes = {key: self.sizes.get(key, 0) if key in taken else 0 for key in (*taken, *self.used)}
        source = self.rule.checkpoint
        given = source.identity if isinstance(source, InMemory) else source
        return Resolution(fills, account=self._report(fills, taken), used={(given, self.checkpoint.part): sizes})

    def _search(self, views: list[Site]) -> Fill | None:
        """The fill of a site, None where the checkpoint has none for it."""
        site = views[0]
        own = tuple([self.names.key_of[view.name] for view in views if view.name in self.names.key_of])
        if self.depth.zero and any(view.name in self.depth.zero for view in views):
            self.used.update(own)
            self.lists["adapted"].append((site.name, "zero, which leads out of a new block"))
            return Constant(0.0)
        try:
            view, adapter = self._adapter(views)
            key = view.name if adapter else ""
            keys = self._sources(key, adapter) if adapter else self._unique(views, own)
            infos = [self.checkpoint.info(key) for key in keys]
            shapes = [info.shape for info in infos]
            if adapter and keys and adapter.changes(shapes, site.shape):
                adapter = adapter.placed(view, self.around, shapes)
        except (CheckpointError, ValueError) as error:
            self.used.update(own)
            self.lists["mismatched"].append(Mismatch(site.name, str(error)))
            return None
        self.used.update((*own, *keys))
        if not keys:
            self._note_missing(views, key, adapter)
            return None
        steps = fits.steps_of(adapter)
        needed = [self.companions.of(*pair, site.dtype, keys) for pair in zip(keys, infos, strict=True)]
        quantized = next(filter(None, needed), None)
        mismatch = self._refused(site, quantized, key, steps) if quantized else fits.misfit(site, infos, key, adapter)
        transposed = any(isinstance(step, Transpose) for step in steps)
        self.transposes |= transposed or (mismatch is not None and infos[0].shape == site.shape[::-1])
        if mismatch is None:
            self._note_found(site, keys, infos, adapter)
            if adapter:
                self.used.update(key for view in views for key in self._wanted(view.name, adapter))
            return Loaded(self.rule.checkpoint, keys, key, adapter, () if adapter else own[1:], **self.options)
        if mismatch.reason == "shape" and fits.last_match(self.globs["on_shape"], site.name) == "skip":
            self.lists["declined"].append((site.name, mismatch.why))
        elif mismatch.reason == "shape" and not adapter:
            offer = suggest_for_shape(infos[0].shape, site.shape, site.name, site)
            self.lists["mismatched"].append(replace(mismatch, why=mismatch.why + offer))
        else:
            self.lists["mismatched"].append(mismatch)
        return None

    def _adapter(self, views: Sequence[Site]) -> tuple[Site, Adapter | None]:
        """The adapter of a site, and the view that it is for: a tied site may be matched under any of its names."""
        for view in views if self.rule.adapt else ():
            found = fits.last_match(self.rule.adapt, view.name)
            if adapter := found and found.bound(view.name, self._dtype, self.companions.dtype_of):
                return view, adapter
        return views[0], None

    def _unique(self, views: list[Site], own: tuple[str, ...]) -> tuple[str, ...]:
        """The key that a site is loaded from; none if there is none, CheckpointError if there are several."""
        for view in views:
            if clash := self.names.clashes.get(view.name):
                raise CheckpointError(f"may be any of {abbreviate(clash)} in the file: give a prefix")
        return own[:1]

    def _sources(self, name: str, adapter: Adapter) -> tuple[str, ...]:
        """The keys of the file that an adapter makes a site of; none if it is to have none."""
        try:
            wanted = adapter.wants(name)
        except ValueError as error:
            raise CheckpointError(f"cannot be made by {adapter}: {error}") from error
        key_of = self.names.key_of
        if not (gone := [key for key in wanted if key not in key_of]):
            return tuple(key_of[key] for key in wanted)
        lacks = f"needs {abbreviate(gone)} for {adapter}, which the file lacks"
        if name in key_of and name not in wanted:
            raise CheckpointError(f"{lacks}; it has {name!r} itself")
        lacks += did_you_mean(gone[0], key_of)
        if len(gone) < len(wanted):
            raise CheckpointError(lacks)
        self.lacking.setdefault(str(adapter), f"{name} {lacks}")
        return ()

    def _wanted(self, name: str, adapter: Adapter) -> Iterator[str]:
        """The keys of which an adapter would make a site by this one of its names."""
        with suppress(ValueError):
            yield from (self.names.key_of[key] for key in adapter.wants(name) if key in self.names.key_of)

    def _dtype(self, name: str) -> torch.dtype | None:
        """The dtype of the tensor that is called so in the model; None where the file has none."""
        key = self.names.key_of.get(name)
        return self.checkpoint.info(key).dtype if key else None

    def _refused(self, site: Site, quantized: Quantized, name: str = "", steps: Sequence[Adapter] = ()) -> Mismatch:
        self.used.update(quantized.companions)
        self.remedies[quantized.remedy] = None
        if quantized.adapter:
            globs = [glob for glob in self.rule.adapt if glob_matches(glob, name)] if steps else ["**"]
            adapter = Chain((quantized.adapter, *steps)) if steps else quantized.adapter
            self.offers[f"{{{globs[-1]!r}: {adapter}}}"] += 1
        return Mismatch(site.name, quantized.why)

    def _note_found(self, site: Site, keys: Sequence[str], infos: Sequence[Info], adapter: Adapter | None) -> None:
        if adapter is None:
            self.lists["loaded"].append(site.name)
        else:
            self.promises.append(adapter.promise)
            idle = not adapter.changes([info.shape for info in infos], site.shape)
            self.lists["adapted"].append((site.name, f"{adapter}{', which has nothing to change' * idle}"))
        for doubt in self.companions.doubts(keys, infos, site.dtype):
            self.doubts.setdefault(doubt, []).append(site.name)
        dtypes = tuple(filter(None, (infos[0].dtype, self.rule.dtype, site.dtype)))
        if len({*dtypes}) > 1:
            self.lists["casts"].append(Cast(site.name, dtypes))

    def _note_missing(self, views: list[Site], key: str, adapter: Adapter | None) -> None:
        site, names = views[0], adapter.wants(key) if adapter else [view.name for view in views]
        if not names:
            self.lists["declined"].append((site.name, str(adapter)))
        elif site.name.startswith(self.depth.new):
            self.lists["declined"].append((site.name, "in a new block"))
        elif site.leaf == fits.COUNTER or any(glob_matches(glob, site.name) for glob in self.globs["expect_missing"]):
            self.lists["expected"].append(site.name)
        elif quantized := next(filter(None, map(self.companions.instead, names)), None):
            self.lists["mismatched"].append(self._refused(site, quantized))
        else:
            self.lists["missing"].append(site.name)

    def _report(self, fills: Mapping[str, Fill], taken: Collection[str]) -> LoadReport:
        self.lists["mismatched"] += fits.apart(fills, self.model_names)
        names = self.names
        missing, loaded, mismatched = (self.lists[fate] for fate in ("missing", "loaded", "mismatched"))
        found = len(loaded) + len(self.lists["adapted"])
        sites = {views[0].name: views[0] for views in self.groups.values()}  # an alias may be all that is matched
        guess, hints = None, list[str]()
        if missing or not found:
            wanted = {name: site.shape for name, site in sites.items()}
            named = found + sum(each.reason != "shape" for each in mismatched)  # a prefix mends no dtype
            guess, hints = advise(self.checkpoint, names, self.used, wanted, missing, named)
            hints += self.checkpoint.notes  # the weights may be in another part of the file
            hints += [*self.lacking.values(), *tied(*([sites[name] for name in side] for side in (missing, loaded)))]
            if self.rule.order == "names" and is_numbered(self.checkpoint):
                hints.append("Its tensors have no names: order='parameters' takes them for the model's, one by one")
        if guess is None or guess.matching < guess.wanted:
            hints += fits.hooked([sites[name] for name in (*missing, *(each.site for each in mismatched))])
        outside = len(self.checkpoint) - len(names.name_of)
        notes = [f"{count(outside, 'key')} outside of prefix {self.rule.keymap().start!r}"] if outside else []
        if self.rule.order != "names":
            notes.append(f"{count(len(self.checkpoint), 'tensor')} without names, taken in the order of the parameters")
        if hooks := abbreviate([*dict.fromkeys(site.hooks for site in sites.values() if site.hooks)], 3):
            notes.append(f"hooks by which {hooks} may change what is loaded are not run here, as load_checkpoint does")
        square = fits.square([sites[name] for name in loaded]) if self.transposes else []
        notes += [*self.depth.notes, *square, *fits.peak(fills, self.checkpoint, sites)]
        spares = self.globs["expect_unexpected"]
        spare, unexpected = fits.leftovers(names, self.used, self.model_names, spares, self.depth.left)
        made, lost = any(self.promises), any(self.lists[fate] for fate in ("missing", "declined", "expected"))
        lists: dict[str, Any] = {name: tuple(items) for name, items in self.lists.items()}
        account = LoadReport(
            source=masked(str(self.rule.checkpoint)),
            part=self.checkpoint.part,
            **lists,
            unexpected=tuple(unexpected),
            spare=tuple(spare),
            beside=tuple(fits.beside(unexpected, [names.name_of[key] for key in taken])),
            unused_patterns=tuple(self._unused_patterns()),
            elements=(sum(sites[name].numel for name in sites if name in fills), sum(s.numel for s in sites.values())),
            file_elements=(sum(self.sizes.get(key, 0) for key in taken), sum(self.sizes.values())),
            notes=tuple(notes),
            doubts=(*self.checkpoint.notes, *(f"{abbreviate(at)}: {doubt}" for doubt, at in self.doubts.items())),
            hints=(*self.remedies, *(offered(*offer) for offer in self.offers.most_common()), *hints),
            guess=guess,
            promise="none" if made and lost else weakest(self.promises),
        )
        return promises.kept(account, fills, sites, self.rule.checkpoint, self.checkpoint)

    def _unused_patterns(self) -> Iterator[str]:
        views = [view.name for views in self.groups.values() for view in views]
        # Keys that lie outside of the prefix may be named, too, although they are not looked at.
        keys = dict.fromkeys((*self.checkpoint, *self.names.name_of.values()))
        for option, globs in self.globs.items():
            noun, names = ("key", keys) if option == "expect_unexpected" else ("site", views)
            for glob in globs:
                if not any(glob_matches(glob, name) for name in names):
                    yield f"{option}: {glob!r} matches no {noun}{did_you_mean(glob, names)}"


INITIALIZERS.register(Loaded)
INITIALIZERS.register(Pretrained)
