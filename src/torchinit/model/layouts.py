"""Layouts: the axes of weights that run over inputs and outputs, for each class of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

from torch import Tensor, nn

from torchinit._frozen import quickly_made
from torchinit._text import full_name
from torchinit.serialization.registry import load_plugin, plugins

ParameterKind = Literal["weight", "bias", "other"]


@quickly_made
@dataclass(frozen=True, slots=True)
class Layout:
    """Which axes of a weight run over inputs and which over outputs; the rest is receptive field.

    ``groups`` and ``stride`` divide the fan of dimension 0, the one that runs over all groups in every
    convolution of ``torch.nn`` (``stride`` is the product over the spatial dimensions). ``blocks`` is the
    number of equal parts that lie side by side along the first output axis (the four gates of an LSTM).
    ``batch_axes`` count whole weights (the experts of a stack). ``lookup`` marks a table whose rows are
    picked, not summed.

    >>> Layout().fans((64, 3, 7, 7))
    (147.0, 3136.0)
    >>> Layout(groups=64).fans((64, 1, 3, 3))
    (9.0, 9.0)
    """

    in_axes: tuple[int, ...] = (1,)
    out_axes: tuple[int, ...] = (0,)
    batch_axes: tuple[int, ...] = ()
    groups: int = 1
    stride: int = 1
    blocks: int = 1
    lookup: bool = False

    def __post_init__(self) -> None:
        axes = (*self.in_axes, *self.out_axes, *self.batch_axes)
        if len(set(axes)) != len(axes) or min(axes, default=0) < 0:
            raise ValueError(f"an axis has one meaning and counts from 0, but got {self}")
        if min(self.groups, self.stride, self.blocks) < 1:
            raise ValueError(f"groups, stride and blocks are at least 1, but got {self}")

    def fans(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """Fan-in and fan-out: the inputs that feed one output, and the outputs that one input feeds.

        They are floats, since a stride divides them: a 3x3 kernel with stride 2 has a fan-out of 2.25 a channel.
        """
        inputs = math.prod(shape[axis] for axis in self.in_axes)
        outputs = math.prod(shape[axis] for axis in self.out_axes) / self.blocks
        named = {*self.in_axes, *self.out_axes, *self.batch_axes}
        field = math.prod(size for axis, size in enumerate(shape) if axis not in named)
        shared = self.groups * self.stride
        fan_in = inputs * field / (shared if 0 in self.in_axes else 1)
        fan_out = outputs * field / (shared if 0 in self.out_axes else 1)
        return (1.0 if self.lookup else fan_in), fan_out


@quickly_made
@dataclass(frozen=True, slots=True)
class Slot:
    """The part that one parameter has in its layer: its kind, its layout, and the row that stays zero.

    >>> describe(nn.Embedding(10, 4, padding_idx=0), "weight").zero_row
    0
    """

    kind: ParameterKind
    layout: Layout | None = None
    zero_row: int | None = None


Describe = Callable[[nn.Module, str], Slot | Layout | None]
_Described = TypeVar("_Described", bound=Describe)

_KNOWN: dict[type | str, Describe] = {}
"""The layers that are described, by class or qualified name."""

_PLUGINS = "torchinit.layouts"
"""The entry points of other packages: the qualified name of a layer, and the function that describes it."""


def register_layout(layer: type[nn.Module] | str) -> Callable[[_Described], _Described]:
    """Register a function that describes the weights of a layer class, its subclasses included.

    ``layer`` is the class, or its qualified name where importing it would cost too much. The decorated
    function gets the module and the name of one of its parameters; it returns a :class:`Layout` for a
    weight, a :class:`Slot` to say more, or None to leave the parameter to the class above.

    >>> import torch
    >>> class Backwards(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.kernel = nn.Parameter(torch.empty(3, 5))
    >>> @register_layout(Backwards)
    ... def _(module, leaf):
    ...     return Layout(in_axes=(0,), out_axes=(1,)) if leaf == "kernel" else None
    >>> describe(Backwards(), "kernel").layout.fans((3, 5))
    (3.0, 5.0)
    """

    def remember(function: _Described) -> _Described:
        _KNOWN[layer] = function
        return function

    return remember


def describe(module: nn.Module, leaf: str) -> Slot:
    """The part that the parameter ``leaf`` has in ``module``: by the module's class, else by its own name."""
    return described_by(describing(type(module)), module, leaf)


def describing(cls: type) -> tuple[Describe, ...]:
    """The functions that describe the layers of a class: those of its own, then those of the classes above it."""
    return tuple(function for layer in cls.__mro__ if (function := _describing_itself(layer)))


def _describing_itself(layer: type) -> Describe | None:
    name = full_name(layer)
    known = _KNOWN.get(layer) or _KNOWN.get(name)
    if known is None and not layer.__module__.startswith(("torch.", "builtins")) and name in plugins(_PLUGINS):
        return cast("Describe", load_plugin(plugins(_PLUGINS)[name], "layer"))
    return known


def described_by(functions: Sequence[Describe], module: nn.Module, leaf: str) -> Slot:
    """The same as :func:`describe`, by the functions of the module's class."""
    for function in functions:
        description = function(module, leaf)
        if description is not None:
            return Slot("weight", description) if isinstance(description, Layout) else description
    return (leaf in EXPERTS and _of_experts(module, leaf)) or _BY_LEAF.get(leaf, _OTHER)


def known_layers() -> tuple[str, ...]:
    """The qualified names of the layer classes whose weights are described here, by registration or by plug-ins."""
    names = {layer if isinstance(layer, str) else full_name(layer) for layer in _KNOWN}
    return tuple(sorted(names | plugins(_PLUGINS).keys()))


EXPERTS = {"gate_up_proj": 2, "up_proj": 1, "down_proj": 1}
"""The weights of a mixture's experts in one tensor, as transformers calls them, and the parts side by side in each."""

BY_SHAPE: set[Describe] = set()
"""The functions whose answers depend on nothing but the tensor's name and shape."""


def _of_experts(module: nn.Module, leaf: str) -> Slot | None:
    """The layout of experts in one tensor: dimension 0 counts them, and the way up and the way down tell the others."""
    # Neither tells its axes alone, since any two sizes may be equal: down leads from one part of up's outputs back to
    # up's inputs. Where there is but one part and both readings fit, the module has to say which it is.
    name = next((name for name in EXPERTS if isinstance(getattr(module, name, None), Tensor)), "down_proj")
    up, down = getattr(module, name, None), getattr(module, "down_proj", None)
    if not (isinstance(up, Tensor) and isinstance(down, Tensor)):
        return None
    if not up.dim() == down.dim() == 3:
        return None
    (_, first, second), (_, inputs, inner) = up.shape, down.shape
    by_rows = (first, second) == (EXPERTS[name] * inner, inputs)
    by_columns = (second, first) == (EXPERTS[name] * inputs, inner)
    if by_rows and by_columns:
        by_columns = getattr(module, "is_transposed", None) is True
        by_rows = getattr(module, "is_transposed", None) is False
    if not (by_rows or by_columns):
        return None
    return Slot("weight", Layout((1 + by_rows,), (2 - by_rows,), batch_axes=(0,), blocks=EXPERTS[leaf]))


@lru_cache(maxsize=1024)
def _weight_slot(*numbers: Any) -> Slot:
    """The part of a weight that all layers of the same numbers share."""
    return Slot("weight", Layout(*numbers))


_OTHER = Slot("other")
_BY_LEAF = {"weight": Slot("weight"), "bias": Slot("bias")}


def _weight(layout: Layout) -> Describe:
    slot = Slot("weight", layout)

    def describe_weight(_: nn.Module, leaf: str) -> Slot | None:
        return slot if leaf == "weight" else None

    BY_SHAPE.add(describe_weight)
    return describe_weight


register_layout(nn.Linear)(_weight(Layout()))
register_layout(nn.Bilinear)(_weight(Layout(in_axes=(1, 2))))
register_layout("transformers.pytorch_utils.Conv1D")(_weight(Layout((0,), (1,))))  # of GPT-2: it computes x @ W
register_layout("transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts")(_weight(Layout((2,), (1,), (0,))))


@register_layout(nn.modules.conv._ConvNd)
def _convolution(module: Any, leaf: str) -> Slot | None:
    if leaf != "weight":
        return None
    axes = ((0,), (1,)) if module.transposed else ((1,), (0,))
    return _weight_slot(*axes, (), module.groups, math.prod(module.stride))


@register_layout(nn.Embedding)
@register_layout(nn.EmbeddingBag)
def _embedding(module: Any, leaf: str) -> Slot | None:
    return Slot("weight", Layout((0,), (1,), lookup=True), module.padding_idx) if leaf == "weight" else None


@register_layout(nn.modules.batchnorm._NormBase)
@register_layout(nn.LayerNorm)
@register_layout(nn.GroupNorm)
@register_layout(nn.RMSNorm)
@register_layout(nn.PReLU)
def _elementwise(module: nn.Module, leaf: str) -> Slot | None:
    """Scales that connect each input with one output, so that every axis counts whole weights."""
    return _scale(getattr(module, leaf).dim()) if leaf == "weight" else None


BY_SHAPE.add(_elementwise)


@lru_cache(maxsize=64)
def _scale(dimensions: int) -> Slot:
    return _weight_slot((), (), tuple(range(dimensions)))


@register_layout(nn.RNNBase)
def _recurrent(module: Any, leaf: str) -> Slot | None:
    if leaf.startswith("weight_hr"):  # the projection of an LSTM with proj_size has no gates
        return Slot("weight", Layout())
    return _gated(leaf, {"LSTM": 4, "GRU": 3}.get(module.mode, 1))


@register_layout(nn.RNNCellBase)
def _cell(module: Any, leaf: str) -> Slot | None:
    tensor = getattr(module, leaf, None)
    return _gated(leaf, 1 if tensor is None else max(1, tensor.shape[0] // max(1, module.hidden_size)))


def _gated(leaf: str, gates: int) -> Slot | None:
    if leaf.startswith("weight_"):
        return Slot("weight", Layout(blocks=gates))
    return Slot("bias", Layout((), (0,), blocks=gates)) if leaf.startswith("bias_") else None


@register_layout(nn.MultiheadAttention)
def _attention(module: nn.Module, leaf: str) -> Slot | None:
    if leaf in {"q_proj_weight", "k_proj_weight", "v_proj_weight"}:
        return Slot("weight", Layout())
    fused = {"in_proj_weight": Layout(blocks=3), "in_proj_bias": Layout((), (0,), blocks=3)}
    return Slot("weight" if "weight" in leaf else "bias", fused[leaf]) if leaf in fused else None
