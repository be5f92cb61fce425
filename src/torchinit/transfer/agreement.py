"""Agreement: what of a model and of its optimizer contradicts the transfer that they should follow, as findings."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from torchinit.errors import ConfigError
from torchinit.linting import Finding, Findings
from torchinit.linting.registry import SEVERITIES, Check, Hit, Severity
from torchinit.model.dtensor import whole_values
from torchinit.model.names import normalize
from torchinit.plans.plan import Plan
from torchinit.transfer.groups import optimizer_of
from torchinit.transfer.multipliers import Multiplier, missing_from
from torchinit.transfer.rows import TransferRow
from torchinit.transfer.table import OPTIMIZERS


@dataclass(frozen=True)
class Followed:
    """A model with its optimizers, and what it should follow: rows, multipliers, an optimizer's name, a plan."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    rows: Sequence[TransferRow]
    multipliers: Sequence[Multiplier]
    optimizer: str
    start: Plan | None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by all their names."""
        return {normalize(name): each for name, each in self.model.named_parameters(remove_duplicate=False)}

    def settings(self) -> Iterator[tuple[TransferRow, Mapping[str, Any] | None]]:
        """Each parameter that learns, with the group of the optimizer that it is in."""
        groups = {id(each): group for one in self.optimizers for group in one.param_groups for each in group["params"]}
        held = self.parameters
        for row in self.rows:
            if row.name in held and held[row.name].requires_grad:
                yield row, groups.get(id(held[row.name]))


TRANSFER_CHECKS: Final[dict[str, Check]] = {}
"""The checks of a model against its transfer, by their codes."""


def _check(code: str, severity: Severity, remedy: str) -> Callable[..., Any]:
    def register(search: Callable[[Followed], Iterator[Hit]]) -> Callable[[Followed], Iterator[Hit]]:
        TRANSFER_CHECKS[code] = Check(code, severity, "sites", remedy, search)
        return search

    return register


@_check("TI001", "error", "call transfer.apply(model), also after the model was loaded anew")
def missing_multiplier(followed: Followed) -> Iterator[Hit]:
    """A multiplier that the transfer has, and the forward pass has not: that of the readout, of attention, of a branch.

    Attention that still divides by the root of the head size is one of them.
    """
    for each in missing_from(followed.model, followed.multipliers):
        yield Hit(each.module, f"the {each.purpose} is not multiplied by {each.factor:.6g}: {each}")


@_check("TI002", "warning", "start with transfer.recipe")
def other_std(followed: Followed) -> Iterator[Hit]:
    """A standard deviation other than the transfer's, as that of a bias which shrinks with the fan-in of its layer.

    Decided from 5 % and five standard errors on, those of the base's values included. Only before training.
    """
    fills = {step.site.name: step.fill for step in followed.start.steps} if followed.start else {}
    for row in followed.rows:
        parameter = followed.parameters.get(row.name)
        if parameter is None or parameter.is_meta or row.name not in fills:
            continue
        moments = fills[row.name].moments(row.shape)
        values = whole_values(parameter.detach()).double()
        if moments is None or moments.std is None or values.numel() < 2 or not values.is_floating_point():
            continue
        std, noise = float(values.std()), math.sqrt(0.5 / values.numel() + 0.5 / max(1, math.prod(row.base_shape)))
        if abs(std - moments.std) > moments.std * (0.05 + 5 * noise) + 1e-12:
            yield Hit(row.name, f"its standard deviation is {std:.4g}, and {moments.std:.4g} in the transfer")


@_check("TI003", "error", "give the optimizer transfer.param_groups(lr=...); a loop that sets rates times lr_scale")
def other_rate(followed: Followed) -> Iterator[Hit]:
    """A learning rate that has another ratio to the others' than in the table, or none, in no group of the optimizer.

    The rate of the base is the one that most parameters agree on, under Muon for Muon and for AdamW. Rates of zero, as
    at the first step of a warm-up, tell nothing.
    """
    for row, group in followed.settings():
        if group is None and followed.optimizers:
            yield Hit(row.name, "no group of the optimizer has it, and it learns (requires_grad)")
    yield from _off(followed, "lr", lambda row: row.factors.lr)


@_check("TI004", "warning", "give the optimizer transfer.param_groups(lr=..., weight_decay=..., eps=...)")
def other_eps_or_decay(followed: Followed) -> Iterator[Hit]:
    """An eps or a weight decay that has another ratio to the others' than in the table.

    One eps for all passes, as a base's that was larger, where all of the table's factors are alike; but not the default
    of torch's optimizers, which nobody has scaled. Parameters without weight decay are as good.
    """
    yield from _off(followed, "eps", lambda row: row.factors.eps)
    yield from _off(followed, "weight_decay", lambda row: row.factors.wd)


@_check("TI005", "error", "make the transfer of the model as it is now")
def other_tie(followed: Followed) -> Iterator[Hit]:
    """A table that embedding and head share, and in the transfer not; or the reverse, as after a load unties them."""
    held = followed.parameters
    owners = {id(held[row.name]): row.name for row in reversed(followed.rows) if row.name in held}
    for row in followed.rows:
        if len({id(held[name]) for name in row.names if name in held}) > 1:
            yield Hit(row.name, f"the transfer has {' and '.join(row.names)} as one, and the model has not")
        elif row.name in held and owners[id(held[row.name])] != row.name:
            yield Hit(row.name, f"it is {owners[id(held[row.name])]!r} as well, and in the transfer it is not")


def _off(followed: Followed, key: str, factor: Callable[[TransferRow], float]) -> Iterator[Hit]:
    """The parameters whose setting is another than the table makes of what most of them agree on."""
    found: dict[str, list[tuple[TransferRow, float]]] = defaultdict(list)
    for row, group in followed.settings():
        if group is not None and group.get(key):
            found[optimizer_of(followed.optimizer, row)].append((row, float(group[key])))
    for name, several in found.items():
        bases = Counter(f"{value / factor(row):.5g}" for row, value in several)
        base = float(bases.most_common(1)[0][0])
        if key == "eps" and all(value == OPTIMIZERS[name].eps for _, value in several):
            base = several[0][1]
        for row, value in several:
            right = base * factor(row)
            if abs(value - right) > 1e-4 * right:
                yield Hit(row.name, f"its {key} is {value:.6g}, {value / right:.4g} times {right:.6g} of the table")


def agreement(target: Followed) -> Findings:
    """The findings of all checks, the worst first."""
    if unknown := [row.name for row in target.rows if row.name not in target.parameters]:
        raise ConfigError(f"the model has no parameter {unknown[0]!r}, which the transfer is for")
    found = [
        Finding(code, hit.severity or one.severity, hit.site, hit.message, hit.remedy or one.remedy)
        for code, one in TRANSFER_CHECKS.items()
        for hit in one.search(target)
    ]
    skipped = () if target.optimizers else tuple((code, "an optimizer") for code in ("TI003", "TI004"))
    return Findings(tuple(sorted(found, key=lambda each: SEVERITIES.index(each.severity))), skipped)
