"""Optimizers: the groups of parameters that one treats alike, and whether those of a program agree with a transfer."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from torchinit.errors import ConfigError
from torchinit.initializers import Normal
from torchinit.initializers.base import Fill
from torchinit.linting.registry import Check, Findings, Hit, check, sorted_findings
from torchinit.model.dtensor import whole_values
from torchinit.model.names import check_globs, glob_matches, normalize
from torchinit.plans.plan import Plan
from torchinit.transfer.growth import check_fit
from torchinit.transfer.multipliers import Multiplier, missing_from
from torchinit.transfer.rows import TransferRow
from torchinit.transfer.table import OPTIMIZERS, at_least_zero

_CLASSES: Final = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lion": "Lion"}


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that learn alike: their names, rate, decay and eps, and the factors of rate, decay and eps.

    >>> Group(("a.weight",), "adamw", 1e-3, 0.4, 2.5e-9, 0.25, 4.0, 0.25).lr_scale
    0.25
    """

    names: tuple[str, ...]
    optimizer: str
    lr: float
    weight_decay: float
    eps: float | None
    lr_scale: float
    wd_scale: float
    eps_scale: float

    @property
    def _eps(self) -> dict[str, float]:
        return {} if self.eps is None else {"eps": self.eps}

    @property
    def _base_eps(self) -> dict[str, float]:
        return {} if self.eps is None else {"base_eps": self.eps / self.eps_scale}

    def for_torch(self, model: nn.Module) -> dict[str, Any]:
        """The group as torch's optimizers take it, with the parameters of a model; ConfigError if one is missing."""
        held = parameters_of(model, self.names)
        return {
            "params": [held[name] for name in self.names], "param_names": list(self.names), "lr": self.lr,
            "weight_decay": self.weight_decay, "lr_scale": self.lr_scale, "optimizer": self.optimizer, **self._eps,
            **self._base_eps,
        }  # fmt: skip

    def for_torchtitan(self) -> dict[str, Any]:
        """The arguments of torchtitan's ``ParamGroupConfig``: a pattern, an optimizer and its settings."""
        return {
            "pattern": f"^({'|'.join(map(re.escape, self.names))})$",
            "optimizer_name": _CLASSES.get(self.optimizer, "Muon"),
            "optimizer_kwargs": {"lr": self.lr, "weight_decay": self.weight_decay, **self._eps},
        }


