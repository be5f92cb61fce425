"""Surveys: a module tree looked over once, so that each part of it can be found without another look."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from torchinit.core.places import Held, held
from torchinit.core.shards import Shard
from torchinit.core.sites import Site, grouped, layer_class


@dataclass(frozen=True, slots=True)
class Spot:
    """A tensor where a module holds it.

    ``site`` describes it as seen from there, under its name in the whole tree. ``key`` is the same for
    all spots of one tensor, and ``first`` the name of the first of them.
    """

    site: Site
    tensor: Tensor
    module: nn.Module
    turn: int
    key: int
    first: str
    computed: Held | None = None

    @property
    def shard(self) -> Shard:
        """The memory to write to, drawn under the first of the tensor's names."""
        return Shard.whole(self.first, self.tensor)


class Survey:
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
        self.spots = sorted(self._spots(), key=lambda spot: spot.turn)
        self._spot_turns = [spot.turn for spot in self.spots]
        self.keys = {id(spot.tensor): spot.key for spot in self.spots if spot.computed is None}
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
            view = replace(view, owner=layer_class(cast("Any", type(one.place.module))))
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
