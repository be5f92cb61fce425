"""The model under test: its tensors with the statistics of their values, and what is known of their past."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.knowledge.following import chains, with_activations
from torchinit.knowledge.neutral import with_neutral
from torchinit.linting.statistics import Statistics, compute_statistics
from torchinit.model.dtensor import is_distributed, local_part
from torchinit.model.names import normalize
from torchinit.model.sites import Site, group_sites
from torchinit.model.traversal import HeldTensor, Kind, walk_tensors
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.tracing import Trace, Write
from torchinit.tracing.recorder import Recorder, TracedTensor
from torchinit.tracing.uninitialized import unstamp, watching


@dataclass(frozen=True, eq=False)
class LintedTensor:
    """A parameter or buffer of the model under test; its values are read once, when they are asked for."""

    site: Site
    holders: list[HeldTensor]
    loaded: bool
    writes: tuple[Write, ...]

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def tensor(self) -> Tensor:
        return self.holders[0].tensor

    @cached_property
    def values(self) -> Tensor | None:
        """The part of the values that is here; None where there are none to look at.

        A partial sum of several ranks is not the values.
        """
        partial = is_distributed(self.tensor) and any(each.is_partial() for each in self.tensor.placements)
        if partial or self.site.state in ("quantized", "sparse", "lazy"):
            return None
        values = local_part(self.tensor)
        return None if values.is_meta or not values.numel() else values.detach()

    @property
    def here(self) -> torch.Size:
        """The shape of the part that is here."""
        return local_part(self.tensor).shape

    @property
    def is_complete(self) -> bool:
        return self.here == self.tensor.shape

    @cached_property
    def statistics(self) -> Statistics:
        """The statistics of the values; those of no values where there are none."""
        values = self.values
        return Statistics() if values is None else compute_statistics(values)

    @property
    def is_parameter(self) -> bool:
        return self.site.kind == "parameter"

    @property
    def is_drawn(self) -> bool:
        """Whether the values are of several kinds and in no order, as a draw leaves them."""
        return self.statistics.varied and self.statistics.shuffled

    @property
    def is_matrix(self) -> bool:
        """Whether the site is the weight of a layer that mixes its inputs, or a table that is looked up."""
        layout = self.site.layout
        return self.is_parameter and layout is not None and bool(layout.out_axes) and len(self.site.shape) > 1

    @property
    def mixes(self) -> bool:
        """Whether several units have the same inputs, and several of them, so that only their weights differ."""
        layout, shape = self.site.layout, self.site.shape
        if not self.is_matrix or layout is None or layout.lookup:
            return False
        units = math.prod(shape[axis] for axis in layout.out_axes)
        return self.site.fans("true")[0] > 1 and units > (layout.groups if 0 in layout.out_axes else 1)

    @cached_property
    def factor(self) -> float:
        """The factor by which the layer makes what passes larger, inputs being independent: std · sqrt(fan_in).

        The fan counts the connections that the layer makes; a table that is looked up makes none.
        """
        fan = self.multiplied.fans("true")[0] if self.is_matrix and self.multiplied else 0.0
        return math.sqrt(fan) * math.hypot(self.statistics.std, self.statistics.mean)

    @cached_property
    def multiplied(self) -> Site | None:
        """The site as the layer sees it that multiplies by it; None for a table that is only looked up."""
        return next((view for view in self.site.views if view.layout and not view.layout.lookup), None)

    @property
    def is_zero(self) -> bool:
        """Whether there are values, all of them zero."""
        return 0 < self.statistics.numel == self.statistics.zeros

    @property
    def last_write(self) -> Write | None:
        """The last of the writes that a trace knows."""
        return max(self.writes, key=lambda write: write.last, default=None)


def _equal(first: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there and the same, bit for bit."""
    return first is not None and other is not None and (first is other or torch.equal(first, other.to(first.device)))


def is_pair_to_tie(twins: Collection[LintedTensor]) -> bool:
    """Whether one of them is a table that is looked up, and another the weight of a layer."""
    return len({bool(twin.site.layout and twin.site.layout.lookup) for twin in twins}) == 2


