"""The index of a module tree, looked over once, so that each part of it can be found without another look."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from torchinit._frozen import changed, collector_paused, made
from torchinit._text import count, did_you_mean
from torchinit.mmengine.biases import LEAVES
from torchinit.model.dtensor import behind, blank_shards, shards_of
from torchinit.model.parametrizations import Parametrized, parametrized
from torchinit.model.shards import Shard
from torchinit.model.sites import KnownSites, LayerClass, Site, known_sites, layer_class
from torchinit.model.traversal import HeldTensor, Walk
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Layer, Leaf


class Spot(NamedTuple):
    """A tensor where a module holds it.

    ``site`` describes it as seen from there, under its name in the whole tree. ``key`` is the same for
    all spots of one tensor, and ``first`` the name of the first of them; those whose ``kind`` is the same differ in
    name and place alone. One that ``is_temporary`` is made anew at each look, so that nothing written to it is kept.
    """

    site: Site
    tensor: Tensor
    module: nn.Module
    turn: int
    key: int
    first: str
    kind: int = 0
    computed: Parametrized | None = None
    is_temporary: bool = False

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The memory to write to, drawn under the first of the tensor's names."""
        if self.is_temporary:
            return shards_of(self.first, _looked_at(self.module, self.site.leaf))
        if self.computed and self.computed.assign:
            return blank_shards(self.first, self.tensor, self.computed)
        return shards_of(self.first, behind(self.tensor))

    @property
    def holders(self) -> frozenset[int]:
        """The parameters or buffers that keep what is written here, by id."""
        if self.is_temporary:
            return frozenset()
        return frozenset(map(id, self.computed.sources if self.computed else (self.tensor,)))


class ModuleIndex:
    """The modules of a tree in the order of ``Module.apply``, and the tensors that they hold.

    A shared module has a turn for each of its parents. What lies below a module is a range of turns.
    """

    @collector_paused()
    def __init__(self, top: nn.Module, walk: Walk) -> None:
        self.top = top
        self.modules: list[nn.Module] = []
        self.names: list[str] = []
        self._sizes: dict[int, int] = {}
        self._turns: dict[int, int] = {}
        self._grouped: dict[tuple[int, bool], tuple[KnownSites, dict[str, list[Spot]]]] = {}
        for place in walk.places:
            if place.turn == len(self.modules):  # else it is a child that its parent has under another name, too
                self._turns.setdefault(id(place.module), place.turn)
                children = place.module._modules
                below = {id(child) for child in children.values() if child is not None} if children else ()
                self._sizes[id(place.module)] = 1 + sum(self._sizes[key] for key in below)
                self.modules.append(place.module)
                self.names.append(place.name)
        self.spots: list[Spot] = sorted(_spots(walk.held), key=attrgetter("turn"))
        self._spot_turns = [spot.turn for spot in self.spots]
        self.keys: dict[int, int] = {
            id(parameter): id(parameter)
            for module in self.modules
            for parameter in module._parameters.values()
            if parameter is not None
        }
        self.keys |= {id(spot.tensor): spot.key for spot in self.spots if spot.computed is None}

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._turns

    def is_current(self, module: nn.Module) -> bool:
        """Whether a module is here, with the tensors that it and those below it have now."""
        spots = [spot for spot in self.below(module) if not spot.computed] if module in self else []
        return module in self and all(map(_is_in_place, spots))

    def prefix(self, module: nn.Module) -> str:
        """The beginning of the names below a module, where it is met first."""
        name = self.names[self._turns[id(module)]] if module in self else ""
        return f"{name}." if name else ""

    def turns(self, module: nn.Module) -> range:
        """The turns of a module and of all below it, where it is met first."""
        last = self._turns[id(module)]
        return range(last - self._sizes[id(module)] + 1, last + 1)

    def below(self, module: nn.Module) -> list[Spot]:
        """The spots of a module and of all below it."""
        turns = self.turns(module)
        return self.spots[bisect_left(self._spot_turns, turns.start) : bisect_left(self._spot_turns, turns.stop)]

    def grouped(self, module: nn.Module, rules: Sequence[Rule] | None) -> tuple[Sequence[Site], dict[str, list[Spot]]]:
        """The sites below a module, under names that begin there, and the spots of each; with ``rules`` MMEngine's."""
        loose = [] if rules is None else list(self._loose(module, rules))
        key = id(module), rules is None  # entries of one init_cfg mostly see the same
        if loose or key not in self._grouped:
            spots = self.below(module) if rules is None else self._mmengine_view(module, loose)
            groups: dict[int, list[Spot]] = {}
            for spot in spots:
                groups.setdefault(spot.key, []).append(spot)
            prefix = self.prefix(module)
            kinds = () if loose else [group[0].kind for group in groups.values()]
            sites = KnownSites.of((_site(group, prefix) for group in groups.values()), kinds)
            grouped = sites, {site.name: group for site, group in zip(sites, groups.values(), strict=True)}
            if loose:
                return grouped
            self._grouped[key] = grouped
        return self._grouped[key]

    # --- as MMEngine sees it -------------------------------------------------------------------------------

    # MMEngine asks each module for its attributes `weight` and `bias` and writes to whatever tensor that gives: also to
    # a plain tensor that is neither a parameter nor a buffer, and to one that a property or an old weight norm computes
    # anew at each look, where the values are lost. A recipe has no such sites, so they are looked for here, and
    # only where a rule matches: a look may cost a computation, and in training it moves the power iteration of a
    # spectral norm. What was tried: to leave out what is lost. But its draws move torch's generator, and all bits after
    # it would be others. So it is drawn, and Session warns that it is lost.

    def _mmengine_view(self, module: nn.Module, loose: Sequence[Spot]) -> list[Spot]:
        """The spots of a module as MMEngine sees them: what an attribute ``weight`` or ``bias`` gives, it writes to."""
        spots = [spot for spot in self.below(module) if not spot.computed]
        if not loose:
            return spots
        ordered = sorted([*spots, *loose], key=lambda spot: spot.turn)
        return [spot._replace(site=changed(spot.site, position=n)) for n, spot in enumerate(ordered)]

    def _loose(self, module: nn.Module, rules: Sequence[Rule]) -> Iterator[Spot]:
        """Tensors that are attributes, and neither parameters nor buffers under that name."""
        prefix = self.prefix(module)
        of_class: dict[type, list[str]] = {}
        for turn in self.turns(module):
            owner = self.modules[turn]
            own, cls = vars(owner), type(owner)
            computed = of_class.get(cls)
            if computed is None:
                computed = of_class[cls] = [leaf for leaf in LEAVES if hasattr(cls, leaf)]
            for leaf in LEAVES:
                if leaf not in own and leaf not in computed:
                    continue
                site = Site(f"{self.names[turn]}.{leaf}".lstrip("."), (), owner=_class_of(owner), kind="buffer")
                as_seen = changed(site, name=site.name.removeprefix(prefix))
                if any(rule.matches(as_seen) for rule in rules) and (tensor := _value(owner, leaf)) is not None:
                    key = self.keys.get(id(tensor), id(tensor))
                    first = next((spot.first for spot in self.spots if spot.key == key), site.name)
                    site = changed(site, shape=tuple(tensor.shape), dtype=tensor.dtype)
                    is_temporary = hasattr(type(owner), leaf) and id(tensor) not in self.keys
                    yield Spot(site, tensor, owner, turn, key, first, is_temporary=is_temporary)


