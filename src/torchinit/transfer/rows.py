"""Rows: the table's factors of each parameter of a model, the multipliers that stay, and the recipe of its start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import nn

from torchinit._text import fold_numbers, shape_text
from torchinit.errors import ConfigError
from torchinit.initializers import Constant
from torchinit.initializers.base import Blockwise, Fill
from torchinit.initializers.composed import Padded
from torchinit.model.sites import Site
from torchinit.rules import Name, Recipe, Rule
from torchinit.transfer.base import Base, ends_of, has_role, is_table
from torchinit.transfer.growth import Grown
from torchinit.transfer.multipliers import Multiplier, attentions, branch_multipliers, branches, readouts, without_heads
from torchinit.transfer.table import Factors, ParameterRole, Settings, check_choice, factors_of


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A parameter against the base model: what kind it is, and the factors of its std, multiplier, rate, eps and decay.

    ``names`` are all that it has, ``growth`` is that of (fan-in, fan-out, blocks). ``matrix`` tells those inside of the
    model, which are Muon's. ``notes`` say what was assumed.

    >>> TransferRow("up.weight", "hidden", (8, 4), (4, 2), (2.0, 2.0, 1.0), Factors(lr=0.5)).cells()
    ['hidden', '4x2 -> 8x4', '1', '1', '0.5', '1', '1']
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

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> TransferRow:
        """The row out of plain data."""
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
        check_choice("kind", data["kind"], get_args(ParameterRole))
        return cls(**{**values, "factors": Factors(**data["factors"])})


def resolved(
    settings: Settings, model: nn.Module, grown: Sequence[Grown], base: Base, globs: Sequence[str]
) -> tuple[tuple[TransferRow, ...], tuple[Multiplier, ...]]:
    """The rows of the parameters, and the multipliers that stay in the forward pass.

    ``globs`` name the layers that end residual branches. Raises ConfigError where depth grows and nobody tells them,
    and for a readout that is an embedding as well and should start at zero, or be folded.
    """
    table, rule = settings.table, settings.rule
    deep = [each for each in grown if each.growth.depth != 1] if table.depth is not None else []
    found = branches(grown, globs) if deep or globs else []  # globs that fit nothing are told in any case
    ends = found if deep else []
    if deep and not any(each.growth.depth != 1 for each in ends):
        raise ConfigError(
            f"{deep[0].site.name!r} stands among {deep[0].growth.depth:g} times as many blocks, and nobody tells"
            " which layers end their residual branches; name them, as in branches=['blocks.*.out']"
        )
    if settings.zero_readout:
        _check_zero(grown)
    end_names = {each.site.name for each in ends}
    factors = {
        each.site.name: factors_of(each.kind, each.growth, settings, is_branch=each.site.name in end_names)
        for each in grown
    }
    needed: list[tuple[Multiplier, str]] = []
    if table.has_rates:
        needed += [*readouts(model, grown, base), *attentions(model, grown, base)]
        needed += branch_multipliers(model, ends, settings.alpha, base)
    # A layer scale is a multiplier already, perhaps in a block's own forward, where no hook can tell it apart.
    gains = {each.site.name for each in ends if has_role(each.site, "layer_scale")}
    put: dict[Multiplier, None] = {}
    for multiplier, name in needed:
        is_folded = settings.form == "folded" or (name in gains and multiplier.place != "config")
        moved = _folded(multiplier, name, factors, grown) if is_folded else {}
        factors.update({key: each.moved(1.0, rule) for key, each in moved.items()})
        if not moved:
            put[multiplier] = None
    inner, headless = _inner(grown), without_heads(model, grown, base) if table.has_rates else {}
    rows = tuple(
        TransferRow(
            each.site.name, each.kind, each.site.shape, each.base.shape,
            (each.growth.r_i, each.growth.r_o, each.growth.depth), factors[each.site.name],
            tuple(view.name for view in each.site.views), each.site.frozen, each.site.name in inner,
            (*each.notes, *headless.get(each.site.name, ())),
        )
        for each in grown
    )  # fmt: skip
    return rows, tuple(put)


def _inner(grown: Sequence[Grown]) -> set[str]:
    """The matrices between the model's input and its output, those that do not grow included, as at the base itself.

    Where nothing grows roles tell, and the model's first and last matrix are its ends.
    """
    ends = ends_of([each.site for each in grown])

    def is_inner(site: Site) -> bool:
        is_end = site.name in ends or has_role(site, "embed.", "head.", "moe.router") or is_table(site)
        return site.layout is not None and site.parameter_kind != "bias" and not is_end

    matrices = [each for each in grown if len(each.site.shape) > 1]
    return {e.site.name for e in matrices if e.kind == "hidden" or (e.kind == "scalar" and is_inner(e.site))}


def _folded(
    multiplier: Multiplier, name: str, factors: Mapping[str, Factors], grown: Sequence[Grown]
) -> dict[str, Factors]:
    """The parameters that a multiplier can be folded into, with it; none where it stays in the forward pass."""
    own = next(each for each in grown if each.site.name == name)
    if own.kind == "tied":
        raise ConfigError(
            f"the head's multiplier cannot be folded into {name!r}, which is the embedding as well: take form='table8'"
        )
    if multiplier.purpose != "attention":
        return {name: factors[name]._replace(mult=multiplier.factor)}
    if own.site.role == "attn.qkv":  # of which no group of an optimizer can have a part
        return {}
    both = [each.site.name for each in grown if each.site.owner_name == own.site.owner_name]
    return {key: factors[key]._replace(mult=multiplier.factor) for key in both}


def _check_zero(grown: Sequence[Grown]) -> None:
    tied = next((each for each in grown if each.kind == "tied"), None)
    if tied is not None:
        raise ConfigError(f"the head cannot start at zero, since {tied.site.name!r} is the embedding as well")
    if not any(each.kind == "output" for each in grown):
        raise ConfigError("nobody tells which layer is the head that should start at zero: kinds={'NAME': 'output'}")


# --- the start -------------------------------------------------------------------------------------------------------


def rules_of(grown: Sequence[Grown], base: Base, rows: Sequence[TransferRow], settings: Settings) -> Recipe:
    """A rule for each parameter, or one for all like ones, that starts the model as the base started.

    Raises ConfigError where nobody knows how that was.
    """
    if not base.fills:
        raise ConfigError(
            "nobody knows what starts the base model: it is on the meta device, or only its width was given; give"
            " start=, a recipe or the code that starts it, such as start=lambda model: model.apply(init)"
        )
    fills, known = dict[str, tuple[Fill, str]](), base.fills
    like: dict[str, list[str]] = defaultdict(list)
    for each, row in zip(grown, rows, strict=True):
        name, fill = each.site.name, known.get(each.base.name)
        like[fold_numbers(name)].append(name)
        if fill is not None:
            is_head = each.kind == "output" and settings.zero_readout
            factor = 0 if is_head else row.factors.std
            made = Constant(0.0) if is_head and len(each.site.shape) > 1 else _scaled(fill, each, row.factors.std)
            fills[name] = made, f"{settings.parametrization}: {each.kind}, std x {factor:.6g}"
    rules = []
    for pattern, names in like.items():
        known_names = [name for name in names if name in fills]
        alike = known_names == names and len({repr(fills[name]) for name in names}) == 1
        for selector, name in [(pattern, names[0])] if alike else [(name, name) for name in known_names]:
            fill, label = fills[name]
            rules.append(Rule(Name(selector), fill, label=f"{label}: {fill}"))
    return tuple(rules)


def _scaled(fill: Fill, each: Grown, factor: float) -> Fill:
    """The base's fill for the larger shape, with the factor of its std.

    A fill whose std goes with the shape by itself, as that of an orthogonal matrix, is corrected for that.
    """
    fill = fill.fill if isinstance(fill, Padded) else fill  # the planner puts the padding row back
    if isinstance(fill, Blockwise):
        fill = _resized(fill, each.base, each.site)
    elif (before := _std(fill, each.base)) and (after := _std(fill, each.site)):
        factor *= before / after
    return fill if factor == 1 else fill.scaled(factor)


def _resized(fill: Blockwise, base: Site, site: Site) -> Fill:
    """Fills side by side, at the sizes that they have in the larger tensor."""
    here, there = site.shape[fill.axis], base.shape[fill.axis]
    sizes = tuple(size * here // there for size in fill.sizes)
    if sum(sizes) != here:
        raise ConfigError(f"the parts of {site.name!r} in the base model, {fill.sizes}, do not grow alike to {here}")
    return replace(fill, sizes=sizes)


def _std(fill: Fill, site: Site) -> float | None:
    try:
        moments = fill.moments(site.shape)
    except ValueError:
        return None
    return moments.std if moments else None
