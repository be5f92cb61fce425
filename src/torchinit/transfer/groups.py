"""Groups: the parameters that an optimizer treats alike, with their learning rate, weight decay and eps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError
from torchinit.model.names import check_globs, glob_matches, normalize
from torchinit.transfer.rows import TransferRow
from torchinit.transfer.table import OPTIMIZERS, at_least_zero


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

    def for_torch(self, model: nn.Module) -> dict[str, Any]:
        """The group as torch's optimizers take it, with the parameters of a model; ConfigError if one is missing."""
        held = {normalize(name): each for name, each in model.named_parameters(remove_duplicate=False)}
        if missing := [name for name in self.names if name not in held]:
            raise ConfigError(f"the model has no parameter {missing[0]!r}, which the transfer is for")
        group = {
            "params": [held[name] for name in self.names], "param_names": list(self.names), "lr": self.lr,
            "weight_decay": self.weight_decay, "lr_scale": self.lr_scale, "optimizer": self.optimizer,
        }  # fmt: skip
        return group if self.eps is None else {**group, "eps": self.eps}


def groups_of(
    rows: Sequence[TransferRow], optimizer: str, *, lr: float, weight_decay: float, eps: float | None,
    no_decay: Sequence[str] = (), adam_lr: float | None = None,
) -> list[Group]:  # fmt: skip
    """The groups of a transfer, like ones as one, in the order of the model; ConfigError where there are none."""
    for name, number in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps), ("adam_lr", adam_lr)):
        if number is not None:
            at_least_zero(name, number)
    check_globs("no_decay", no_decay)
    names = [name for row in rows for name in row.names]
    for glob in no_decay:
        if not any(glob_matches(glob, name) for name in names):
            raise ConfigError(f"no_decay: no parameter fits {glob!r}{did_you_mean(glob, names)}")
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
        base_eps = None if base_eps is None or OPTIMIZERS[name].eps is None else base_eps * factors.eps
        decay = weight_decay * factors.wd if decays else 0.0
        key = (name, rate * factors.lr, decay, base_eps, factors.lr, factors.wd, factors.eps)
        merged.setdefault(key, []).append(row.name)
    return [Group(tuple(names), *key) for key, names in merged.items()]


def optimizer_of(optimizer: str, row: TransferRow) -> str:
    """The optimizer of a parameter: under Muon that of all but the matrices inside of the model is AdamW."""
    return "adamw" if OPTIMIZERS[optimizer].update and not row.matrix else optimizer
