"""Subjects: a model as the checks see it: its sites with their values, and what is known of their past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from torchinit.core.names import normalize
from torchinit.core.places import Held, held
from torchinit.core.plans import Plan
from torchinit.core.reports import Report
from torchinit.core.sites import Site, grouped
from torchinit.linting.facts import Facts, look

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
        tensor = self.tensor
        if self.site.state in _UNREADABLE or tensor.is_meta or not tensor.numel():
            return None
        return tensor.detach()

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
        owner = self.site.owner
        known = any("norm" in full.rpartition(".")[2].lower() for full in owner.lineage[:-1] or owner.lineage)
        return known and self.is_parameter and self.site.leaf in {"weight", "bias"} and len(self.site.shape) == 1


@dataclass(frozen=True)
class Subject:
    """A model that is being checked, and what is known of it besides its values."""

    model: nn.Module
    plan: Plan | None = None
    report: Report | None = None
    loaded: Mapping[str, Tensor] | None = None

    @property
    def intended(self) -> Plan:
        """The plan, or one of nothing."""
        return Plan() if self.plan is None else self.plan

    @property
    def given(self) -> Mapping[str, Tensor]:
        """What was loaded, or nothing."""
        return {} if self.loaded is None else self.loaded

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The sites of the model, in the order of ``Module.apply``."""
        known = {normalize(name) for name in self.given}
        return tuple(
            Part(site, holdings, loaded=any(view.name in known for view in site.views))
            for site, holdings in grouped(held(self.model))
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
