"""Base: the small model that hyperparameters were found on, as the shapes and the start of each of its parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeGuard

import torch
from torch import nn

from torchinit._files import read_bounded, replacing
from torchinit._limits import JSON_BYTES
from torchinit._text import count
from torchinit.api import sites
from torchinit.errors import ConfigError
from torchinit.initializers import Constant, Normal
from torchinit.initializers.base import Fill
from torchinit.knowledge.attention import count_in, head_sizes
from torchinit.model.dtensor import whole_values
from torchinit.model.layouts import Layout
from torchinit.model.names import module_name, normalize
from torchinit.model.sites import Site
from torchinit.plans.plan import Plan
from torchinit.plans.planner import make_plan
from torchinit.recipes import RecipeLike, to_rules
from torchinit.rules import Name, Rule
from torchinit.serialization.json import unique_json
from torchinit.serialization.schema import is_integer
from torchinit.tracing import capture

Start: TypeAlias = RecipeLike | Callable[[Any], object]
"""What starts the base model: a recipe, or code that is called with it."""

_FORMAT: Final = "torchinit-base-1"
SCALE_FIELDS: Final = ("logits_scaling", "attention_multiplier", "residual_multiplier")
"""The fields of configs (Granite's) that hold a multiplier."""

_PROJECTIONS: Final = ("attn.q", "attn.k", "attn.v", "attn.qkv")


@dataclass(frozen=True)
class Base:
    """The parameters of a base model, with the fills that start them, its heads' sizes, and the scales that it has.

    ``started`` says where the fills come from; they are missing from the plan where nobody knows. ``scales`` are those
    of :func:`scales_of`.

    >>> base = Base.of(nn.Linear(2, 3))
    >>> base.sites["weight"].shape, base.started
    ((3, 2), 'its values')
    """

    plan: Plan
    heads: Mapping[str, int] = field(default_factory=dict)
    started: str = ""
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def sites(self) -> dict[str, Site]:
        """The parameters by their names, those of tied ones included."""
        return {view.name: site for site in self.plan.sites if site.kind == "parameter" for view in site.views}

    @property
    def fills(self) -> dict[str, Fill]:
        """The fill of each parameter that has one."""
        return {view.name: step.fill for step in self.plan.steps for view in step.site.views}

    @classmethod
    def of(cls, model: nn.Module, start: Start | None = None) -> Base:
        """The base that a model is: started by a recipe, by code, or as its values are; on meta perhaps by nothing."""
        known = sites(model)
        if _is_code(start):
            plan, started = capture(model, start), "its own code"
        elif start is not None:
            plan, started = _planned(known, start), "a recipe"
        elif any(each.is_meta for each in model.parameters()):
            plan, started = Plan(untouched=known), ""
        else:
            plan, started = make_plan(known, _measured(model)), "its values"
        return cls(plan, head_sizes(model), started, scales_of(model))

    @classmethod
    def of_width(cls, model: nn.Module, width: int, start: Start | None = None) -> Base:
        """The base that a model would be at another width: each axis that is a multiple of its width shrinks alike.

        The rows of tables, the outputs of heads and the inputs of the first layer are no widths; the size of the
        attention's heads stays, their number shrinks. Raises ConfigError where the width of the model is not known.
        """
        if _is_code(start):
            raise ConfigError("code that starts the base model needs a base model: give base=, or start= as a recipe")
        known, own, heads = sites(model), width_of(model), head_sizes(model)
        if not is_integer(width):
            raise ConfigError(f"base_width is a whole number from 1 on, but got {width!r}")
        shrunk = tuple(_at_width(site, own, width, {*heads.values()}, ends_of(known)) for site in known)
        plan, started = (Plan(untouched=shrunk), "") if start is None else (_planned(shrunk, start), "a recipe")
        return cls(plan, heads, started, scales_of(model))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Base:
        """The base in a file that :meth:`save` wrote; ConfigError for any other."""
        try:
            data = read_format(read_bounded(Path(path), JSON_BYTES), _FORMAT)
            heads = {str(name): int(size) for name, size in data["heads"].items()}
            scales = {str(name): float(scale) for name, scale in data["scales"].items()}
            return cls(Plan.from_json(json.dumps(data["plan"])), heads, str(data["started"]), scales)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{os.fspath(path)} is not a saved base: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, which stands for the base model from then on."""
        data = {"format": _FORMAT, "heads": dict(self.heads), "scales": dict(self.scales), "started": self.started}
        text = json.dumps({**data, "plan": json.loads(self.plan.to_json())}, indent=1)
        with replacing(Path(path)) as file:
            file.write(text.encode())


def read_format(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON of a format; ValueError for any other, and AttributeError for what is not a table."""
    data: dict[str, Any] = unique_json(raw)
    if data.get("format") != name:
        raise ValueError(f"its format is {data.get('format')!r}, not {name!r}")
    return data


def _is_code(start: Start | None) -> TypeGuard[Callable[[Any], object]]:
    """Whether something is code that is called with a model, and not a recipe."""
    return callable(start) and not isinstance(start, (Rule, type)) and not hasattr(start, "resolve")


def _planned(known: Sequence[Site], start: Any) -> Plan:
    plan = make_plan(known, to_rules(start))
    if plan.problems:
        raise ConfigError(f"{count(len(plan.problems), 'problem')} with the recipe of the base model", plan.problems)
    return plan


def _measured(model: nn.Module) -> list[Rule]:
    """A rule for each parameter with the mean and the standard deviation that it has."""
    rules = []
    for name, parameter in model.named_parameters():
        values = whole_values(parameter.detach())
        if not values.numel() or not values.is_floating_point():
            continue
        selector, first = Name(normalize(name)), float(values.flatten()[0])
        if bool((values == first).all()):
            rules.append(Rule(selector, Constant(first)))
        else:
            # A start that is known by its values alone is reduced to two moments: a uniform or truncated one becomes a
            # normal of the same deviation, which is all that a transfer scales. A mean within four standard errors of
            # zero is chance, and would be carried into models of all sizes, whose sums over inputs grow with it. It can
            # fail for a start of unlike parts, such as an identity with noise: give that as a recipe, or as code.
            std, mean = map(float, torch.std_mean(values.double(), correction=0))
            noise = 4 * std / values.numel() ** 0.5  # within which a mean is zero
            rules.append(Rule(selector, Normal(mean if abs(mean) > noise else 0.0, std), padding=True))
    return rules


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by their names, without those of wrappers."""
    return {module_name(path): module for path, module in model.named_modules()}


def scales_of(model: nn.Module) -> dict[str, float]:
    """The multipliers that a model has by its code: fields of its config, and ``scaling`` of attentions, by module."""
    config = getattr(model, "config", None)
    held = {name: getattr(config, name, None) for name in SCALE_FIELDS}
    held |= {path: getattr(module, "scaling", None) for path, module in modules_of(model).items() if path}
    return {name: float(value) for name, value in held.items() if isinstance(value, (int, float))}


def is_head(site: Site) -> bool:
    """Whether a parameter is of a layer that ends the model."""
    return has_role(site, "head.") and not has_role(site, "head.transform")


def has_role(site: Site, *beginnings: str) -> bool:
    """Whether the role of a parameter begins so."""
    return (site.role or "").startswith(beginnings)


def is_table(site: Site) -> bool:
    """Whether a parameter is looked up by any of the layers that have it."""
    return any(view.layout and view.layout.lookup for view in site.views)


def is_matrix(site: Site) -> bool:
    """Whether a parameter runs over inputs and outputs, and is neither a vector nor a stack of such."""
    return len(site.shape) > 1 and not (site.layout and len(site.layout.batch_axes) == len(site.shape))


def ends_of(known: Sequence[Site]) -> tuple[str, str]:
    """The names of the weight that reads the data, and of that which makes the output, where they stand outside of
    blocks; empty where a table or a head, which are known by themselves, does.
    """
    matrices = [site for site in known if site.layout and len(site.shape) > 1]
    found = [site.name if site.block is None else "" for site in (*matrices[:1], *matrices[-1:])]
    first, last = found or ["", ""]
    begins_with_table = bool(first) and is_table(matrices[0])
    return "" if begins_with_table else first, "" if any(
        is_head(view) for site in known for view in site.views
    ) else last


def width_of(model: nn.Module) -> int:
    """The width of a model: that of its config, else the size of most norms, else of most inputs of matrices."""
    if size := count_in(getattr(model, "config", None), ("hidden_size", "d_model", "n_embd", "dim")):
        return size
    known = [site for site in sites(model) if site.kind == "parameter"]
    first, _ = ends_of(known)
    # Norms stand on the residual stream, so most of them have its size. The inputs of matrices are the next best, but
    # for the first one, which reads the data. It can fail where stages have widths of their own: the one that most
    # norms have is taken, and the others shrink as multiples and parts of it.
    sizes = [site.shape[0] for site in known if site.neutral is not None and len(site.shape) == 1] or [
        site.shape[axis]
        for site in known
        if site.layout and len(site.shape) > 1
        for axis in (site.layout.in_axes if site.name != first else site.layout.out_axes)
    ]
    if not sizes:
        name = type(model).__name__
        raise ConfigError(f"the width of {name} is not known: give base=, a smaller model of the same code")
    return max(sizes, key=sizes.count)


def _at_width(site: Site, own: int, base: int, heads: Collection[int], ends: tuple[str, str]) -> Site:
    """A site as it is in a model of another width; ``ends`` are those of the model.

    Raises ConfigError where a width would not be a whole number, or heads would not be whole.
    """
    role, shape = (site.role or "").removesuffix(".bias"), list(site.shape)
    must = role in _PROJECTIONS or has_role(site, "mlp.", "expert.")
    for axis in _width_axes(site, own, heads, ends):
        size = shape[axis] * base / own
        is_part = site.layout is not None and axis in site.layout.out_axes and role in _PROJECTIONS and bool(heads)
        if must and (size % 1 or (is_part and all(size % each for each in heads))):
            parts = f"whole heads of {', '.join(map(str, sorted({*heads})))}" if is_part else "whole"
            raise ConfigError(
                f"base_width={base} would leave {size:g} of the {shape[axis]} along axis {axis} of {site.name!r}, which"
                f" is not {parts}: give base=, a smaller model of the same code"
            )
        # Sizes have no names, so arithmetic tells which go with the width: multiples of a 24th of it (halves, thirds,
        # quarters, eighths) from an eighth on. Smaller ones tend to be sizes of their own: of kernels, of heads, of a
        # stem's channels. Projections and feed-forward layers go with the width whatever their size, and what would not
        # be whole then is refused. It can fail where another size happens to be such a part, as the number of tokens
        # that a layer mixes: only a base model of the same code tells that.
        is_multiple = shape[axis] * 24 % own == 0 and shape[axis] * 8 >= own  # a simple one, or a simple part
        if must or (is_multiple and shape[axis] * base % own == 0):
            shape[axis] = int(size)
    sizes = tuple(shape)
    return replace(site, shape=sizes, aliases=tuple(replace(each, shape=sizes) for each in site.aliases))


def _width_axes(site: Site, own: int, heads: Collection[int], ends: tuple[str, str]) -> Sequence[int]:
    """The axes of a parameter along which its size may be a width."""
    axes, layout = range(len(site.shape)), site.layout or Layout()
    if len(axes) == 1:
        is_query_norm = site.shape[0] != own and site.shape[0] in heads
        is_last = site.shape[0] != own and site.owner_name == ends[1].rpartition(".")[0] and bool(ends[1])
        return () if is_head(site) or is_query_norm or is_last else axes
    if is_table(site):
        return axes[1:]
    if is_head(site) or has_role(site, "moe.router"):
        return layout.in_axes
    if site.layout is None or not is_matrix(site):
        return axes[-1:] if has_role(site, "embed.") else axes
    if site.name == ends[0]:
        return layout.out_axes
    if site.name == ends[1] and site.shape[layout.out_axes[0]] != own:
        return layout.in_axes
    return (*layout.in_axes, *layout.out_axes)
