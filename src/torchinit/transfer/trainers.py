"""Trainers: the groups of a transfer as torchtitan and Megatron take them, which make their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from torchinit.errors import ConfigError
from torchinit.initializers import Normal
from torchinit.initializers.base import Fill
from torchinit.model.names import glob_matches, normalize
from torchinit.transfer.groups import Group

_CLASSES: Final = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lion": "Lion"}


def torchtitan_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The arguments of torchtitan's ``ParamGroupConfig``, one for each group: a pattern, an optimizer and its settings.

    >>> torchtitan_groups([Group(("norm", "head"), "adamw", 1e-3, 0.4, 2.5e-9, 0.25, 4.0, 0.25)])[0]["pattern"]
    '^(norm|head)$'
    """
    return [
        {
            "pattern": f"^({'|'.join(map(re.escape, each.names))})$",
            "optimizer_name": _CLASSES.get(each.optimizer, "Muon"),
            "optimizer_kwargs": {
                "lr": each.lr,
                "weight_decay": each.weight_decay,
                **({} if each.eps is None else {"eps": each.eps}),
            },
        }
        for each in groups
    ]


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
                **({} if each.eps is None else {"eps": each.eps}),
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
        whole = normalize(name)
        for each in self.groups:
            if whole in each.names:
                return each
        raise ConfigError(f"the transfer has no group with {name!r}: it is frozen, or another model's")


def init_method(glob: str, fills: Mapping[str, Fill]) -> Callable[[Tensor], Tensor]:
    """The normal distribution of the parameters that a glob fits, as a function; ConfigError where it is not one."""
    found = {fill for name, fill in fills.items() if glob_matches(glob, name)}
    if len(found) != 1 or not isinstance(fill := next(iter(found)), Normal):
        what = ", ".join(sorted(map(str, found))) or "nothing"
        raise ConfigError(f"an init_method is one normal distribution, but {glob!r} is {what}")
    return partial(nn.init.normal_, mean=float(fill.mean), std=float(fill.std))
