"""Multipliers: numbers in the forward pass, found on a model, put into its config fields or hooks, and taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from torch import Tensor, nn

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError, ReportError, RunError
from torchinit.knowledge.exits import EXITS
from torchinit.model.names import glob_matches
from torchinit.transfer.base import HEAD_COUNTS, SCALE_FIELDS, Base, count_in, head_sizes, modules_of, scales_of
from torchinit.transfer.growth import Grown

Purpose: TypeAlias = Literal["readout", "attention", "branch"]
Place: TypeAlias = Literal["config", "attribute", "input", "output", "key", "rows"]

_LOGITS, _ATTENTION, _BRANCH = SCALE_FIELDS  # Granite divides its logits by the first
_QUERIES: Final = ("attn.q", "attn.qkv", "attn.q_up")


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A number that a module's output is multiplied by in the forward pass, what it is for, and where it is put.

    ``place``: a field of the model's ``config`` or an ``attribute`` of the module, which then hold ``value``; the
    ``input`` or the ``output`` of the module; the ``key`` of a ``torch.nn.MultiheadAttention``, which is as good as its
    logits; the first ``value`` ``rows`` of a fused output, the queries.

    >>> print(Multiplier("readout", "lm_head", 0.25, "input"))
    readout x 0.25: input of lm_head
    """

    purpose: Purpose
    module: str
    factor: float
    place: Place
    field: str = ""
    value: float = 0.0

    def __str__(self) -> str:
        where = {
            "config": f"config.{self.field} = {self.value:.6g}",
            "attribute": f"{self.module}.{self.field} = {self.value:.6g}",
            "rows": f"first {self.value:g} outputs of {self.module}",
        }
        return f"{self.purpose} x {self.factor:.6g}: {where.get(self.place, f'{self.place} of {self.module}')}"