def _spots(held: Sequence[HeldTensor]) -> Iterator[Spot]:
    """The spots of what modules hold, tensor by tensor."""
    groups: dict[object, list[HeldTensor]] = {}
    for holder in held:
        groups.setdefault(holder.key, []).append(holder)
    known = known_sites(held)
    for site, kind, group in zip(known, known.kinds, groups.values(), strict=True):
        key, first = id(group[0].tensor), group[0].name
        for view, holder in _visits(site, group):
            _, (_, module, _, turn, _, _), _, tensor, _, computed, _, _ = holder
            # MMEngine sees a parametrized module by the class that it has now.
            here = changed(view, owner=_class_of(module)) if _is_parametrized(module) else view
            yield made(Spot, (here, tensor, module, turn, key, first, kind, computed, False))


def _visits(site: Site, group: Sequence[HeldTensor]) -> Iterable[tuple[Site, HeldTensor]]:
    """A site as each module that holds it sees it; a child that its parent holds under two names is visited once."""
    if len(group) == 1:
        return ((site, group[0]),)
    seen: dict[tuple[int, str], tuple[Site, HeldTensor]] = {}
    for view, holder in zip(site.views, group, strict=True):
        seen.setdefault((holder.place.turn, holder.leaf), (view, holder))
    return seen.values()


def _is_parametrized(module: nn.Module) -> bool:
    return "parametrizations" in module._modules and is_parametrized(module)  # to ask for what it lacks takes longer


def _is_in_place(spot: Spot) -> bool:
    """Whether the module still has the tensor."""
    leaf, module = spot.site.leaf, spot.module
    held = module._parameters.get(leaf, module._buffers.get(leaf))
    return held is spot.tensor or getattr(module, leaf, None) is spot.tensor


