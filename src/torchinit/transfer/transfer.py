"""Transfer: one object that holds a parametrization of a model against its base: its start, multipliers and rates."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property, partial
from typing import Any, Final, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from torchinit._text import did_you_mean, fold_numbers, format_table
from torchinit.api import plan, sites
from torchinit.errors import ConfigError, PlanError, ReportError
from torchinit.linting import Findings
from torchinit.model.names import check_globs
from torchinit.recipes import decode_recipe, recipe_to_data
from torchinit.rules import Recipe
from torchinit.transfer.base import Base, Start, read_format
from torchinit.transfer.growth import growth_among, matched
from torchinit.transfer.multipliers import Applied, Multiplier, apply_all, missing_from
from torchinit.transfer.optimizers import Followed, Group, Megatron, agreement, groups_of, init_method, parameters_of
from torchinit.transfer.rows import TransferRow, resolved, rules_of
from torchinit.transfer.table import Decay, Factors, Form, ParameterRole, Settings, check_choice

_FORMAT: Final = "torchinit-transfer-1"


class Transfer:
    r"""The parametrization of a model whose hyperparameters were found on a smaller one, its base.

    .. math:: \text{std} = f_\text{std} \cdot \text{std}_0, \quad \text{lr} = f_\text{lr} \cdot \text{lr}_0, \ldots

    Each factor goes with how much the parameter's axes grew, by the table of ``parametrization``: ``"mup"`` (width),
    ``"depth_mup"`` and ``"completep"`` (width and depth; α of the second by ``alpha``), ``"standard"``. At the base all
    are 1. ``base`` is the smaller model (meta will do), a file of ``Base.save``, or nothing beside ``base_width``,
    which shrinks the model itself. ``start`` is what starts the base: a recipe, or code that is called with it; without
    it the values that the base has.

    ``form="table8"`` puts the multipliers of readout, attention and branches into config fields or hooks by
    :meth:`apply`; ``"folded"`` puts them into the weights and their rates, for models whose code cannot be touched.
    ``optimizer`` is adam, adamw, lion, sgd, muon, or a class of torch; ``wd`` the rule of weight decay: ``"product"``
    holds lr · wd. ``fixed`` are globs of parameters, perhaps with an axis (``"head.weight:0"``), that are no widths,
    ``kinds`` tells the kind of those that no layer describes, ``branches`` which layers end a residual branch.
    ``zero_readout`` starts the head at zero.

    Raises ConfigError for a base of another structure, with the first difference, and for what no table is for.

    >>> def net(width):
    ...     sizes = [(8, width), (width, width), (width, 4)]
    ...     return nn.Sequential(*[each for a, b in sizes for each in (nn.Linear(a, b), nn.ReLU())][:-1])
    >>> transfer = Transfer(net(256), net(64), optimizer="adamw")
    >>> transfer["2.weight"].kind, transfer["2.weight"].factors
    ('hidden', Factors(std=0.5, mult=1.0, lr=0.25, eps=0.25, wd=4.0))
    >>> print(*transfer.multipliers)
    readout x 0.25: input of 4
    >>> [(group["lr"], len(group["params"])) for group in transfer.param_groups(lr=0.004)][:2]
    [(0.004, 4), (0.001, 1)]
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module | Base | str | os.PathLike[str] | None = None,
        *,
        base_width: int | None = None,
        parametrization: str = "mup",
        form: Form = "table8",
        optimizer: object = "adamw",
        alpha: float = 1.0,
        wd: Decay = "product",
        fixed: Sequence[str] = (),
        zero_readout: bool = False,
        start: Start | None = None,
        kinds: Mapping[str, ParameterRole] | None = None,
        branches: Sequence[str] = (),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Transfer takes a torch.nn.Module, but got {type(model).__name__}")
        for argument, globs in (("fixed", fixed), ("kinds", kinds or {}), ("branches", branches)):
            check_globs(argument, globs)
        for glob, kind in (kinds or {}).items():
            check_choice(f"kinds[{glob!r}]", kind, get_args(ParameterRole))
        self.model: nn.Module | None = model
        self.settings: Settings = Settings.of(parametrization, form, optimizer, alpha, wd, zero_readout)
        found = _base(model, base, base_width, start)
        pairs = matched([site for site in sites(model) if site.kind == "parameter"], found.sites)
        grown = growth_among(pairs, fixed, kinds)
        self.rows: tuple[TransferRow, ...]
        self.multipliers: tuple[Multiplier, ...]
        self.rows, self.multipliers = resolved(self.settings, model, grown, found, branches)
        self._start: Callable[[], Recipe] = partial(rules_of, grown, found, self.rows, self.settings)

    def __getitem__(self, name: str) -> TransferRow:
        """The row of a parameter, by any of its names."""
        found = {each: row for row in self.rows for each in row.names}
        if name not in found:
            raise KeyError(f"no parameter is called {name!r}{did_you_mean(name, found)}")
        return found[name]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_identity(self) -> bool:
        """Whether nothing differs from the base model."""
        return not self.multipliers and all(row.factors == Factors() for row in self.rows)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the model's start: what starts the base, each std times its factor.

        Raises ConfigError where nobody knows what starts the base.
        """
        return self._start()

    # --- in the model and in its optimizer ---------------------------------------------------------------------------

    def apply(self, model: nn.Module | None = None) -> Applied:
        """Put the multipliers into the model (that of the constructor), and return what takes them out again.

        A fused projection of queries, keys and values is taken to begin with the queries. Raises RunError where they
        are in it already.
        """
        return apply_all(self.target(model), self.multipliers)

    def verify(self, model: nn.Module | None = None) -> None:
        """Raise ReportError where a multiplier is not in the model, as after it was loaded into a new one."""
        if lost := missing_from(self.target(model), self.multipliers):
            raise ReportError("multipliers are not in the model: call apply(model)", map(str, lost))

    def param_groups(
        self, model: nn.Module | None = None, *, lr: float, weight_decay: float = 0.0, eps: float | None = None,
        no_decay: Sequence[str] = (), adam_lr: float | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The groups of parameters for a torch optimizer, from the base's learning rate, weight decay and eps.

        Each has ``params``, ``param_names``, ``lr``, ``weight_decay``, for Adam's kind ``eps`` and the ``base_eps``
        that it is made of, and ``lr_scale``, by which a loop that sets one rate for all has to multiply. Like groups
        are one, the order is the model's, a tied parameter comes once and a frozen one not at all; globs of
        ``no_decay`` have none. Under Muon ``optimizer`` says which groups are Adam's (``adam_lr``): all but the hidden
        matrices.

        Raises ConfigError where every parameter is frozen, and for weight decay under Adam, whose L2 term no rule
        transfers: take AdamW.
        """
        groups = self.groups(lr=lr, weight_decay=weight_decay, eps=eps, no_decay=no_decay, adam_lr=adam_lr)
        return [group.for_torch(self.target(model)) for group in groups]

    def groups(
        self, *, lr: float = 1.0, weight_decay: float = 0.0, eps: float | None = None, no_decay: Sequence[str] = (),
        adam_lr: float | None = None,
    ) -> list[Group]:  # fmt: skip
        """The same groups as plain data, by names."""
        return groups_of(self.rows, self.settings.optimizer, lr, weight_decay, eps, no_decay, adam_lr)

    def torchtitan(self, **settings: Any) -> list[dict[str, Any]]:
        """The groups as arguments of torchtitan's ``ParamGroupConfig``; ``settings`` are those of :meth:`groups`."""
        return [group.for_torchtitan() for group in self.groups(**settings)]

    def megatron(self, *, min_lr: float = 0.0, **settings: Any) -> Megatron:
        """The groups as Megatron-style code takes them; ``settings`` are those of :meth:`groups`."""
        return Megatron(tuple(self.groups(**settings)), min_lr)

    def init_method(self, glob: str) -> Callable[[Tensor], Tensor]:
        """A function that draws a weight in place, for Megatron's ``config.init_method``, from torch's generator.

        ``glob`` names the parameters that it is for; ConfigError where their start is not one normal distribution.
        """
        planned = plan(self.target(), self.recipe)
        return init_method(glob, {step.site.name: step.fill for step in planned.steps})

    def lint(self, model: nn.Module | None = None, *optimizers: Optimizer) -> Findings:
        """What of a model, and of its optimizers, contradicts this transfer: multipliers, starts, rates, eps and ties.

        Rates are those of the moment: ask again after a scheduler was made, and after some of its steps.
        """
        model = self.target(model)
        try:
            start = plan(model, self.recipe)
        except (ConfigError, PlanError):  # nobody knows it, or it is not for this model
            start = None
        held, optimizer = parameters_of(model, [row.name for row in self.rows]), self.settings.optimizer
        return agreement(Followed(model, held, optimizers, self.rows, self.multipliers, optimizer, start))

    def target(self, model: nn.Module | None = None) -> nn.Module:
        """The model that is meant: the given one, else that of the constructor; ConfigError where there is neither."""
        model = model if model is not None else self.model
        if model is None:
            raise ConfigError("a transfer that was read from JSON has no model of its own: give one")
        return model

    # --- as text and data --------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        folded: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            folded.setdefault((fold_numbers(row.name), *row.cells()), []).append(row.name)
        lines = [[name if len(names) > 1 else names[0], *cells] for (name, *cells), names in folded.items()]
        notes = {note: row.name for row in reversed(self.rows) for note in row.notes}
        told = [str(each) for each in self.multipliers] + [f"{name}: {note}" for note, name in notes.items()]
        if any(ratio < 1 for row in self.rows for ratio in row.growth):
            told.append("the base is larger than this model: what was found there is scaled down")
        head = ["parameter", "kind", "base -> here", "std x", "mult", "lr x", "eps x", "wd x"]
        return "\n".join([str(self.settings), format_table(head, lines), *told])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, the recipe included where it is known."""
        try:
            recipe = recipe_to_data(self.recipe)
        except ConfigError:
            recipe = None
        return {
            "format": _FORMAT,
            **asdict(self.settings),
            "rows": [{**asdict(row), "factors": row.factors._asdict()} for row in self.rows],
            "multipliers": [asdict(each) for each in self.multipliers],
            "recipe": recipe,
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The same as JSON, which :meth:`from_json` reads back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, model: nn.Module | None = None) -> Transfer:
        """The transfer that :meth:`to_json` wrote, for a model, perhaps; ConfigError for any other text."""
        try:
            data = read_format(text.encode(), _FORMAT)
            made = cls.__new__(cls)
            made.model = model
            made.settings = Settings.read({each.name: data[each.name] for each in fields(Settings)})
            made.rows = tuple(TransferRow.of(each) for each in data["rows"])
            made.multipliers = tuple(Multiplier(**each) for each in data["multipliers"])
            made._start = partial(_known, decode_recipe(data["recipe"]) if data["recipe"] else None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is not a transfer: {error}") from None
        return made


def _known(recipe: Recipe | None) -> Recipe:
    if recipe is None:
        raise ConfigError("the transfer was written where nobody knew what starts the base, so it has no recipe")
    return recipe


def _base(model: nn.Module, base: Any, base_width: int | None, start: Start | None) -> Base:
    """The base that the arguments stand for; the model itself where nothing else is given."""
    if base is not None and base_width is not None:
        raise ConfigError("base= and base_width= are two ways to say the same: give one of them")
    if base_width is not None:
        return Base.of_width(model, base_width, start)
    if isinstance(base, (str, os.PathLike)):
        return Base.load(base)
    if isinstance(base, Base):
        return base
    if base is not None and not isinstance(base, nn.Module):
        raise TypeError(f"base is a model, a file of Base.save or a Base, but got {type(base).__name__}")
    return Base.of(model if base is None else base, start)
