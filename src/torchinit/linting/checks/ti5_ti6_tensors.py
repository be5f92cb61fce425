"""TI5, TI6: tensors that a dtype holds badly, that are one or should be, are computed, or stand where nobody looks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torchinit._text import abbreviate, count, dtype_name, shape_text
from torchinit.initializers.statistics import is_shuffled
from torchinit.linting.registry import Hit, Severity, check
from torchinit.linting.target import LintTarget, is_pair_to_tie, split_common_end
from torchinit.model.names import normalize
from torchinit.model.sandbox import INTERNAL
from torchinit.model.sites import Site
from torchinit.model.states import intent
from torchinit.tracing.regions import memory_of, storage_of


@check("TI501", "warning", "values", "initialize in float32 and convert, or scale the weight up")
def subnormal(target: LintTarget) -> Iterator[Hit]:
    """A float16 parameter more than a tenth of whose values lie below 6.1e-5, where the format loses its digits.

    float16 ends early: a normal with a standard deviation of 5e-4 has a tenth of its values there, and below 6e-8
    all is zero. Counted; a tenth is a convention. Loaded values are left out.
    """
    for linted in target.drawn:
        stats = linted.statistics
        drawn = stats.numel - stats.zeros
        if linted.site.dtype == torch.float16 and stats.tiny > drawn / 10:
            text = f"{stats.tiny:,} of {drawn:,} values that are not zero are below 6.1e-05"
            yield Hit(linted.name, f"{text}, where float16 has few digits")


@check("TI502", "warning", "values", "scale it down, or keep it in bfloat16 or float32")
def overflow(target: LintTarget) -> Iterator[Hit]:
    """A float16 parameter with a value above 256, whose square float16 does not hold.

    Sums of products overflow there. Harmless where the layer computes in float32. Loaded values are left out.
    """
    for linted in target.drawn:
        if linted.site.dtype == torch.float16 and linted.statistics.numel and linted.statistics.reach > 256:
            yield Hit(linted.name, f"holds {linted.statistics.reach:.6g}, and float16 ends at 65504")


@check("TI503", "warning", "sites", "convert the module as a whole: module.to(dtype)")
def mixed_dtypes(target: LintTarget) -> Iterator[Hit]:
    """A module whose weight and bias have different dtypes.

    Most layers refuse to compute so; it comes from a tensor that was made or assigned without a dtype. Parameters
    of other names are left alone (state spaces keep their decay in float32), and formats of 8 bits.
    """
    sites = [linted.site for linted in target.tensors if linted.is_parameter]
    roles = [site for site in sites if site.parameter_kind in ("weight", "bias")]
    floating = [site for site in roles if site.dtype.is_floating_point and site.dtype.itemsize > 1]
    return _mixed((site, dtype_name(site.dtype)) for site in floating)


@check("TI504", "error", "sites", "move the module as a whole: module.to(device)")
def mixed_devices(target: LintTarget) -> Iterator[Hit]:
    """A module whose own tensors are on different devices.

    It cannot compute. A tensor that is assigned after ``to`` makes it. The meta device has a check of its own.
    """
    return _mixed((each.site, str(each.tensor.device)) for each in target.tensors if not each.tensor.is_meta)


@check("TI505", "note", "sites", "make it anew in float32 after the conversion, and keep it out of later ones")
def rounded_buffer(target: LintTarget) -> Iterator[Hit]:
    """A buffer in no state dict that stands in fewer digits than its own code makes it in.

    ``model.to(torch.bfloat16)`` rounds the frequencies of rotary embeddings with all the rest, and positions far out
    turn by other angles. The dtype that the code makes is found by building the module again, on the meta device, from
    the arguments that it keeps; where it keeps none, a buffer called a frequency is taken to be float32.
    """
    rounded = []
    for linted in target.tensors:
        site, holder = linted.site, linted.holders[0]
        if site.kind == "buffer" and not site.persistent and site.dtype.is_floating_point and site.dtype.itemsize < 4:
            made = intent(holder.place.module, holder.leaf)
            dtype = made.dtype if made else torch.float32 if "freq" in holder.leaf else site.dtype
            if dtype.itemsize > site.dtype.itemsize:
                rounded.append(f"{linted.name} ({dtype_name(site.dtype)} for {dtype_name(dtype)})")
    if rounded:
        yield Hit("", f"fewer digits than made in {count(len(rounded), 'buffer')}: {abbreviate(rounded)}")


def _mixed(kinds: Iterable[tuple[Site, str]]) -> Iterator[Hit]:
    """The modules whose own tensors are of several kinds."""
    leaves: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for site, kind in kinds:
        leaves[site.owner_name][kind].append(site.leaf)
    for owner, by_kind in leaves.items():
        if len(by_kind) > 1:
            yield Hit(owner, " but ".join(f"{' and '.join(names)} {kind}" for kind, names in by_kind.items()))


@check("TI601", "error", "sites", "tie them again: to_empty(), and a copy of one of them, break ties")
def broken_tie(target: LintTarget) -> Iterator[Hit]:
    """Two weights that the model says are one, and that have memory of their own.

    What is written, or loaded, into one does not reach the other, and they drift apart in training. Known are the
    ties that a transformers model declares (``_tied_weights_keys`` with ``config.tie_word_embeddings``) and the
    aliases in a plan of the model's sketch. Never wrong where the declaration is right.
    """
    planned = ((step.site.name, view.name) for step in target.plan for view in step.site.aliases)
    for name, other in dict.fromkeys([*_declared(target.model), *planned]):
        first, second = target.by_name.get(name), target.by_name.get(other)
        if first and second and first is not second:
            yield Hit(first.name, f"should be one tensor with {second.name}, and is not")


def _declared(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        keys = getattr(module, "_tied_weights_keys", None)
        if keys and getattr(getattr(module, "config", None), "tie_word_embeddings", False):
            for pair in _pairs(module, keys):
                name, source = (normalize(f"{path}.{end}".lstrip(".")) for end in pair)
                yield name, source


def _pairs(module: Any, keys: object) -> Iterator[tuple[str, str]]:
    """The ties of a transformers model: a table of names since 5, before that the names tied to the embedding."""
    if isinstance(keys, Mapping):
        yield from keys.items()
        return
    table = getattr(module.get_input_embeddings(), "weight", None)
    names = [name for name, tensor in module.named_parameters(remove_duplicate=False) if tensor is table]
    outputs = [key for key in keys if key.endswith("weight")] if isinstance(keys, (list, tuple, set)) else []
    yield from ((key, names[0]) for key in outputs if names)


@check("TI602", "warning", "values", "tie them (head.weight = embedding.weight), or draw them apart")
def equal_not_tied(target: LintTarget) -> Iterator[Hit]:
    """An embedding and a layer that hold the same drawn values in memory of their own.

    They were one, or were meant to be: a copy of the model's parts or ``to_empty`` breaks the tie and leaves the
    values. Decided bit by bit among 20 or more values that come in no order. Loaded values are left out.
    """
    declared = set(map(frozenset, _declared(target.model)))
    for twins in target.twins:
        names = [twin.name for twin in twins]
        if is_pair_to_tie(twins) and frozenset(names[:2]) not in declared:
            yield Hit(names[0], f"holds the same values as {', '.join(names[1:])}, in memory of its own")


@check("TI603", "error", "values", "write through the parametrization: remove it first, or use a torchinit rule")
def lost_in_parametrization(target: LintTarget) -> Iterator[Hit]:
    """A weight that was written where the next call computes it anew, so that the write has no effect.

    The hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` compute ``weight`` from ``weight_g`` and
    ``weight_v``, or ``weight_orig``, before each call. Compared is what stands in it with what they would compute,
    within a thousandth of its size, and for spectral norm up to a factor. The newer ``parametrizations`` compute
    it for whoever asks: there a trace tells what was written and is not what is computed at the end, a warning.
    Loaded values are left out, and so is a ``weight`` that torch counted no write to while what it is computed from was
    written; under spectral norm that is a warning.
    """
    loaded = {normalize(name) for name in target.loaded}
    for linted in target.tensors:
        holder = linted.holders[0]
        hooks = holder.place.module._forward_pre_hooks.values()
        hook = next((each for each in hooks if isinstance(each, _HOOKS) and each.name == holder.leaf), None)
        stale = vars(holder.place.module).get(holder.leaf)
        if hook is None or not isinstance(stale, Tensor) or stale.is_meta:
            continue
        sources = [f"{linted.name}{end}" for end in ("_g", "_v", "_orig")]
        apart = _distance(hook, holder.place.module, stale)
        written = _version(stale) > 0 or not any(map(_version, holder.sources))
        if apart > 1e-3 and loaded.isdisjoint(sources) and (written or isinstance(hook, SpectralNorm)):
            names = " and ".join(sorted(holder.computed_as.hidden)) if holder.computed_as else ""
            text = f"will be computed from {names}, and is {apart:.3g} times its size apart from that"
            yield Hit(linted.name, text, None if written else "warning")
    for write in target.trace.lost:
        text = "was written after a parametrization had computed it, and is computed anew"
        yield Hit(write.site, text, "warning", line=write.line)


_HOOKS = (WeightNorm, SpectralNorm)


def _version(tensor: Tensor) -> int:
    """The number of writes that torch counted."""
    return 0 if tensor.is_inference() else tensor._version


def _distance(hook: WeightNorm | SpectralNorm, module: nn.Module, stale: Tensor) -> float:
    """The distance of a tensor from what the hook would compute, in parts of that; of spectral norm in direction."""
    with torch.no_grad():
        if isinstance(hook, SpectralNorm):
            computed: Any = module.get_parameter(f"{hook.name}_orig")
            stale = stale * (stale * computed).sum().sign() * computed.norm() / stale.norm().clamp(min=1e-12)
        else:
            computed = hook.compute_weight(module)
        return float((stale - computed).norm() / computed.norm().clamp(min=1e-12))


@check("TI604", "warning", "trace", "initialize it through one of its layers")
def tie_drawn_twice(target: LintTarget) -> Iterator[Hit]:
    """A tied weight that was filled or drawn more than once, through the layers that share it.

    The last one wins, whatever the others meant. A warning where they differ, a note where they are alike. Exact,
    where the trace is; a layer's own initialization does not count.
    """
    for linted in target.tensors:
        writes = [write for write in linted.writes if write.overwrites and not write.is_default]
        times = sum(write.count for write in writes)
        if linted.site.aliases and times > 1:
            kinds = list(dict.fromkeys(write.what for write in writes))
            names = abbreviate([view.name for view in linted.site.aliases])
            text = f"is also {names}, and was drawn {times} times: {', '.join(kinds)}"
            yield Hit(linted.name, text, "warning" if len(kinds) > 1 else "note")


@check("TI605", "warning", "sites", "make each anew (copy.deepcopy, then draw), or keep one on purpose")
def one_in_places(target: LintTarget) -> Iterator[Hit]:
    """A layer, or a parameter, that stands in several places of the model and is one.

    ``[layer] * 4`` is one layer four times; so is ``k = q``. A warning where all that a list holds is one, else a
    note, since weights are shared on purpose. Read off the tensors, so exact. Tables that are looked up are left
    out where they stand in no such list, and so are ties that a model declares.
    """
    declared = set(map(frozenset, _declared(target.model)))
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for linted in target.tensors:
        names = tuple(view.name for view in linted.site.views)
        if linted.is_parameter and len(names) > 1 and not any(map(frozenset(names).issuperset, declared)):
            owners, leaf = split_common_end(names)
            is_table = any(view.layout and view.layout.lookup for view in linted.site.views)
            if not is_table or _fills_a_list(owners, target):
                places[owners].append(leaf)
    for owners, leaves in places.items():
        which = f": {abbreviate(leaves)}" if leaves != [owners[0]] else ""
        severity: Severity = "warning" if _fills_a_list(owners, target) else "note"
        yield Hit(owners[0], f"is one with {abbreviate(owners[1:])}{which}", severity)


def _fills_a_list(owners: Sequence[str], target: LintTarget) -> bool:
    """Whether these are all that a numbered list holds of parameters and buffers."""
    parents = {owner.rpartition(".")[0] for owner in owners}
    if len(parents) > 1 or not all(owner.rpartition(".")[2].isdigit() for owner in owners):
        return False
    start = f"{parents.pop()}.".removeprefix(".")
    inside = {name[len(start) :].partition(".")[0] for name in target.by_name if name.startswith(start)}
    return inside == {owner[len(start) :] for owner in owners}


@check("TI606", "warning", "sites", "register it: nn.Parameter, register_buffer, nn.ModuleList or nn.ModuleDict")
def unregistered(target: LintTarget) -> Iterator[Hit]:
    """A tensor, or a layer with tensors, that a module holds as a plain attribute, in a list, a tuple or a dict.

    No state dict has it, ``to`` does not move it, no optimizer and no initialization reaches it. A warning for layers,
    for what requires a gradient, and for drawn values (20 or more in no order); one note for all other tensors, since
    constants are kept so on purpose. What is registered somewhere else in the model, shares memory with that, or is
    what the hooks of ``torch.nn.utils`` compute, is left out.
    """
    modules = set(target.model.modules())
    known = {_memory(tensor) for each in target.tensors for tensor in (each.tensor, *each.holders[0].sources)}
    others = []
    for path, module in target.model.named_modules():
        for key, value in vars(module).items():
            if key in INTERNAL or any(leaf.startswith(f"{key}_") for leaf in module._parameters):
                continue
            for name, item in _held(normalize(f"{path}.{key}".lstrip(".")), value):
                if isinstance(item, nn.Module):
                    inside = [*item.parameters(), *item.buffers()] if item not in modules else []
                    if inside:
                        yield Hit(name, f"{type(item).__name__} with {count(len(inside), 'tensor')} is not registered")
                elif _memory(item) not in known and (item.requires_grad or _is_drawn(item)):
                    shape = "no shape yet" if is_lazy(item) else shape_text(tuple(item.shape))
                    yield Hit(name, f"a tensor of {shape} is not registered")
                elif _memory(item) not in known:
                    others.append(name)
    if others:
        yield Hit("", f"plain attributes hold {count(len(others), 'tensor')}: {abbreviate(others)}", "note")


def _memory(tensor: Tensor) -> int:
    return storage_of(tensor) or id(tensor)


def _is_drawn(tensor: Tensor) -> bool:
    values = memory_of(tensor)
    return values is not None and values.is_floating_point() and not values.is_meta and is_shuffled(values.detach())


def _held(name: str, value: object, depth: int = 2) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """The modules and tensors in an attribute, those in containers included, with their names."""
    if isinstance(value, (nn.Module, Tensor)):
        yield name, value
    elif depth and isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _held(f"{name}[{key!r}]", item, depth - 1)
