"""Neutral values, at which a norm's scale or shift does nothing: known by class or found by asking the layer."""

from __future__ import annotations

import inspect
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, islice, product
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchinit._frozen import changed
from torchinit._text import full_name
from torchinit.model.sandbox import INTERNAL, Sandbox, answer
from torchinit.model.sites import KnownSites, Site
from torchinit.model.traversal import HeldTensor, walk_tensors

_TORCH_NORMS = (
    nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
_FORWARDS = frozenset(cls.forward for cls in _TORCH_NORMS)
_USUAL = {"weight": 1.0, "bias": 0.0}
KNOWN: dict[str, Mapping[str, float]] = {
    # It stands where a norm would, and only multiplies and adds.
    "transformers.models.mobilebert.modeling_mobilebert.NoNorm": _USUAL,
    **{full_name(cls): _USUAL for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, _TORCH_NORMS)},
}
"""The neutral values of norms that are not asked, by class and by the names of their parameters."""

_Shape: TypeAlias = tuple[int, ...]

_LONG = 64
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_NORM = re.compile(r"norm(?!al(?!i[sz]))")  # LayerNorm and BatchNormalization, but not NormalHead
_SHIFTS = frozenset({"bias", "beta", "shift"})


def is_named_norm(site: Site) -> bool:
    """Whether the class of the layer, or one above it, is called a norm."""
    return any(_NORM.search(full.rpartition(".")[2].lower()) for full in site.owner.lineage)


def looks_like_norm(site: Site) -> bool:
    """Whether the class, the layer or the parameter is called a norm, and it is not of another layer of torch."""
    names = f"{site.owner_name.rpartition('.')[2]}.{site.leaf}".lower()
    return not _is_torch_layer(site) and (is_named_norm(site) or bool(_NORM.search(names)))


def is_scale(site: Site) -> bool:
    """Whether the parameter multiplies or shifts element by element: that of a norm, the slopes of a PReLU."""
    is_elementwise = site.layout is not None and not (site.layout.in_axes or site.layout.out_axes)
    return is_elementwise or site.neutral is not None or (len(site.shape) < 2 and looks_like_norm(site))


def is_shift(site: Site) -> bool:
    """Whether the name says that the parameter is added."""
    return site.parameter_kind == "bias" or site.leaf in _SHIFTS


def neutrality(site: Site) -> str:
    """A sentence on a norm's parameter: the operation, and the value at which it is neutral.

    >>> neutrality(Site("norm.weight", (4,), neutral=0.0))
    'this norm computes 1 + weight: it is neutral at 0'
    """
    operation = "multiplies by" if site.neutral else "adds" if is_shift(site) else "computes 1 +"
    return f"this norm {operation} {site.leaf}: it is neutral at {site.neutral:g}"