def _site(group: list[Spot], prefix: str) -> Site:
    """The site of the spots of one tensor, under names that begin at the module."""
    views = [spot.site for spot in group]
    if prefix:
        views = [changed(view, name=view.name.removeprefix(prefix)) for view in views]
    return changed(views[0], aliases=tuple(views[1:])) if len(views) > 1 else views[0]


def _class_of(module: nn.Module) -> LayerClass:
    return layer_class(cast("Any", type(module)))


def _value(module: nn.Module, leaf: str) -> Tensor | None:
    """An attribute; of a parametrized module without the changes that a look makes in training (power iterations)."""
    computed = {each.leaf: each.value for each in parametrized(module)}
    with torch.no_grad():
        value = computed[leaf] if leaf in computed and leaf not in vars(module) else getattr(module, leaf, None)
    return value if isinstance(value, Tensor) else None


def _looked_at(module: nn.Module, leaf: str) -> Tensor:
    """An attribute, looked at as often as MMEngine does: in training, each look moves a spectral norm."""
    with torch.no_grad():
        *_, tensor = (getattr(module, leaf) for _ in range(3))
    return cast("Tensor", tensor)


# --- layers by name ----------------------------------------------------------------------------------------


def explain_unused_layers(index: ModuleIndex, module: nn.Module, rules: Sequence[Rule]) -> Iterator[str]:
    """Explain the names in a list of layers that do nothing although others match; where none does, the planner does.

    A name does nothing if no class has it, here or anywhere, or if the modules that it matches have parameters, and
    neither a weight nor a bias.
    """
    names = _layers_of(rules[0]) if rules else None
    whose = f"{type(module).__name__}'s init_cfg"
    if names is None or (names and rules[0].optional):
        return
    if not names:
        yield f"an entry of {whose} has neither a layer nor an override: it initializes nothing"
    by_name = _by_class_name([index.modules[turn] for turn in index.turns(module)]) if names else {}
    for name in names:
        if name not in by_name:
            near = did_you_mean(name, by_name) if len(names) > 1 else ""
            if near and not _is_of_a_class(name):
                yield f"layer {name!r} of {whose} matches no module{near}"
        elif not any(map(_has_weight_or_bias, by_name[name])):
            leaves = sorted({leaf for each in by_name[name] for leaf, _ in each.named_parameters(recurse=False)})
            if leaves:
                yield (
                    f"layer {name!r} of {whose} matches {count(len(by_name[name]), 'module')}"
                    f" without weight or bias; name its parameters instead: name='**.{leaves[0]}'"
                )


def _by_class_name(modules: Iterable[nn.Module]) -> dict[str, dict[nn.Module, None]]:
    """Modules by each name of their classes and of what these derive from."""
    of_class: dict[type, dict[nn.Module, None]] = {}
    for module in modules:
        of_class.setdefault(type(module), {})[module] = None
    by_name: dict[str, dict[nn.Module, None]] = {}
    for alike in of_class.values():
        cls = _class_of(next(iter(alike)))
        for name in (cls.name, *cls.bases):
            by_name.setdefault(name, {}).update(alike)
    return by_name


def _layers_of(rule: Rule) -> tuple[str, ...] | None:
    """The layers of a rule; None of one that is for a whole module, or for parameters of other names."""
    parts = getattr(rule.where, "of", ())
    layers = (part for part in parts if isinstance(part, Layer) and not part.subclasses)
    return next((layer.names for layer in layers if Leaf("weight") in parts), None)


def _has_weight_or_bias(module: nn.Module) -> bool:
    own = {**module._parameters, **module._buffers, **vars(module)}
    return any((leaf in own or hasattr(type(module), leaf)) and not isinstance(own.get(leaf), bool) for leaf in LEAVES)


def _is_of_a_class(name: str) -> bool:
    """Whether any module class that is imported has the name: a list may name layers that this model does not have."""
    if isinstance(getattr(nn, name, None), type):  # as most are
        return True
    classes: list[type] = [nn.Module]
    for cls in classes:  # which grows
        if cls.__name__ == name:
            return True
        classes += cls.__subclasses__()
    return False


def configs_of(top: nn.Module, init_cfg: Any = None) -> dict[str, str]:
    """What ranks compare of an ``init_cfg`` for a tree, or else of its modules' own, by what it is of."""
    configs = {"the init_cfg": init_cfg}
    if init_cfg is None:
        every = ((name, getattr(each, "init_cfg", None)) for name, each in top.named_modules())
        configs = {f"init_cfg of {name or 'the model'}": config for name, config in every if config}
    # Where an object lies in memory is not compared.
    return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(config)) for name, config in configs.items()}
