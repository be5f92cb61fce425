"""Multipliers: numbers in the forward pass, found on a model, put into its config fields or hooks, and taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal, TypeAlias

from torch import nn

from torchinit.errors import RunError
from torchinit.knowledge.attention import HEAD_COUNTS, around, count_in, head_sizes
from torchinit.knowledge.exits import EXITS
from torchinit.model.layouts import Layout
from torchinit.model.names import glob_matches
from torchinit.transfer.base import SCALE_FIELDS, Base, has_role, modules_of, scales_of
from torchinit.transfer.growth import Grown, check_fit

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
        # The input is the keyword that the caller wrote first. It can fail for a layer of several inputs that is called
        # with them in another order.
        name = "key" if at else next(iter(kwargs))
        return args, {**kwargs, name: kwargs[name] * factor}

    def after(self, module: nn.Module, args: object, output: Any) -> Any:
        """The output, scaled; of several the first."""
        if isinstance(output, tuple):
            return (self.after(module, args, output[0]), *output[1:])
        if self.multiplier.place == "rows":
            scale = output.new_ones(output.shape[-1])
            scale[: int(self.multiplier.value)] = self.multiplier.factor
            return output * scale
        return output * self.multiplier.factor


class Applied(ExitStack):
    """The multipliers that are in a model; :meth:`remove` takes them out again, as does the end of a ``with``.

    >>> model = nn.Sequential(nn.Identity())
    >>> with apply_all(model, [Multiplier("readout", "0", 0.5, "input")]):
    ...     model(2.0)
    1.0
    """

    def remove(self) -> None:
        """Take the hooks off, and give fields and attributes their values back."""
        self.close()

    def _set(self, holder: Any, name: str, value: float) -> None:
        self.callback(setattr, holder, name, getattr(holder, name))
        setattr(holder, name, value)


def apply_all(model: nn.Module, multipliers: Sequence[Multiplier]) -> Applied:
    """Put multipliers into a model; RunError, and nothing is changed, where one is in already, or has no place."""
    modules = modules_of(model)
    problems = [f"{each}: the model has no such module" for each in multipliers if each.module not in modules]
    problems += [
        f"{each}: it is in the model already"
        for each in multipliers
        if each.purpose in {other.purpose for other in _hooked(modules.get(each.module))}
    ]
    if problems:
        raise RunError("the multipliers cannot be put into the model", problems)
    applied = Applied()
    for each in multipliers:
        module, hook = modules[each.module], ScaleHook(each)
        if each.place == "config":
            # transformers read such a field when a layer is made, and the layer keeps a copy (logits_scaling alone is
            # read in the forward pass): the field by itself would change what is saved and not what is computed.
            copied = "scaling" if each.purpose == "attention" else each.field  # into modules, by the constructor
            applied._set(model.config, each.field, each.value)
            for inner in model.modules():
                if isinstance(getattr(inner, copied, None), float):
                    applied._set(inner, copied, each.value)
        elif each.place == "attribute":
            applied._set(module, each.field, each.value)
        elif each.place in ("input", "key"):
            applied.callback(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
        else:
            applied.callback(module.register_forward_hook(hook.after).remove)
    return applied


def missing_from(model: nn.Module, multipliers: Sequence[Multiplier]) -> list[Multiplier]:
    """The multipliers that are not in a model, as after it was loaded anew."""
    modules = modules_of(model)

    def is_there(each: Multiplier) -> bool:
        if each.place in ("config", "attribute"):
            holder = getattr(model, "config", None) if each.place == "config" else modules.get(each.module)
            return getattr(holder, each.field, None) == each.value
        return each in _hooked(modules.get(each.module))

    return [each for each in multipliers if not is_there(each)]


def _hooked(module: nn.Module | None) -> list[Multiplier]:
    """The multipliers that the hooks of a module have."""
    if module is None:
        return []
    hooks = chain(module._forward_pre_hooks.values(), module._forward_hooks.values())
    held = (getattr(hook, "__self__", None) for hook in hooks)
    return [each.multiplier for each in held if isinstance(each, ScaleHook)]


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
        heads = (view for view in each.site.views if each.kind == "output" or not (view.layout and view.layout.lookup))
        head = next(heads)
        if own is not None and (each.kind == "tied" or has_role(head, "head.lm")):
            value = base.scales.get(_LOGITS, own) / factor
            yield Multiplier("readout", "", own / value, "config", _LOGITS, value), each.site.name
        else:
            yield Multiplier("readout", head.owner_name, factor, "input"), each.site.name


def attentions(model: nn.Module, grown: Sequence[Grown], there: Base) -> Iterator[tuple[Multiplier, str]]:
    """The multiplier of each attention whose heads grow, with the name of the parameter that makes its queries.

    Where a norm of the queries sets their scale there is none.
    """
    modules, heads, scales = modules_of(model), head_sizes(model), scales_of(model)
    for each in _queries(grown):
        site, name, base = each.site, around(each.site.owner_name, heads), around(each.base.owner_name, there.heads)
        if name is None or base is None or heads[name] == there.heads[base] or _has_query_norm(modules[name]):
            continue
        growth, module = heads[name] / there.heads[base], modules[name]
        # Logits are q·k / sqrt(size of a head). Once q and k are trained, q·k grows with the size and not with its
        # root, so that 1 / size is wanted (Yang et al. 2022, https://arxiv.org/abs/2203.03466): growth ** -1/2 is
        # missing. A scale that the model has as a number is set to what it should be, that of the base / growth, so
        # that it does not matter whether it has been set before. Where the base's is not known it had the default,
        # today's times growth ** 1/2.
        factor = growth**-0.5
        if _ATTENTION in scales:
            value = there.scales.get(_ATTENTION, scales[_ATTENTION]) / growth
            yield Multiplier("attention", "", value / scales[_ATTENTION], "config", _ATTENTION, value), site.name
        elif isinstance(module, nn.MultiheadAttention):
            yield Multiplier("attention", name, factor, "key"), site.name
        elif type(module).__module__.startswith("transformers.") and name in scales:
            value = there.scales.get(base, scales[name] * growth**0.5) / growth
            yield Multiplier("attention", name, value / scales[name], "attribute", "scaling", value), site.name
        elif site.role == "attn.qkv":
            rows = site.shape[(site.layout or Layout()).out_axes[0]]
            queries = count_in(module, HEAD_COUNTS) * heads[name] or rows // 3  # a third where nobody counts heads
            yield Multiplier("attention", site.owner_name, factor, "rows", "", queries), site.name
        else:
            yield Multiplier("attention", site.owner_name, factor, "output"), site.name


def without_heads(model: nn.Module, grown: Sequence[Grown], there: Base) -> dict[str, tuple[str]]:
    """A note for each weight that makes more queries than in the base, of heads whose size no attribute tells."""
    heads, note = head_sizes(model), "nobody tells the size of its heads, so it is taken as fixed: give it head_dim"
    growing = (each for each in _queries(grown) if each.growth.r_o != 1)
    known = (
        (each.site.name, around(each.site.owner_name, heads), around(each.base.owner_name, there.heads))
        for each in growing
    )
    return {name: (note,) for name, *attention in known if not all(attention)}


def _queries(grown: Sequence[Grown]) -> list[Grown]:
    """The weights that make queries."""
    return [each for each in grown if each.site.parameter_kind != "bias" and each.site.role in _QUERIES]


def _has_query_norm(module: nn.Module) -> bool:
    norms = (getattr(module, name, None) for name in ("q_norm", "query_norm", "q_layernorm", "norm_q", "q_ln"))
    return any(isinstance(each, nn.Module) and not isinstance(each, nn.Identity) for each in norms)


def branches(grown: Sequence[Grown], globs: Sequence[str]) -> list[Grown]:
    """The parameters that a residual branch ends with: weights and biases of its last layer, or gains of a norm behind.

    Without globs of their modules they are known by their roles: the ways out of attention and feed-forward layers.
    A layer scale in the same block is the branch's last.
    """
    inside = [each for each in grown if each.site.block is not None]
    if globs:
        check_fit("branches: no layer of a block fits", globs, sorted({each.site.owner_name for each in inside}))
        return [each for each in inside if any(glob_matches(glob, each.site.owner_name) for glob in globs)]
    if scales := [each for each in inside if has_role(each.site, "layer_scale")]:
        return scales
    after = "post_feedforward_layernorm", "post_attention_layernorm"
    blocks = {_block(each) for each in inside if after[0] in each.site.name}
    ends = tuple(f"{name}.weight" for name in after)
    norms = [each for each in inside if each.site.name.endswith(ends) and _block(each) in blocks]
    return norms or [each for each in inside if has_role(each.site, *EXITS)]


def _block(each: Grown) -> str:
    """The module around the layer that has a parameter."""
    return each.site.owner_name.rpartition(".")[0]


def branch_multipliers(
    model: nn.Module, ends: Sequence[Grown], alpha: float, base: Base
) -> Iterator[tuple[Multiplier, str]]:
    """The multiplier of each residual branch whose depth grows, with the name of the parameter that it is for."""
    modules, own = modules_of(model), scales_of(model).get(_BRANCH)
    for each in ends:
        factor = each.growth.depth**-alpha
        if factor != 1 and own is not None:
            value = base.scales.get(_BRANCH, own) * factor
            yield Multiplier("branch", "", value / own, "config", _BRANCH, value), each.site.name
        elif factor != 1:
            # torch's attention does not call its output layer.
            is_torchs = isinstance(modules.get(_block(each)), nn.MultiheadAttention)
            module = _block(each) if is_torchs else each.site.owner_name
            yield Multiplier("branch", module, factor, "output"), each.site.name