def with_neutral(model: nn.Module, sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites of a model with the neutral values of its norms.

    Torch's own norms are known. Any other layer whose parameters are vectors, or that is called a norm, is asked, once
    for each distinct kind of layer: a copy of it is run in a sandbox. All others have none.

    >>> from torchinit.model.sites import sites
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4))
    >>> {site.name: site.neutral for site in with_neutral(model, sites(model))}
    {'0.weight': None, '0.bias': None, '1.weight': 1.0, '1.bias': 0.0}
    """
    return tuple(with_asked(model, KnownSites(map(with_known, sites))))


def with_known(site: Site) -> Site:
    """The site with its neutral value, if that is known of its class."""
    lineage = site.owner.lineage
    value = KNOWN.get(lineage[0], {}).get(site.leaf) if lineage and site.kind == "parameter" else None
    if value is None and not site.aliases:
        return site
    return changed(site, neutral=value, aliases=tuple(map(with_known, site.aliases)))


def with_asked(model: nn.Module, sites: KnownSites) -> KnownSites:
    """The sites with the neutral values of those norms, too, that have to be asked."""
    owners = {id(site.owner): site for site in sites}  # like layers share a class
    is_of_torch = {key: _is_torch_layer(site) for key, site in owners.items()}
    layers: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        if site.aliases or not is_of_torch[id(site.owner)]:
            for view in site.views:
                if view.kind == "parameter" and not _is_torch_layer(view):
                    layers[view.owner_name].append(view)
    unknown = {view.name for views in layers.values() if _may_be_norm(views) for view in views}
    asked = _asked(model, unknown) if unknown else {}

    def with_value(site: Site) -> Site:
        value = asked.get(site.name) if site.neutral is None else site.neutral
        return changed(site, neutral=value, aliases=tuple(map(with_value, site.aliases)))

    # Looked for under all names.
    found = {at: site for at, site in enumerate(sites) if asked and any(view.name in asked for view in site.views)}
    return sites.changed({at: with_value(site) for at, site in found.items()}) if found else sites


def _is_torch_layer(site: Site) -> bool:
    lineage = site.owner.lineage
    return bool(lineage) and lineage[0].startswith("torch.nn.")


def _may_be_norm(views: Sequence[Site]) -> bool:
    """Whether a layer is worth asking: it holds vectors, or is called a norm (some hold a matrix, heads by sizes)."""
    if not all(view.state == "ready" and view.dtype.is_floating_point for view in views):
        return False
    return all(max(view.shape, default=1) == view.numel for view in views) or any(map(looks_like_norm, views))


def _asked(model: nn.Module, names: set[str]) -> dict[str, float]:
    """The neutral values of these parameters, by their names; each distinct kind of layer is asked once."""
    parameters: dict[nn.Module, list[HeldTensor]] = defaultdict(list)
    for entry in walk_tensors(model):
        if entry.name in names and entry.kind == "parameter":
            parameters[entry.place.module].append(entry)
    answers: dict[object, Mapping[str, float]] = {}
    values: dict[str, float] = {}
    for module, entries in parameters.items():
        shapes = {entry.leaf: tuple(entry.tensor.shape) for entry in entries}
        key = _kind(module), *shapes.items()
        if key not in answers:
            inherits = getattr(type(module), "forward", None) in _FORWARDS
            answers[key] = _USUAL if inherits else {} if _is_block(module) else neutral_values(module, shapes)
        values.update({entry.name: answers[key][entry.leaf] for entry in entries if entry.leaf in answers[key]})
    return values


def _is_block(module: nn.Module) -> bool:
    """Whether there are parameters below, so that its own scale is that of a branch; slopes of its activation pass."""
    children = [child for name, child in module.named_children() if name != "parametrizations"]
    below = (layer for child in children for layer in child.modules() if not isinstance(layer, nn.PReLU))
    return any(True for layer in below for _ in layer.parameters(recurse=False))


def _kind(module: nn.Module) -> object:
    """A key that is equal only for layers that compute the same from the same numbers.

    The answer may depend on any attribute (``add_unit_offset=True``), so all of them count: plain values by themselves,
    all other objects by their identity, which holds as long as the model does. So two layers that answer alike may
    both be asked, and no layer is answered for by an unlike one.
    """
    attributes = {key: value for key, value in vars(module).items() if key not in INTERNAL}
    tensors = {**dict(module._parameters), **dict(module._buffers)}
    children = tuple((key, _kind(child)) for key, child in module.named_children())
    return type(module), _frozen(attributes, module), _frozen(tensors, module), children


def _frozen(value: Any, module: nn.Module) -> object:
    if isinstance(value, Tensor):
        return Tensor, tuple(value.shape), value.dtype
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType, value.__func__
    if type(value) in (list, tuple, dict, torch.Size) and len(value) <= _LONG:
        items = value.items() if isinstance(value, dict) else value
        return type(value), *(_frozen(item, module) for item in items)
    return (type(value), value) if isinstance(value, _PLAIN) else id(value)


# --- asking ----------------------------------------------------------------------------------------------------------

_Run: TypeAlias = Callable[[Mapping[str, float], Tensor], Tensor]
"""Runs a layer with a number for each of its parameters on an input."""
_Makers: TypeAlias = tuple[Callable[[Tensor], Tensor], ...]
"""Functions that make the inputs after the first from the first."""
_WIDE = 1 << 16
"""A layer wider than this is asked with the most usual input alone."""

_CLOSE = 0.02
_MARKED = 0.25
"""Relative differences up to the first count as none; those beyond the second do not come by chance."""
_LOUD = 2.5
"""The factor by which the size of a neutral norm's output may differ from 1: gates and activations change it."""