def parameters_of(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of a model by all their names; ConfigError unless those of a transfer are among them."""
    held = {normalize(name): each for name, each in model.named_parameters(remove_duplicate=False)}
    if missing := [name for name in names if name not in held]:
        raise ConfigError(f"the model has no parameter {missing[0]!r}, which the transfer is for")
    return held


def groups_of(
    rows: Sequence[TransferRow], optimizer: str, lr: float, weight_decay: float, eps: float | None,
    no_decay: Sequence[str], adam_lr: float | None,
) -> list[Group]:  # fmt: skip
    """The groups of a transfer, like ones as one, in the order of the model; ConfigError where there are none."""
    for name, number in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps), ("adam_lr", adam_lr)):
        if number is not None:
            at_least_zero(name, number)
    check_globs("no_decay", no_decay)
    check_fit("no_decay: no parameter fits", no_decay, [name for row in rows for name in row.names])
    rule = OPTIMIZERS[optimizer]
    if rule.coupled and not rule.sgd and weight_decay and any(row.factors.wd != 1 for row in rows):
        raise ConfigError("Adam adds weight decay to the gradient, which no rule transfers: take optimizer='adamw'")
    learning = [row for row in rows if not row.frozen]
    if not learning:
        raise ConfigError(f"none of the {len(rows)} parameters learns (requires_grad is false), so there are no groups")
    merged: dict[tuple[Any, ...], list[str]] = {}
    for row in learning:
        name = optimizer_of(optimizer, row)
        is_muon = name.startswith("muon")
        rate = lr if not rule.update or is_muon or adam_lr is None else adam_lr
        base_eps = OPTIMIZERS[name].eps if eps is None or is_muon else eps
        decays = not any(glob_matches(glob, each) for glob in no_decay for each in row.names)
        factors = row.factors
        own_eps = None if base_eps is None or OPTIMIZERS[name].eps is None else base_eps * factors.eps
        decay = weight_decay * factors.wd if decays else 0.0
        # All that a Group has but its names, in the order of its fields: what is the same in all of it is one group.
        key = (name, rate * factors.lr, decay, own_eps, factors.lr, factors.wd, factors.eps)
        merged.setdefault(key, []).append(row.name)
    return [Group(tuple(names), *key) for key, names in merged.items()]


def optimizer_of(optimizer: str, row: TransferRow) -> str:
    """The optimizer of a parameter: under Muon that of all but the matrices inside of the model is AdamW."""
    return "adamw" if OPTIMIZERS[optimizer].update and not row.matrix else optimizer


@dataclass(frozen=True)
class Megatron:
    """What Megatron-style code is called with: overrides of its groups, and functions that it asks.

    ``overrides`` has for each group its names and ``max_lr``, ``min_lr``, ``eps`` and ``wd_mult``, the fields of
    ``ParamGroupOverride``: a floor of the rate is scaled with the rate. Older code is given :meth:`scale_lr_cond` with
    :attr:`lr_mult`, and :meth:`no_weight_decay_cond`.

    >>> megatron = Megatron((Group(("up.weight",), "adamw", 1e-3, 0.4, 2.5e-9, 0.25, 4.0, 0.25),), min_lr=1e-5)
    >>> megatron.scale_lr_cond("up.weight"), megatron.lr_mult, megatron.overrides[0]["min_lr"]
    (True, 0.25, 2.5e-06)
    """

    groups: tuple[Group, ...]
    min_lr: float = 0.0

    @property
    def overrides(self) -> list[dict[str, Any]]:
        """The overrides of the groups, each with the names that it is for."""
        return [
            {
                "name": each.names,
                "max_lr": each.lr,
                "min_lr": self.min_lr * each.lr_scale,
                "wd_mult": each.wd_scale if each.weight_decay else 0.0,
                **each._eps,
            }
            for each in self.groups
        ]

    @property
    def lr_mult(self) -> float:
        """The factor of the rates that are not the base's; ConfigError where there are several."""
        scales = sorted({each.lr_scale for each in self.groups} - {1.0})
        if len(scales) > 1:
            raise ConfigError(f"one lr_mult cannot stand for the factors {scales}: take overrides")
        return scales[0] if scales else 1.0

    def scale_lr_cond(self, name: str, parameter: object = None) -> bool:
        """Whether the rate of a parameter is times :attr:`lr_mult`."""
        return self._group(name).lr_scale != 1

    def no_weight_decay_cond(self, name: str, parameter: object = None) -> bool:
        """Whether a parameter has no weight decay."""
        return not self._group(name).weight_decay

    def _group(self, name: str) -> Group:
        found = next((each for each in self.groups if normalize(name) in each.names), None)
        if found is None:
            raise ConfigError(f"the transfer has no group with {name!r}: it is frozen, or another model's")
        return found


def init_method(glob: str, fills: Mapping[str, Fill]) -> Callable[[Tensor], Tensor]:
    """The normal distribution of the parameters that a glob fits, as a function; ConfigError where it is not one."""
    found = {fill for name, fill in fills.items() if glob_matches(glob, name)}
    if len(found) != 1 or not isinstance(fill := next(iter(found)), Normal):
        what = ", ".join(sorted(map(str, found))) or "nothing"
        raise ConfigError(f"an init_method is one normal distribution, but {glob!r} is {what}")
    return partial(nn.init.normal_, mean=float(fill.mean), std=float(fill.std))


# --- agreement -------------------------------------------------------------------------------------------------------


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
        # The deviation of n normal numbers is off by 1 / sqrt(2 n) of itself. That of the base was measured, too, as a
        # rule, on fewer numbers.
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
    of torch's optimizers, which nobody has scaled, unless it was made of a base's that was larger. Where the factors
    differ one eps for all is a base's that nobody has scaled. Parameters without weight decay are as good.
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
    made = set[str]()
    for row, group in followed.settings():
        if group is not None and group.get(key):
            found[optimizer_of(followed.optimizer, row)].append((row, float(group[key])))
            if math.isclose(group.get("base_eps", 0.0) * factor(row), group[key], rel_tol=1e-4):
                made.add(row.name)
    for name, several in found.items():
        # A schedule moves all rates at once, so no rate is wrong by itself, only the ratio of two. Each parameter votes
        # for the setting of the base that its own stands for, to five digits, and the most votes win. So a single group
        # that was forgotten stands out, whatever its factor. It can fail where most of them are wrong in the same way:
        # then those that are right are reported. A parameter has one vote, however large it is.
        bases = Counter(f"{value / factor(row):.5g}" for row, value in several)
        base = float(bases.most_common(1)[0][0])
        # One eps for all is right where all factors are alike, since a user may have scaled it. torch's default was
        # nobody's choice: it is the base's own eps, and every parameter with a factor should have another.
        is_one = len({value for _, value in several}) == 1 and not all(row.name in made for row, _ in several)
        is_default = several[0][1] == OPTIMIZERS[name].eps
        if key == "eps" and is_one and (is_default or len({factor(row) for row, _ in several}) > 1):
            base = several[0][1]  # which nobody has scaled
        for row, value in several:
            right = base * factor(row)
            if abs(value - right) > 1e-4 * right:
                yield Hit(row.name, f"its {key} is {value:.6g}, {value / right:.4g} times {right:.6g} of the table")


def agreement(target: Followed) -> Findings:
    """The findings of all checks, the worst first."""
    found = [one.finding(hit) for one in TRANSFER_CHECKS.values() for hit in one.search(target)]
    skipped = () if target.optimizers else (("TI003", "an optimizer"), ("TI004", "an optimizer"))
    return sorted_findings(found, skipped)
