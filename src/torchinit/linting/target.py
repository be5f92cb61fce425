"""The model under test: its tensors with the statistics of their values, and what is known of their past."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from torchinit.knowledge.neutral import is_named_norm, with_neutral
from torchinit.linting.statistics import Statistics, compute_statistics
from torchinit.model.dtensor import is_distributed, local_part
from torchinit.model.names import normalize
from torchinit.model.sites import Site, grouped
from torchinit.model.traversal import Held, held
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.tracing import Trace, Write

_UNREADABLE = frozenset({"quantized", "sparse", "lazy"})


class LintedTensor:
    """A parameter or buffer of the model under test; its values are read once, when they are asked for."""

    def __init__(self, site: Site, holders: list[Held], *, loaded: bool) -> None:
        self.site = site
        self.holders = holders
        self.loaded = loaded

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def tensor(self) -> Tensor:
        return self.holders[0].tensor

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The tensors that hold the values: itself, or what a parametrization computes it from."""
        return self.holders[0].sources

    @property
    def values(self) -> Tensor | None:
        """The part of the values that is here; None where there are none to look at."""
        if self.site.state in _UNREADABLE or _is_partial(self.tensor):
            return None
        values = local_part(self.tensor)
        return None if values.is_meta or not values.numel() else values.detach()

    @property
    def is_whole(self) -> bool:
        """Whether all of the values are here."""
        return local_part(self.tensor).shape == self.tensor.shape

    @cached_property
    def statistics(self) -> Statistics:
        """The statistics of the values; those of no values where there are none."""
        values = self.values
        return compute_statistics(values) if values is not None else Statistics()

    @property
    def is_parameter(self) -> bool:
        return self.site.kind == "parameter"

    @property
    def is_matrix(self) -> bool:
        """Whether the site is the weight of a layer that mixes its inputs, or a table that is looked up."""
        layout = self.site.layout
        return self.is_parameter and layout is not None and bool(layout.out_axes) and len(self.site.shape) > 1

    @property
    def is_norm(self) -> bool:
        """Whether a normalization layer holds the site, as a scale or a shift."""
        named = is_named_norm(self.site) and self.site.leaf in {"weight", "bias"} and len(self.site.shape) == 1
        return self.is_parameter and (self.site.neutral is not None or named)

    def equals(self, other: LintedTensor) -> bool:
        """Whether both hold the same values, bit for bit."""
        mine, theirs = self.values, other.values
        return self is other or (mine is not None and theirs is not None and torch.equal(mine, theirs.to(mine.device)))


Twins: TypeAlias = tuple[LintedTensor, ...]
"""Parameters that hold the same drawn values in memory of their own."""


def is_pair_to_tie(twins: Twins) -> bool:
    """Whether one of them is a table that is looked up, and another the weight of a layer."""
    return len({bool(twin.site.layout and twin.site.layout.lookup) for twin in twins}) == 2


def _is_partial(tensor: Tensor) -> bool:
    """Whether the tensor is the sum of what lies on several ranks, so that nothing here is its values."""
    return is_distributed(tensor) and any(placement.is_partial() for placement in tensor.placements)


@dataclass(frozen=True)
class LintTarget:
    """A model that is checked, and what is known of it besides its values; what is not known is empty."""

    model: nn.Module
    plan: Plan
    report: Report
    loaded: Mapping[str, Tensor]
    trace: Trace

    @cached_property
    def tensors(self) -> tuple[LintedTensor, ...]:
        """The parameters and buffers of the model, in the order of ``Module.apply``."""
        loaded = {normalize(name) for name in self.loaded}
        groups = grouped(held(self.model))
        sites = with_neutral(self.model, (site for site, _ in groups))
        return tuple(
            LintedTensor(site, holders, loaded=any(view.name in loaded for view in site.views))
            for site, (_, holders) in zip(sites, groups, strict=True)
        )

    @property
    def drawn(self) -> Iterator[LintedTensor]:
        """The parameters whose values were not loaded, and are finite: those that an initialization answers for."""
        return (each for each in self.tensors if each.is_parameter and not each.loaded and each.statistics.finite)

    @cached_property
    def twins(self) -> tuple[Twins, ...]:
        """The groups of parameters that hold the same drawn values."""
        found: dict[object, list[LintedTensor]] = defaultdict(list)
        for each in self.drawn:
            if each.statistics.varied and each.statistics.shuffled:
                found[each.statistics.digest, local_part(each.tensor).shape, each.site.dtype].append(each)
        groups = (tuple(twin for twin in group if twin.equals(group[0])) for group in found.values())
        return tuple(group for group in groups if len(group) > 1)

    @cached_property
    def is_sketch(self) -> bool:
        """Whether nothing of the model has memory."""
        return bool(self.tensors) and all(each.tensor.is_meta for each in self.tensors)

    def find(self, name: str) -> LintedTensor | None:
        """The tensor of this name, names of tied tensors included."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, LintedTensor]:
        return {view.name: each for each in self.tensors for view in each.site.views}

    def writes(self, linted: LintedTensor) -> tuple[Write, ...]:
        """The writes to a tensor, in order; none where it was not traced."""
        return self._writes.get(self.trace.aliases.get(linted.name, linted.name), ())

    @cached_property
    def _writes(self) -> dict[str, tuple[Write, ...]]:
        found: dict[str, list[Write]] = defaultdict(list)
        for write in self.trace:
            found[write.site].append(write)
        return {name: tuple(writes) for name, writes in found.items()}

    def line(self, name: str) -> str:
        """The line that wrote a site last, where a trace knows it."""
        linted = self.find(name)
        writes = self.writes(linted) if linted is not None else ()
        return max(writes, key=lambda write: write.last).line if writes else ""