def neutral_values(module: nn.Module, shapes: Mapping[str, _Shape]) -> Mapping[str, float]:
    """The neutral values of a layer's own parameters, found by running a copy of it; empty for what is not a norm.

    **Is it a norm?** A norm forgets the size of its input: f(7x) = f(x). Layer scales, gates, slopes and all else that
    only multiplies, adds or bends fail this.

    **Where is it neutral?** Where the scale leaves nothing of the input tells how it is counted: f vanishes at w = 0 if
    the norm computes ``w * n(x)``, at w = -1 if it computes ``(1 + w) * n(x)``. That holds behind gates and
    activations, and for ``n(w * x)``, where the same number everywhere has no other effect. A norm that lets its input
    pass at w = 0 (``x + w * g(x)``, the GRN of ConvNeXt V2) is neutral there. So is any other whose output has the
    size 1 at w = 0, and another size at w = 1.

    The size of the output alone is wrong for one norm in twenty, those with gates and activations; whether f is linear
    in w says nothing where the scale comes first. What fails are norms that want inputs that are not guessed here, run
    on another device only, or hold their scale in a layer below: their value is then not known.

    >>> neutral_values(nn.RMSNorm(8), {"weight": (8,)})
    {'weight': 1.0}
    """

    def search() -> Mapping[str, float]:
        """The answer for the first input on which the layer acts as a norm."""
        for shape in _input_shapes(module, max(shapes.values(), key=math.prod)):
            x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
            answers = (_answer_on(module, shapes, training, x) for training in (True, False))
            if values := next((values for values in answers if values is not None), None):
                return values
        return {}

    return answer(search) or {}


def _answer_on(
    module: nn.Module, shapes: Mapping[str, _Shape], training: bool, x: Tensor
) -> Mapping[str, float] | None:
    """The answer for one input; empty if the layer does not act as a norm there, None if it does not run."""
    # The values of buffers are not looked at: they are 1 and then 0, and where that matters the two answers differ.
    attributes = [value for value in vars(module).values() if isinstance(value, Tensor)]
    has_others = len([*module.parameters(), *module.buffers(), *attributes]) > len(shapes)
    boxes = [Sandbox(module, shapes, training, rest) for rest in ((1.0, 0.0) if has_others else (1.0,))]
    values: dict[str, float] | None = None
    for others in _other_inputs(module):
        answers = [shown for box in boxes if (shown := _read(box, x, others, tuple(shapes))) is not None]
        first, *again = [shown for shown in answers if shown] or [{}]
        if any(shown != first for shown in again):
            return {}
        if answers:
            values = {**first, **(values or {})}
        if values and len(values) == len(shapes):
            break
    return values


