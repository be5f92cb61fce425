"""Rows: what the table makes of each parameter of a model, and of the multipliers that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from torchinit._text import shape_text
from torchinit.errors import ConfigError
from torchinit.transfer.base import Base, ends_of
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
    ends = branches(grown, globs) if deep else []
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
    put: dict[Multiplier, None] = {}
    if table.has_rates:
        at_branch = branch_multipliers(model, ends, settings.alpha, base)
        pairs = [
            *readouts(model, grown, base),
            *attentions(model, grown, base),
            *((one, name) for name, one in at_branch.items()),
        ]
        # A layer scale is a multiplier already, perhaps in a block's own forward, where no hook can tell it apart.
        gains = {each.site.name for each in ends if (each.site.role or "").startswith("layer_scale")}
        for multiplier, name in pairs:
            is_folded = settings.form == "folded" or (name in gains and multiplier.place != "config")
            moved = _folded(multiplier, name, factors, grown) if is_folded else {}
            factors.update({key: each.moved(1.0, rule) for key, each in moved.items()})
            if not moved:
                put[multiplier] = None
    inner = _inner(grown)
    headless = without_heads(model, grown, base) if table.has_rates else {}
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
    found = {each.site.name for each in grown if each.kind == "hidden" and len(each.site.shape) > 1}
    for each in grown:
        is_matrix = each.site.layout and len(each.site.shape) > 1 and each.site.parameter_kind != "bias"
        is_end = each.site.name in ends or (each.site.role or "").startswith(("embed.", "head.", "moe.router"))
        is_table = any(view.layout and view.layout.lookup for view in each.site.views)
        if each.kind == "scalar" and is_matrix and not is_end and not is_table:
            found.add(each.site.name)
    return found


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
    owner = own.site.owner_name
    both = [each.site.name for each in grown if each.site.owner_name == owner]
    return {key: factors[key]._replace(mult=multiplier.factor) for key in both}


def _check_zero(grown: Sequence[Grown]) -> None:
    tied = next((each for each in grown if each.kind == "tied"), None)
    if tied is not None:
        raise ConfigError(f"the head cannot start at zero, since {tied.site.name!r} is the embedding as well")
    if not any(each.kind == "output" for each in grown):
        raise ConfigError("nobody tells which layer is the head that should start at zero: kinds={'NAME': 'output'}")
