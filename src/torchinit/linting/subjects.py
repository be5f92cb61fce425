"""Subjects: a model as the checks see it: its sites with their values, and what is known of their past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from torchinit.core.names import normalize
from torchinit.core.neutral import is_named_norm, with_neutral
from torchinit.core.placements import is_distributed, local_part
from torchinit.core.places import Held, held
from torchinit.core.plans import Plan
from torchinit.core.reports import Report
from torchinit.core.sites import Site, grouped
from torchinit.linting.facts import Facts, look
from torchinit.tracing import Trace, Write

_UNREADABLE = frozenset({"quantized", "sparse", "lazy"})


class Part:
    """One site of a model with what holds it; its values are looked at once, when they are asked for."""

    def __init__(self, site: Site, holdings: list[Held], *, loaded: bool) -> None:
        self.site = site
        self.holdings = holdings
        self.loaded = loaded

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def tensor(self) -> Tensor:
        return self.holdings[0].tensor

    @property
    def values(self) -> Tensor | None:
        """What of the values is here; None where there are none to look at."""
        if self.site.state in _UNREADABLE or _is_partial(self.tensor):
            return None
        values = local_part(self.tensor)
        return None if values.is_meta or not values.numel() else values.detach()

    @property
    def is_whole(self) -> bool:
        """Whether all of the values are here."""
        return local_part(self.tensor).shape == self.tensor.shape

    @cached_property
    def facts(self) -> Facts:
        """The facts of the values; those of no values where there are none."""
        values = self.values
        return look(values) if values is not None else Facts()

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


def _is_partial(tensor: Tensor) -> bool:
    """Whether the tensor is the sum of what lies on several ranks, so that nothing here is its values."""
    return is_distributed(tensor) and any(placement.is_partial() for placement in tensor.placements)


@dataclass(frozen=True)
class Subject:
    """A model that is being checked, and what is known of it besides its values."""

    model: nn.Module
    plan: Plan | None = None
    report: Report | None = None
    loaded: Mapping[str, Tensor] | None = None
    trace: Trace | None = None

    @property
    def intended(self) -> Plan:
        """The plan, or one of nothing."""
        return Plan() if self.plan is None else self.plan

    @property
    def given(self) -> Mapping[str, Tensor]:
        """What was loaded, or nothing."""
        return {} if self.loaded is None else self.loaded

    @property
    def history(self) -> Trace:
        """The trace, or one of nothing."""
        return Trace() if self.trace is None else self.trace

    def writes(self, part: Part) -> tuple[Write, ...]:
        """What was written to a part, in order; nothing where it was not traced."""
        return self._by_site.get(self.history.aliases.get(part.name, part.name), ())

    @cached_property
    def _by_site(self) -> dict[str, tuple[Write, ...]]:
        found: dict[str, list[Write]] = {}
        for write in self.history:
            found.setdefault(write.site, []).append(write)
        return {name: tuple(writes) for name, writes in found.items()}

    def line(self, name: str) -> str:
        """The line that wrote a site last, where a trace knows it."""
        part = self.find(name)
        writes = self.writes(part) if part is not None else ()
        return max(writes, key=lambda write: write.last).line if writes else ""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The sites of the model, in the order of ``Module.apply``."""
        known = {normalize(name) for name in self.given}
        groups = grouped(held(self.model))
        sites = with_neutral(self.model, (site for site, _ in groups))
        return tuple(
            Part(site, holdings, loaded=any(view.name in known for view in site.views))
            for site, (_, holdings) in zip(sites, groups, strict=True)
        )

    @property
    def drawn(self) -> Iterator[Part]:
        """The parameters whose values were not loaded, and are finite: those that an initialization answers for."""
        return (part for part in self.parts if part.is_parameter and not part.loaded and part.facts.finite)

    @cached_property
    def all_meta(self) -> bool:
        """Whether nothing of the model has memory."""
        return bool(self.parts) and all(part.tensor.is_meta for part in self.parts)

    def find(self, name: str) -> Part | None:
        """The part of this name, its aliases' names included."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Part]:
        return {view.name: part for part in self.parts for view in part.site.views}
