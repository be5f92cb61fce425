"""The index of a module tree, looked over once, so that each part of it can be found without another look."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from torchinit.mmengine.biases import LEAVES
from torchinit.model.dtensor import behind, blank_shards, shards_of
from torchinit.model.parametrizations import parametrized
from torchinit.model.shards import Shard
from torchinit.model.sites import LayerClass, Site, grouped, layer_class
from torchinit.model.traversal import Held, held
from torchinit.rules.rule import Rule


@dataclass(frozen=True, slots=True)
class Spot:
    """A tensor where a module holds it.

    ``site`` describes it as seen from there, under its name in the whole tree. ``key`` is the same for
    all spots of one tensor, and ``first`` the name of the first of them. One that ``is_temporary`` is made
    anew at each look, so that nothing written to it is kept.
    """

    site: Site
    tensor: Tensor
    module: nn.Module
    turn: int
    key: int
    first: str
    computed: Held | None = None
    is_temporary: bool = False

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The memory to write to, drawn under the first of the tensor's names."""
        way = self.computed.way if self.computed else None
        if self.is_temporary:
            return shards_of(self.first, _looked_at(self.module, self.site.leaf))
        if way and way.assign:
            return blank_shards(self.first, self.tensor, way.assign)
        return shards_of(self.first, behind(self.tensor))

    @property
    def holders(self) -> frozenset[int]:
        """The parameters or buffers that keep what is written here, by id."""
        way = self.computed.way if self.computed else None
        return frozenset(map(id, () if self.is_temporary else way.sources if way else (self.tensor,)))


class ModuleIndex:
    """The modules of a tree in the order of ``Module.apply``, and the tensors that they hold.

    A shared module has a turn for each of its parents. What lies below a module is a range of turns.
    """

    def __init__(self, top: nn.Module) -> None:
        self.top = top
        self.modules: list[nn.Module] = []
        self.names: list[str] = []
        self._sizes: dict[int, int] = {}
        self._walk(top, "")
        self._turns: dict[int, int] = {}
        for turn, module in enumerate(self.modules):
            self._turns.setdefault(id(module), turn)
        self.spots: list[Spot] = sorted(self._spots(), key=lambda spot: spot.turn)
        self._spot_turns = [spot.turn for spot in self.spots]
        self.keys: dict[int, int] = {id(spot.tensor): spot.key for spot in self.spots if spot.computed is None}
        for parameter in top.parameters():
            self.keys.setdefault(id(parameter), id(parameter))

    def _walk(self, module: nn.Module, name: str) -> int:
        size = 1
        seen: set[int] = set()
        for key, child in module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                size += self._walk(child, f"{name}.{key}" if name else key)
        self.modules.append(module)
        self.names.append(name)
        self._sizes[id(module)] = size
        return size

    def _spots(self) -> Iterator[Spot]:
        for site, group in grouped(held(self.top)):
            seen: set[tuple[int, str]] = set()
            for view, one in zip(site.views, group, strict=True):
                # A child that its parent holds under two names is visited once.
                if (one.place.turn, one.leaf) not in seen:
                    seen.add((one.place.turn, one.leaf))
                    yield self._spot(view, one, group[0])

    def _spot(self, view: Site, one: Held, first: Held) -> Spot:
        if is_parametrized(one.place.module):  # as MMEngine sees it, by the class that it has now
            view = replace(view, owner=_owner(one.place.module))
        return Spot(
            site=view,
            tensor=one.tensor,
            module=one.place.module,
            turn=one.place.turn,
            key=id(first.tensor),
            first=first.name,
            computed=one if one.way else None,
        )

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._turns

    def name(self, module: nn.Module) -> str:
        """The first name of a module in the tree."""
        return self.names[self._turns[id(module)]]

    def turns(self, module: nn.Module) -> range:
        """The turns of a module and of all below it, where it is met first."""
        last = self._turns[id(module)]
        return range(last - self._sizes[id(module)] + 1, last + 1)

    def below(self, module: nn.Module) -> list[Spot]:
        """The spots of a module and of all below it."""
        turns = self.turns(module)
        return self.spots[bisect_left(self._spot_turns, turns.start) : bisect_left(self._spot_turns, turns.stop)]

    def mmengine_view(self, module: nn.Module, rules: Sequence[Rule]) -> list[Spot]:
        """The spots of a module as MMEngine sees them: what an attribute ``weight`` or ``bias`` gives, it writes to."""
        spots = [spot for spot in self.below(module) if not spot.computed]
        loose = list(self._loose(module, rules))
        if not loose:
            return spots
        ordered = sorted([*spots, *loose], key=lambda spot: spot.turn)
        return [replace(spot, site=replace(spot.site, position=n)) for n, spot in enumerate(ordered)]

    def _loose(self, module: nn.Module, rules: Sequence[Rule]) -> Iterator[Spot]:
        """Tensors that are attributes, and neither parameters nor buffers under that name."""
        prefix = f"{self.name(module)}.".lstrip(".")
        for turn in self.turns(module):
            owner = self.modules[turn]
            for leaf in LEAVES:
                if leaf not in vars(owner) and not hasattr(type(owner), leaf):
                    continue
                site = Site(f"{self.names[turn]}.{leaf}".lstrip("."), (), owner=_owner(owner), kind="buffer")
                as_seen = replace(site, name=site.name.removeprefix(prefix))
                if any(rule.matches(as_seen) for rule in rules):
                    yield from self._attribute(site, owner, turn)

    def _attribute(self, site: Site, owner: nn.Module, turn: int) -> Iterator[Spot]:
        tensor = _value(owner, site.leaf)
        if isinstance(tensor, Tensor):
            site = replace(site, shape=tuple(tensor.shape), dtype=tensor.dtype)
            key = self.keys.get(id(tensor), id(tensor))
            is_temporary = hasattr(type(owner), site.leaf) and key == id(tensor) and id(tensor) not in self.keys
            first = next((spot.first for spot in self.spots if spot.key == key), site.name)
            yield Spot(site, tensor, owner, turn, key, first, is_temporary=is_temporary)


def _owner(module: nn.Module) -> LayerClass:
    return layer_class(cast("Any", type(module)))


def _value(module: nn.Module, leaf: str) -> object:
    """An attribute; of a parametrized module without the changes that a look makes in training (power iterations)."""
    found = next((one.value for one in parametrized(module) if one.leaf == leaf), None)
    with torch.no_grad():
        return getattr(module, leaf, None) if found is None or leaf in vars(module) else found


def _looked_at(module: nn.Module, leaf: str) -> Tensor:
    """An attribute, looked at as often as MMEngine does: in training, each look moves a spectral norm."""
    with torch.no_grad():
        *_, tensor = (getattr(module, leaf) for _ in range(3))
    return cast("Tensor", tensor)
