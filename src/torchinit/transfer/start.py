"""Start: the recipe of a model out of the fills that start its base, each times its factor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from torchinit._text import fold_numbers
from torchinit.errors import ConfigError
from torchinit.initializers import Constant
from torchinit.initializers.base import Blockwise, Fill
from torchinit.initializers.composed import Padded
from torchinit.model.sites import Site
from torchinit.rules import Name, Recipe, Rule
from torchinit.transfer.base import Base
from torchinit.transfer.growth import Grown
from torchinit.transfer.rows import TransferRow
from torchinit.transfer.table import Settings


def rules_of(grown: Sequence[Grown], base: Base, rows: Sequence[TransferRow], settings: Settings) -> Recipe:
    """A rule for each parameter, or one for all like ones, that starts the model as the base started.

    Raises ConfigError where nobody knows how that was.
    """
    if not base.fills:
        raise ConfigError(
            "nobody knows what starts the base model: it is on the meta device, or only its width was given; give"
            " start=, a recipe or the code that starts it, such as start=lambda model: model.apply(init)"
        )
    fills: dict[str, tuple[Fill, str]] = {}
    known = base.fills
    for each, row in zip(grown, rows, strict=True):
        fill = known.get(each.base.name)
        if fill is None:
            continue
        factor = row.factors.std
        is_head = each.kind == "output" and settings.zero_readout
        made = Constant(0.0) if is_head and len(each.site.shape) > 1 else _scaled(fill, each, factor)
        fills[each.site.name] = made, f"{settings.parametrization}: {each.kind}, std x {0 if is_head else factor:.6g}"
    like: dict[str, list[str]] = defaultdict(list)
    for each in grown:
        like[fold_numbers(each.site.name)].append(each.site.name)
    rules = []
    for pattern, names in like.items():
        values = [fills[name] for name in names if name in fills]
        alike = len(values) == len(names) and len({repr(value) for value in values}) == 1
        for name in [pattern] if alike else [name for name in names if name in fills]:
            fill, label = fills[names[0] if alike else name]
            rules.append(Rule(Name(name), fill, label=f"{label}: {fill}"))
    return tuple(rules)


def _scaled(fill: Fill, each: Grown, factor: float) -> Fill:
    """The base's fill for the larger shape, with the factor of its std.

    A fill whose std goes with the shape by itself, as that of an orthogonal matrix, is corrected for that.
    """
    fill = fill.fill if isinstance(fill, Padded) else fill  # the planner puts the padding row back
    fill = _resized(fill, each.base, each.site)
    before, after = (_std(fill, site) for site in (each.base, each.site))
    if not isinstance(fill, Blockwise) and before and after:
        factor *= before / after
    return fill if factor == 1 else fill.scaled(factor)


def _resized(fill: Fill, base: Site, site: Site) -> Fill:
    """Fills side by side, at the sizes that they have in the larger tensor."""
    if not isinstance(fill, Blockwise):
        return fill
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