def _input_shapes(module: nn.Module, shape: _Shape) -> Iterator[_Shape]:
    """Shapes of inputs for a layer whose scale has this shape, the most usual first."""
    # Few, so that torch does not start threads for them, and unlike the sizes of the scale, so that a wrong one shows.
    batch, time = islice((size for size in count(2) if size not in shape), 2)
    image = (batch, time)
    if 1 in shape and max(shape) > 1:  # it is laid out to be broadcast
        laid = tuple(time if size == 1 else size for size in shape)
        yield laid if len(shape) > 3 else (batch, *laid)
    core = tuple(size for size in shape if size > 1) or (24,)
    yield (batch, time, *core)
    if math.prod(core) > _WIDE:
        return
    yield (batch, *core)
    if len(core) > 1:
        return
    (channels,) = core
    yield (batch, channels, *image)
    yield from ((batch, *image, channels), (batch, channels, time), (batch, channels, time, *image))
    attributes = [value for key, value in vars(module).items() if key not in INTERNAL]
    for heads in dict.fromkeys(value for value in attributes if type(value) is int and 1 < value < channels):
        if channels % heads == 0:
            yield (batch, time, heads, channels // heads)
    for sizes in attributes:
        if isinstance(sizes, tuple) and sizes and all(type(size) is int for size in sizes):
            yield (batch, time, *sizes, channels)


def _other_inputs(module: nn.Module) -> Iterator[_Makers]:
    """Inputs besides the first, made from it: none if that will do, else gates that let all pass, sums, or its like."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    more = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)][2:]
    needed = sum(parameter.default is parameter.empty for parameter in more)
    for number in range(needed, min(len(more), needed + 1) + 1):
        for make in (torch.ones_like, torch.zeros_like, torch.clone) if number else (torch.clone,):
            yield (make,) * number


def _read(box: Sandbox, x: Tensor, others: _Makers, leaves: Sequence[str]) -> dict[str, float] | None:
    """The neutral values that a layer shows on these inputs, in any of its outputs; None if it raises."""

    def run(output: int, values: Mapping[str, float], x: Tensor) -> Tensor:
        return box(values, x, *(make(x) for make in others))[output].float().reshape(x.shape)

    try:
        outputs = len(box(dict.fromkeys(leaves, 1.0), x, *(make(x) for make in others)))
    except Exception:  # noqa: BLE001  # other people's code, on inputs that it may not have been made for
        return None
    values: dict[str, float] = {}
    for output in range(outputs):
        with suppress(Exception):
            values = {**_values(partial(run, output), x, leaves), **values}
    return values


def _values(run: _Run, x: Tensor, leaves: Sequence[str]) -> dict[str, float]:
    zeros = dict.fromkeys(leaves, 0.0)
    shifts = {leaf: 0.0 for leaf in leaves if leaf in _SHIFTS or _adds(run, x, zeros, leaf)}
    scales = [leaf for leaf in leaves if leaf not in shifts]
    if not scales:
        return shifts if _forgets_size(partial(run, zeros), x) else {}
    # Beside a second scale at 0 there may be nothing to see, beside a slope at 1 no norm.
    settings = [dict.fromkeys(leaves, rest) | shifts for rest in ((0.0, 1.0) if len(scales) > 1 else (0.0,))]
    values: dict[str, float] = {}
    for leaf, setting in product(scales, settings):
        if leaf not in values and (value := _of_scale(run, x, leaf, setting)) is not None:
            values[leaf] = value
    return {**values, **shifts} if values else {}


def _of_scale(run: _Run, x: Tensor, leaf: str, setting: Mapping[str, float]) -> float | None:
    """The neutral value of one scale, the other parameters being set to these numbers."""

    def f(value: float, x: Tensor) -> Tensor:
        return run({**setting, leaf: value}, x)

    at = 1.0 if _vanishes(f(0.0, x)) else 0.0
    y = f(at, x)
    if at == 0.0 and _same(y, x):
        return at if _weighs(lambda x: f(1.0, x) - x, x) else None
    if not _forgets_size(partial(f, at), x):
        return None
    if at == 1.0 or _vanishes(f(-1.0, x)):
        return at
    return at if abs(_size(y) - 1) < _CLOSE and abs(_size(f(1.0, x)) - 1) > _MARKED else None


def _adds(run: _Run, x: Tensor, zeros: Mapping[str, float], leaf: str) -> bool:
    """Whether a parameter, the others at zero, adds the same to whatever comes in."""
    added, again = (run({**zeros, leaf: 1.0}, x) - run(zeros, x) for x in (x, x.roll(1)))
    return not _vanishes(added) and _same(added, again)


def _forgets_size(f: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the output depends on the input, but not on its size, and is not much larger or smaller than 1."""
    y = f(x)
    return 1 / _LOUD < _size(y) < _LOUD and _same(f(7 * x), y) and not _same(f(x.roll(1)), y)


def _weighs(g: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether one half of the output depends on the other half of the input, and not by a sum: by statistics."""
    half, other = x.shape[-1] // 2, x.roll(1)
    louder = torch.cat([x[..., :half], 7 * x[..., half:]], -1)
    return not (_same(g(louder)[..., :half], g(x)[..., :half]) or _same(g(x + other), g(x) + g(other)))


def _size(y: Tensor) -> float:
    return float(y.square().mean().sqrt())


def _vanishes(y: Tensor) -> bool:
    """Whether nothing is left: zeros, or 0/0 where a norm divides by the size of nothing."""
    return not _size(y) > 1e-3


def _same(y: Tensor, other: Tensor) -> bool:
    return _size(y - other) <= _CLOSE * _size(other)