def split_common_end(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names without the parts that all of them end with, and those: ``a``, ``b`` and ``fc`` of a.fc and b.fc."""
    ends = zip(*(name.split(".")[:0:-1] for name in names), strict=False)  # the last parts come first
    leaf = ".".join([parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, ends)][::-1])
    return tuple(name.removesuffix(f".{leaf}") if leaf else name for name in names), leaf or names[0]


@dataclass(frozen=True, slots=True)
class AcrossRanks:
    """What the ranks of a group have told each other of a model.

    ``equal`` names the weights of which several ranks hold the same drawn values as different parts, ``differing`` has
    a line for each site whose replicas are not the same, ``seeds`` torch's seed on each rank, ``replicated`` the
    parameters that every rank has whole.
    """

    equal: Mapping[str, Sequence[int]] = field(default_factory=dict)
    differing: Sequence[str] = ()
    seeds: Mapping[int, int] = field(default_factory=dict)
    replicated: Sequence[str] = ()


@dataclass(frozen=True)
class LintTarget:
    """A model that is checked, and what is known of it besides its values; what is not known is empty."""

    model: nn.Module
    plan: Plan
    report: Report
    loaded: Mapping[str, Tensor]
    trace: Trace
    ranks: AcrossRanks = AcrossRanks()

    @cached_property
    def tensors(self) -> tuple[LintedTensor, ...]:
        """The parameters and buffers of the model, in the order of ``Module.apply``."""
        loaded = {normalize(name) for name in self.loaded}
        writes: dict[str, list[Write]] = defaultdict(list)
        for write in self.trace:
            writes[write.site].append(write)
        groups = group_sites(walk_tensors(self.model))
        sites = with_activations(self.model, with_neutral(self.model, (site for site, _ in groups)))
        return tuple(
            LintedTensor(
                site,
                holders,
                any(view.name in loaded for view in site.views),
                tuple(writes[self.trace.aliases.get(site.name, site.name)]),
            )
            for site, (_, holders) in zip(sites, groups, strict=True)
        )

    @cached_property
    def drawn(self) -> tuple[LintedTensor, ...]:
        """The parameters whose values were not loaded, and are finite: those that an initialization answers for."""
        parameters = (each for each in self.tensors if each.is_parameter and not each.loaded)
        return tuple(each for each in parameters if each.statistics.finite)

    @cached_property
    def twins(self) -> tuple[tuple[LintedTensor, ...], ...]:
        """The groups of parameters that hold the same drawn values in memory of their own."""
        alike: dict[object, list[LintedTensor]] = defaultdict(list)
        for each in self.drawn:
            if each.is_drawn:
                alike[each.statistics.digest, each.here, each.site.dtype].append(each)
        groups = (tuple(twin for twin in group if _equal(twin.values, group[0].values)) for group in alike.values())
        return tuple(group for group in groups if len(group) > 1)

    @property
    def is_sketch(self) -> bool:
        """Whether nothing of the model has memory."""
        return bool(self.tensors) and all(each.tensor.is_meta for each in self.tensors)

    @cached_property
    def by_name(self) -> dict[str, LintedTensor]:
        """The tensors by their names, all names of tied tensors included."""
        return {view.name: each for each in self.tensors for view in each.site.views}

    @cached_property
    def chains(self) -> list[list[tuple[str, str]]]:
        """The modules that a signal passes one after the other, as far as the structure shows."""
        return chains(self.model)

    @cached_property
    def likely_chains(self) -> list[list[tuple[str, str]]]:
        """The same with long lists of like layers, which are one behind the other as a rule."""
        return chains(self.model, likely=True)

    def bias_of(self, weight: LintedTensor) -> LintedTensor | None:
        """The bias beside a weight, if the layer has one."""
        start, _, leaf = weight.name.rpartition("weight")
        return self.by_name.get(f"{start}bias{leaf}")

    def line(self, name: str) -> str:
        """The line that wrote a site last, where a trace knows it."""
        linted = self.by_name.get(name)
        return linted.last_write.line if linted and linted.last_write else ""


class ConstructionRecorder(Recorder):
    """A recorder of the writes to a model while it is constructed, before any of its tensors has a name.

    It records whatever is put into modules; :meth:`of` has it under the names that a model gives it. It also watches
    which memory was handed out empty and not written, of any dtype.
    """

    def __init__(self) -> None:
        super().__init__(nn.Module())
        self._memory = ExitStack()

    def __enter__(self) -> Trace:
        self._remember = self._memory.enter_context(watching(within_modes=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._memory.close()

    # A constructor writes to tensors that have no name in the model yet, so they are followed by their memory, from the
    # moment when they are put into any module; `of` gives them the names that the finished model has for that memory.
    # Tensors that are replaced before the end are in no model, and their writes are dropped.

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        if isinstance(value, Tensor):
            with _disable_current_modes():
                if not self.index.find(value):
                    kind: Kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
                    self.observe(TracedTensor(f"{name}#{len(self.sites)}", kind, [value]))

    def of(self, model: nn.Module) -> Trace:
        """The writes to the tensors of a model; other modules that were constructed are left out.

        All its sites count as added, since values may have been made before they were put into a module.
        """
        self._remember(model)
        unstamp(chain(model.parameters(), model.buffers()))
        groups = group_sites(walk_tensors(model))
        sites = [site for site, _ in groups]
        names = {
            self.sites[key].name: site.name
            for site, holders in groups
            for tensor in holders[0].sources
            for key in self.index.find(tensor)
        }
        return Trace(
            [replace(write, site=names[write.site], module=None) for write in self.trace if write.site in names],
            parameters=[site.name for site in sites if site.kind == "parameter"],
            buffers=[site.name for site in sites if site.kind == "buffer"],
            aliases={view.name: site.name for site in sites for view in site.aliases},
            added=[site.name for site in sites],
            lost=self.lost_in(model),
        )