class ScaleHook:
    """A hook that multiplies what goes into a module, or comes out of it; a class of its own, so that it is pickled."""

    def __init__(self, multiplier: Multiplier) -> None:
        self.multiplier: Multiplier = multiplier

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments, of which the first one, or the key, is scaled."""
        factor = self.multiplier.factor
        at = 1 if self.multiplier.place == "key" else 0
        if len(args) > at:
            return (*args[:at], args[at] * factor, *args[at + 1 :]), kwargs
        name = "key" if at else next(iter(kwargs))
        return args, {**kwargs, name: kwargs[name] * factor}

    def after(self, module: nn.Module, args: object, output: Any) -> Any:
        """The output, scaled; of several the first."""
        if isinstance(output, tuple):
            return (self._scaled(output[0]), *output[1:])
        return self._scaled(output)

    def _scaled(self, output: Tensor) -> Tensor:
        factor, rows = self.multiplier.factor, int(self.multiplier.value)
        if self.multiplier.place == "rows":
            scale = output.new_ones(output.shape[-1])
            scale[:rows] = factor
            return output * scale
        return output * factor


class Applied:
    """The multipliers that are in a model; :meth:`remove` takes them out again, as does the end of a ``with``.

    >>> model = nn.Sequential(nn.Identity())
    >>> with apply_all(model, [Multiplier("readout", "0", 0.5, "input")]):
    ...     model(2.0)
    1.0
    """

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def remove(self) -> None:
        """Take the hooks off, and give fields and attributes their values back."""
        self._undo.close()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply_all(model: nn.Module, multipliers: Sequence[Multiplier]) -> Applied:
    """Put multipliers into a model; RunError, and nothing is changed, where one is in already, or has no place."""
    modules = modules_of(model)
    problems = [f"{each}: the model has no such module" for each in multipliers if each.module not in modules]
    problems += [f"{each}: it is in the model already" for each in multipliers if _hook_of(modules, each) is not None]
    if problems:
        raise RunError("the multipliers cannot be put into the model", problems)
    undo = ExitStack()
    for each in multipliers:
        module = modules[each.module]
        hook = ScaleHook(each)
        if each.place == "config":
            _set(undo, model.config, each.field, each.value)
            for inner in model.modules():
                held = each.field if each.purpose != "attention" else "scaling"
                if isinstance(getattr(inner, held, None), float):
                    _set(undo, inner, held, each.value)
        elif each.place == "attribute":
            _set(undo, module, each.field, each.value)
        elif each.place in ("input", "key"):
            undo.callback(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
        else:
            undo.callback(module.register_forward_hook(hook.after).remove)
    return Applied(undo)


def missing_from(model: nn.Module, multipliers: Sequence[Multiplier]) -> list[Multiplier]:
    """The multipliers that are not in a model, as after it was loaded anew."""
    modules = modules_of(model)
    found = []
    for each in multipliers:
        holder = getattr(model, "config", None) if each.place == "config" else modules.get(each.module)
        if each.place in ("config", "attribute"):
            is_there = holder is not None and getattr(holder, each.field, None) == each.value
        else:
            is_there = _hook_of(modules, each) == each
        found += [] if is_there else [each]
    return found


def verify_all(model: nn.Module, multipliers: Sequence[Multiplier]) -> None:
    """Raise ReportError where a multiplier is missing: the model computes something else than was trained."""
    if lost := missing_from(model, multipliers):
        raise ReportError("multipliers are not in the model: call apply(model)", map(str, lost))


def _set(undo: ExitStack, holder: Any, name: str, value: float) -> None:
    undo.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)


def _hook_of(modules: Mapping[str, nn.Module], multiplier: Multiplier) -> Multiplier | None:
    """The multiplier for the same purpose that a module has."""
    module = modules.get(multiplier.module)
    if module is None:
        return None
    hooks: Iterator[Callable[..., Any]] = iter([*module._forward_pre_hooks.values(), *module._forward_hooks.values()])
    held = (getattr(hook, "__self__", None) for hook in hooks)
    return next(
        (h.multiplier for h in held if isinstance(h, ScaleHook) and h.multiplier.purpose == multiplier.purpose), None
    )


# --- where they belong -----------------------------------------------------------------------------------------------


# What the code of a model multiplies by already is compared with the base's, not taken as the base's: so a multiplier
# that is in a config or in an attention by now, as after a load, is not put in twice, and a constant scale of attention
# shrinks like one that goes with the size of the heads.


def readouts(model: nn.Module, grown: Sequence[Grown], base: Base) -> Iterator[tuple[Multiplier, str]]:
    """The multiplier of each output, with the name of its parameter."""
    own = scales_of(model).get(_LOGITS)
    for each in grown:
        factor = 1 / (each.growth.r_o if each.kind == "tied" else each.growth.r_i)
        if each.kind not in ("output", "tied") or factor == 1 or each.site.parameter_kind == "bias":
            continue
        view = next(
            view for view in each.site.views if each.kind == "output" or not (view.layout and view.layout.lookup)
        )
        is_logits = (view.role or "").startswith("head.lm") or each.kind == "tied"
        if is_logits and own is not None:
            value = base.scales.get(_LOGITS, own) / factor
            yield Multiplier("readout", "", own / value, "config", _LOGITS, value), each.site.name
        else:
            yield Multiplier("readout", view.owner_name, factor, "input"), each.site.name


def attentions(model: nn.Module, grown: Sequence[Grown], there: Base) -> Iterator[tuple[Multiplier, str]]:
    """The multiplier of each attention whose heads grow, with the name of the parameter that makes its queries.

    Where a norm of the queries sets their scale there is none.
    """
    modules, heads, scales = modules_of(model), head_sizes(model), scales_of(model)
    of_config = None
    for each in grown:
        role = each.site.role or ""
        if each.site.parameter_kind == "bias" or role not in _QUERIES:
            continue
        name = _attention_of(each.site.owner_name, heads)
        base = _attention_of(each.base.owner_name, there.heads)
        if name is None or base is None or heads[name] == there.heads[base] or _has_query_norm(modules[name]):
            continue
        growth, module, owner = heads[name] / there.heads[base], modules[name], each.site.owner_name
        factor = growth**-0.5
        if _ATTENTION in scales:
            if of_config is None:
                value = there.scales.get(_ATTENTION, scales[_ATTENTION]) / growth
                of_config = Multiplier("attention", "", value / scales[_ATTENTION], "config", _ATTENTION, value)
                yield of_config, each.site.name
        elif isinstance(module, nn.MultiheadAttention):
            yield Multiplier("attention", name, factor, "key"), each.site.name
        elif type(module).__module__.startswith("transformers.") and name in scales:
            value = there.scales.get(base, scales[name] * growth**0.5) / growth
            yield Multiplier("attention", name, value / scales[name], "attribute", "scaling", value), each.site.name
        elif role == "attn.qkv":
            rows = each.site.shape[(each.site.layout.out_axes if each.site.layout else (0,))[0]]
            queries = _queries(module, heads[name], rows)
            yield Multiplier("attention", owner, factor, "rows", "", queries), each.site.name
        else:
            yield Multiplier("attention", owner, factor, "output"), each.site.name


def without_heads(model: nn.Module, grown: Sequence[Grown], there: Base) -> dict[str, tuple[str]]:
    """A note for each weight that makes more queries than in the base, of heads whose size no attribute tells."""
    heads, note = head_sizes(model), "nobody tells the size of its heads, so it is taken as fixed: give it head_dim"
    return {
        each.site.name: (note,)
        for each in grown
        if each.site.parameter_kind != "bias" and each.site.role in _QUERIES and each.growth.r_o != 1
        if not _attention_of(each.site.owner_name, heads) or not _attention_of(each.base.owner_name, there.heads)
    }  # fmt: skip


def _attention_of(name: str, heads: Mapping[str, int]) -> str | None:
    """The nearest module around a layer that has heads."""
    while True:
        if name in heads:
            return name
        if not name:
            return None
        name = name.rpartition(".")[0]


def _has_query_norm(module: nn.Module) -> bool:
    norms = (getattr(module, name, None) for name in ("q_norm", "query_norm", "q_layernorm", "norm_q", "q_ln"))
    return any(isinstance(each, nn.Module) and not isinstance(each, nn.Identity) for each in norms)


def _queries(module: nn.Module, head: int, rows: int) -> int:
    """The rows of a fused projection that are the queries: those of all heads, or a third where nobody counts them."""
    return count_in(module, HEAD_COUNTS) * head or rows // 3


def branches(grown: Sequence[Grown], globs: Sequence[str]) -> list[Grown]:
    """The parameters that a residual branch ends with: weights and biases of its last layer, or gains of a norm behind.

    Without globs of their modules they are known by their roles: the ways out of attention and feed-forward layers.
    A layer scale in the same block is the branch's last.
    """
    inside = [each for each in grown if each.site.block is not None]
    if globs:
        owners = sorted({each.site.owner_name for each in inside})
        for glob in globs:
            if not any(glob_matches(glob, owner) for owner in owners):
                raise ConfigError(f"branches: no layer of a block fits {glob!r}{did_you_mean(glob, owners)}")
        return [each for each in inside if any(glob_matches(glob, each.site.owner_name) for glob in globs)]
    scales = [each for each in inside if (each.site.role or "").startswith("layer_scale")]
    if scales:
        return scales
    behind = {
        each.site.owner_name.rpartition(".")[0] for each in inside if "post_feedforward_layernorm" in each.site.name
    }
    ends = ("post_feedforward_layernorm.weight", "post_attention_layernorm.weight")
    found = [
        each for each in inside if each.site.name.endswith(ends) and each.site.owner_name.rpartition(".")[0] in behind
    ]
    return found or [each for each in inside if _role(each).startswith(EXITS)]


def _role(each: Grown) -> str:
    return each.site.role or ""


def branch_multipliers(model: nn.Module, ends: Sequence[Grown], alpha: float, base: Base) -> dict[str, Multiplier]:
    """The multiplier of each residual branch whose depth grows, by the name of the parameter that it is for."""
    modules, own = modules_of(model), scales_of(model).get(_BRANCH)
    found = {}
    for each in ends:
        factor = each.growth.depth**-alpha
        owner = each.site.owner_name
        around = owner.rpartition(".")[0]
        if factor == 1:
            continue
        if own is not None:
            value = base.scales.get(_BRANCH, own) * factor
            found[each.site.name] = Multiplier("branch", "", value / own, "config", _BRANCH, value)
        elif isinstance(modules.get(around), nn.MultiheadAttention):  # which does not call its output layer
            found[each.site.name] = Multiplier("branch", around, factor, "output")
        else:
            found[each.site.name] = Multiplier("branch", owner, factor, "output")
    return found
