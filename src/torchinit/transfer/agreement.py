"""Agreement: what of a model and of its optimizer contradicts the transfer that they should follow, as findings."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from torchinit.linting.registry import Check, Findings, Hit, check, sorted_findings
from torchinit.model.dtensor import whole_values
from torchinit.plans.plan import Plan
from torchinit.transfer.groups import optimizer_of
from torchinit.transfer.multipliers import Multiplier, missing_from
from torchinit.transfer.rows import TransferRow
from torchinit.transfer.table import OPTIMIZERS


@dataclass(frozen=True)
class Followed:
    """A model with its optimizers, and what it should follow: rows, multipliers, an optimizer's name, a plan.

    ``parameters`` are those of the model by all their names, that of each row among them.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizers: Sequence[Optimizer]
    rows: Sequence[TransferRow]
    multipliers: Sequence[Multiplier]
    optimizer: str
    start: Plan | None

    def settings(self) -> Iterator[tuple[TransferRow, Mapping[str, Any] | None]]:
        """Each parameter that learns, with the group of the optimizer that it is in."""
        groups = {id(each): group for one in self.optimizers for group in one.param_groups for each in group["params"]}
        for row in self.rows:
            parameter = self.parameters[row.name]
            if parameter.requires_grad:
                yield row, groups.get(id(parameter))


TRANSFER_CHECKS: Final[dict[str, Check]] = {}
"""The checks of a model against its transfer, by their codes."""

_GROUPS_OF_RATES: Final = "give the optimizer transfer.param_groups(lr=...); a loop that sets rates times lr_scale"
_GROUPS: Final = "give the optimizer transfer.param_groups(lr=..., weight_decay=..., eps=...)"


@check("TI001", "error", "sites", "call transfer.apply(model), also after the model was loaded anew", TRANSFER_CHECKS)
def missing_multiplier(followed: Followed) -> Iterator[Hit]:
    """A multiplier that the transfer has, and the forward pass has not: that of the readout, of attention, of a branch.

    Attention that still divides by the root of the head size is one of them.
    """
    for each in missing_from(followed.model, followed.multipliers):
        yield Hit(each.module, f"the {each.purpose} is not multiplied by {each.factor:.6g}: {each}")


@check("TI002", "warning", "sites", "start with transfer.recipe", TRANSFER_CHECKS)
def other_std(followed: Followed) -> Iterator[Hit]:
    """A standard deviation other than the transfer's, as that of a bias which shrinks with the fan-in of its layer.

    Decided from 5 % and five standard errors on, those of the base's values included. Only before training.
    """
    fills = {step.site.name: step.fill for step in followed.start.steps} if followed.start else {}
    for row in followed.rows:
        parameter = followed.parameters[row.name]
        if parameter.is_meta or row.name not in fills:
            continue
        moments = fills[row.name].moments(row.shape)
        values = whole_values(parameter.detach()).double()
        if moments is None or moments.std is None or values.numel() < 2 or not values.is_floating_point():
            continue
        std, noise = float(values.std()), math.sqrt(0.5 / values.numel() + 0.5 / max(1, math.prod(row.base_shape)))
        if abs(std - moments.std) > moments.std * (0.05 + 5 * noise) + 1e-12:
            yield Hit(row.name, f"its standard deviation is {std:.4g}, and {moments.std:.4g} in the transfer")


@check("TI003", "error", "sites", _GROUPS_OF_RATES, TRANSFER_CHECKS)
def other_rate(followed: Followed) -> Iterator[Hit]:
    """A learning rate that has another ratio to the others' than in the table, or none, in no group of the optimizer.

    The rate of the base is the one that most parameters agree on, under Muon for Muon and for AdamW. Rates of zero, as
    at the first step of a warm-up, tell nothing.
    """
    for row, group in followed.settings():
        if group is None and followed.optimizers:
            yield Hit(row.name, "no group of the optimizer has it, and it learns (requires_grad)")
    yield from _off(followed, "lr", lambda row: row.factors.lr)


@check("TI004", "warning", "sites", _GROUPS, TRANSFER_CHECKS)
def other_eps_or_decay(followed: Followed) -> Iterator[Hit]:
    """An eps or a weight decay that has another ratio to the others' than in the table.

    One eps for all passes, as a base's that was larger, where all of the table's factors are alike; but not the default
    of torch's optimizers, which nobody has scaled. Parameters without weight decay are as good.
    """
    yield from _off(followed, "eps", lambda row: row.factors.eps)
    yield from _off(followed, "weight_decay", lambda row: row.factors.wd)


@check("TI005", "error", "sites", "make the transfer of the model as it is now", TRANSFER_CHECKS)
def other_tie(followed: Followed) -> Iterator[Hit]:
    """A table that embedding and head share, and in the transfer not; or the reverse, as after a load unties them."""
    held = followed.parameters
    owners = {id(held[row.name]): row.name for row in reversed(followed.rows)}
    for row in followed.rows:
        if len({id(held[name]) for name in row.names if name in held}) > 1:
            yield Hit(row.name, f"the transfer has {' and '.join(row.names)} as one, and the model has not")
        elif owners[id(held[row.name])] != row.name:
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
    found = [one.finding(hit) for one in TRANSFER_CHECKS.values() for hit in one.search(target)]
    skipped = () if target.optimizers else (("TI003", "an optimizer"), ("TI004", "an optimizer"))
    return sorted_findings(found, skipped)
