"""Transfer: one object that holds a parametrization of a model against its base: its start, multipliers and rates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, get_args

from torch import nn

from torchinit._text import did_you_mean, fold_numbers, format_table, shape_text
from torchinit.api import sites
from torchinit.errors import ConfigError
from torchinit.model.names import check_globs
from torchinit.recipes import decode_recipe, recipe_to_data
from torchinit.rules import Recipe
from torchinit.serialization.json import unique_json
from torchinit.transfer.base import Base, Start, head_sizes
from torchinit.transfer.groups import Group, groups_of
from torchinit.transfer.growth import Grown, growth_among, matched
from torchinit.transfer.multipliers import (
    Applied,
    Multiplier,
    apply_all,
    attentions,
    branch_multipliers,
    branches,
    readouts,
    verify_all,
)
from torchinit.transfer.start import rules_of
from torchinit.transfer.table import (
    PARAMETRIZATIONS,
    Decay,
    Factors,
    Form,
    ParameterRole,
    Parametrization,
    factors_of,
    optimizer_named,
)

_FORMAT: Final = "torchinit-transfer-1"


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A parameter against the base model: what kind it is, and the factors of its std, multiplier, rate, eps and decay.

    ``names`` are all that it has, ``growth`` is that of (fan-in, fan-out, blocks), ``depth`` tells nothing outside of
    blocks. ``notes`` say what was assumed.
    """

    name: str
    kind: ParameterRole
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    growth: tuple[float, float, float]
    factors: Factors
    names: tuple[str, ...] = ()
    frozen: bool = False
    matrix: bool = False
    notes: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """The cells of its line in the table."""
        sizes = f"{shape_text(self.base_shape)} -> {shape_text(self.shape)}"
        return [self.kind, sizes, *(f"{factor:.6g}" for factor in self.factors)]


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
        _check_choices(
            parametrization=(parametrization, PARAMETRIZATIONS), form=(form, get_args(Form)), wd=(wd, get_args(Decay))
        )
        for argument, globs in (
            ("fixed", [each.partition(":")[0] for each in fixed]),
            ("kinds", kinds or {}),
            ("branches", branches),
        ):
            check_globs(argument, globs)
        _check_choices(**{f"kinds[{glob!r}]": (kind, get_args(ParameterRole)) for glob, kind in (kinds or {}).items()})
        table = PARAMETRIZATIONS[parametrization]
        self.model: nn.Module | None = model
        self.parametrization: str = parametrization
        self.form: Form = form
        self.optimizer: str = optimizer_named(optimizer)[0]
        self.alpha: float = table.depth if table.depth is not None and parametrization != "completep" else float(alpha)
        self.wd: Decay = wd
        self.zero_readout: bool = zero_readout
        known = [site for site in sites(model) if site.kind == "parameter"]
        found = _base(model, base, base_width, start)
        pairs = matched(known, found.sites)
        grown = growth_among(pairs, fixed, kinds)
        self.rows, self.multipliers = self._resolve(
            model, grown, found, {a.name: b.name for a, b in pairs}, tuple(branches)
        )
        self._rules: Recipe | None = None
        self._grown, self._base = grown, found

    def _resolve(
        self, model: nn.Module, grown: list[Grown], base: Base, names: Mapping[str, str], globs: tuple[str, ...]
    ) -> tuple[tuple[TransferRow, ...], tuple[Multiplier, ...]]:
        table, (_, rule) = self.table, optimizer_named(self.optimizer)
        ends = branches(grown, globs) if table.depth is not None else []
        deep = [each for each in grown if each.growth.depth != 1]
        if table.depth is not None and deep and not any(each.growth.depth != 1 for each in ends):
            raise ConfigError(
                f"{deep[0].site.name!r} stands among {deep[0].growth.depth:g} times as many blocks, and nobody tells"
                " which layers end their residual branches; name them, as in branches=['blocks.*.out']"
            )
        end_names = {each.site.name for each in ends}
        factors = {
            each.site.name: factors_of(
                each.kind, each.growth, table, rule, alpha=self.alpha, wd=self.wd, is_branch=each.site.name in end_names
            )
            for each in grown
        }
        if self.zero_readout:
            _check_zero(grown)
        put: dict[Multiplier, None] = {}
        if table.has_rates:
            at_branch = branch_multipliers(model, ends, self.alpha)
            readout = readouts(
                model, grown, lambda each: (each.growth.r_o if each.kind == "tied" else each.growth.r_i) ** -1
            )
            at_query = attentions(model, grown, head_sizes(model), base.heads, names)
            for multiplier, name in (*readout, *at_query, *((one, name) for name, one in at_branch.items())):
                moved = self._folded(multiplier, name, factors, grown) if self.form == "folded" else None
                if moved is None:
                    put[multiplier] = None
                else:
                    factors.update({key: each.moved(1.0, rule) for key, each in moved.items()})
        rows = tuple(
            TransferRow(
                each.site.name, each.kind, each.site.shape, each.base.shape,
                (each.growth.r_i, each.growth.r_o, each.growth.depth), factors[each.site.name],
                tuple(view.name for view in each.site.views), each.site.frozen, len(each.site.shape) > 1, each.notes,
            )
            for each in grown
        )  # fmt: skip
        return rows, tuple(put)

    def _folded(
        self, multiplier: Multiplier, name: str, factors: Mapping[str, Factors], grown: Sequence[Grown]
    ) -> dict[str, Factors] | None:
        """The parameters that a multiplier can be folded into, with it; None where it stays in the forward pass."""
        kinds = {each.site.name: each.kind for each in grown}
        if kinds[name] == "tied":
            raise ConfigError(
                f"the head's multiplier cannot be folded into {name!r}, which is the embedding as well:"
                " take form='table8'"
            )
        if multiplier.purpose == "attention":
            if multiplier.place in ("rows", "key") or (multiplier.place == "config" and "attn.qkv" in name):
                return None
            owner = name.rpartition(".")[0]
            both = [each.site.name for each in grown if each.site.owner_name == owner]
            return {key: factors[key]._replace(mult=multiplier.factor) for key in both}
        return {name: factors[name]}

    @property
    def table(self) -> Parametrization:
        """The table of the parametrization."""
        return PARAMETRIZATIONS[self.parametrization]

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
        return self._rules if self._rules is not None else rules_of(self._grown, self._base, self)

    # --- in the model and in its optimizer ---------------------------------------------------------------------------

    def apply(self, model: nn.Module | None = None) -> Applied:
        """Put the multipliers into the model (that of the constructor), and return what takes them out again.

        A fused projection of queries, keys and values is taken to begin with the queries. Raises RunError where they
        are in it already.
        """
        return apply_all(self._model(model), self.multipliers)

    def verify(self, model: nn.Module | None = None) -> None:
        """Raise ReportError where a multiplier is not in the model, as after it was loaded into a new one."""
        verify_all(self._model(model), self.multipliers)

    def param_groups(
        self, model: nn.Module | None = None, *, lr: float, weight_decay: float = 0.0, eps: float | None = None,
        no_decay: Sequence[str] = (), adam_lr: float | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The groups of parameters for a torch optimizer, from the base's learning rate, weight decay and eps.

        Each has ``params``, ``param_names``, ``lr``, ``weight_decay``, for Adam's kind ``eps``, and ``lr_scale``, by
        which a loop that sets one rate for all has to multiply. Like groups are one, the order is the model's, a tied
        parameter comes once and a frozen one not at all; globs of ``no_decay`` have none. Under Muon ``optimizer`` says
        which groups are Adam's (``adam_lr``): all but the hidden matrices.

        Raises ConfigError where every parameter is frozen, and for weight decay under Adam, whose L2 term no rule
        transfers: take AdamW.
        """
        groups = groups_of(self, lr=lr, weight_decay=weight_decay, eps=eps, no_decay=no_decay, adam_lr=adam_lr)
        return [group.for_torch(self._model(model)) for group in groups]

    def groups(self, *, lr: float = 1.0, weight_decay: float = 0.0, eps: float | None = None) -> list[Group]:
        """The same groups as plain data, by names, for trainers that make their own."""
        return groups_of(self, lr=lr, weight_decay=weight_decay, eps=eps)

    def _model(self, model: nn.Module | None) -> nn.Module:
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
        depth = f", α = {self.alpha:g}" if self.table.depth is not None else ""
        title = f"{self.parametrization} ({self.form}{depth}) for {self.optimizer}; {self.table.source}"
        notes = {note: row.name for row in reversed(self.rows) for note in row.notes}
        told = [str(each) for each in self.multipliers] + [f"{name}: {note}" for note, name in notes.items()]
        head = ["parameter", "kind", "base -> here", "std x", "mult", "lr x", "eps x", "wd x"]
        return "\n".join([title, format_table(head, lines), *told])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, the recipe included where it is known."""
        settings = ("parametrization", "form", "optimizer", "alpha", "wd", "zero_readout")
        try:
            recipe = recipe_to_data(self.recipe)
        except ConfigError:
            recipe = None
        return {
            "format": _FORMAT,
            **{name: getattr(self, name) for name in settings},
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
            data = unique_json(text.encode())
            if data.get("format") != _FORMAT:
                raise ValueError(f"its format is {data.get('format')!r}, not {_FORMAT!r}")
            made = cls.__new__(cls)
            for name in ("parametrization", "form", "optimizer", "alpha", "wd", "zero_readout"):
                setattr(made, name, data[name])
            made.model = model
            made.rows = tuple(_row(each) for each in data["rows"])
            made.multipliers = tuple(Multiplier(**each) for each in data["multipliers"])
            made._rules = decode_recipe(data["recipe"]) if data["recipe"] else None
            made._grown, made._base = [], Base.of(nn.Module())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is not a transfer: {error}") from None
        return made


def _row(data: Mapping[str, Any]) -> TransferRow:
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
    return TransferRow(**{**values, "factors": Factors(**data["factors"])})


def _check_choices(**choices: tuple[object, Any]) -> None:
    for argument, (value, known) in choices.items():
        if value not in known:
            near = did_you_mean(value, known) if isinstance(value, str) else ""
            raise ConfigError(f"{argument} is one of {', '.join(known)}, but got {value!r}{near}")


def _check_zero(grown: Sequence[Grown]) -> None:
    tied = next((each for each in grown if each.kind == "tied"), None)
    if tied is not None:
        raise ConfigError(f"the head cannot start at zero, since {tied.site.name!r} is the embedding as well")


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
