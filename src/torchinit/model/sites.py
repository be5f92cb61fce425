"""Sites: the parameters and buffers of a model, described without their values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from torchinit.errors import FanError
from torchinit.model.constructors import intent
from torchinit.model.dtensor import local_part
from torchinit.model.layouts import Layout, ParameterKind, Slot, describe
from torchinit.model.storage import entangled, overlaps
from torchinit.model.traversal import Held, Kind, held

Convention: TypeAlias = Literal["torch", "true"]
State: TypeAlias = Literal[
    "ready", "integer", "quantized", "sparse", "lazy", "inference", "overlapping", "fixed", "flat"
]

WHY: dict[State, str] = {
    "integer": "holds whole numbers",
    "quantized": "is quantized",
    "sparse": "is a sparse tensor",
    "lazy": "has no shape yet: run the model once on an example",
    "inference": "was made in inference mode and cannot be written: build the model outside of it",
    "overlapping": "has elements that share memory (an expanded tensor?): give it memory of its own",
    "flat": (
        "is a piece of what FSDP1 has flattened: give values before it wraps the model, or while it does"
        " (param_init_fn), or use fully_shard (FSDP2)"
    ),
    "fixed": "is computed by a parametrization without right_inverse, so no value can be given to it",
}
"""What each state that a fill cannot work on means, and the way out where there is one."""

_WAYS_OUT: dict[State, str] = {
    "integer": "load it (Pretrained), or make it a buffer",
    "quantized": "initialize the model before it is quantized",
    "sparse": "initialize it while it is dense",
}
"""What helps where a parameter should have values and no rule can give it any."""

EMPTY = "has no elements"
_REGISTER_NONE = ": gather it first if it is partitioned, or register None in its place if it is to have none"


@dataclass(frozen=True, slots=True)
class LayerClass:
    """The class of a module, as plain data: its name, its direct bases' names, its whole lineage.

    >>> layer_class(nn.Conv2d).name, layer_class(nn.Conv2d).bases
    ('Conv2d', ('_ConvNd',))
    """

    name: str
    bases: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()

    def is_a(self, name: str) -> bool:
        """Whether the class or one above it has this name: bare, qualified, or as a package above exports it.

        >>> layer_class(nn.Conv2d).is_a("torch.nn.Conv2d"), layer_class(nn.Conv2d).is_a("Module")
        (True, True)
        """
        package, _, last = name.rpartition(".")
        prefix = package and package + "."
        return any(full.rpartition(".")[2] == last and full.startswith(prefix) for full in self.lineage)


@lru_cache(maxsize=4096)
def layer_class(cls: type) -> LayerClass:
    """The description of a class."""
    above = cls.__mro__[:-1]
    return LayerClass(cls.__name__, tuple(base.__name__ for base in cls.__bases__), tuple(map(full_name, above)))


def full_name(cls: type) -> str:
    """Module and name of a class, as they stand in :attr:`LayerClass.lineage`."""
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class Site:
    """One parameter or buffer, described without its values.

    >>> site = Site("layers.0.weight", (8, 4))
    >>> site.leaf, site.numel
    ('weight', 32)

    ``name`` is the qualified name without wrappers (``module.``, ``_orig_mod.`` and the like); ``owner`` and
    ``owner_name`` tell the module that holds it, ``parameter_kind`` whether it is a weight or a bias of that module;
    ``block`` is index and count in the innermost ``ModuleList`` or ``Sequential`` of like blocks around it;
    ``position`` is its turn in the order of ``Module.apply`` (children first), in which MMEngine initializes.
    ``persistent`` tells whether it is part of the model's ``state_dict``. ``hooks`` names the class, of the owner or
    of a module above, that has hooks of its own for loading; it may be empty. A tied tensor is one site: ``aliases``
    describes it as the other modules that hold it see it. ``shares`` names other sites that lie in part of its memory
    (a view of another shape). ``neutral`` is the value at which it does nothing to the norm that holds it; None where
    it is not a norm's, or nobody could tell. ``frozen`` tells that it does not learn (``requires_grad`` is false).
    ``missing`` says what is known of a parameter without elements that should have some.

    ``activation`` is what follows the layer of a weight: a nonlinearity, as :func:`torchinit.knowledge.gain` knows it, with its
    slope (``"relu"``, ``"leaky_relu(0.2)"``), ``"linear"`` for none, ``"norm"`` for a normalization; None where the
    model's structure does not show it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    owner: LayerClass = LayerClass("Module")
    owner_name: str = ""
    kind: Kind = "parameter"
    parameter_kind: ParameterKind = "other"
    layout: Layout | None = None
    block: tuple[int, int] | None = None
    zero_row: int | None = None
    state: State = "ready"
    parametrized: bool = False
    position: int = 0
    persistent: bool = True
    hooks: str = ""
    aliases: tuple[Site, ...] = ()
    shares: tuple[str, ...] = ()
    neutral: float | None = None
    frozen: bool = False
    activation: str | None = None
    missing: str = ""

    @property
    def leaf(self) -> str:
        """The last part of the name: ``weight`` of ``layers.0.weight``."""
        return self.name.rpartition(".")[2]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def views(self) -> tuple[Site, ...]:
        """The site as each of its modules sees it, itself first."""
        return (replace(self, aliases=()), *self.aliases) if self.aliases else (self,)

    @property
    def why(self) -> str:
        """Why no fill can be written to the site; nothing where one can.

        >>> Site("ids", (4,), state="integer").why
        'holds whole numbers'
        """
        return WHY.get(self.state) or self.missing.removesuffix(_REGISTER_NONE) or ("" if self.numel else EMPTY)

    @property
    def lack(self) -> str:
        """Why a parameter has no values although it should have some, with the way out; nothing of any other site.

        >>> Site("ids", (4,), state="integer").lack, Site("ids", (4,), state="integer", kind="buffer").lack
        ('holds whole numbers: load it (Pretrained), or make it a buffer', '')
        """
        if self.kind == "buffer" or self.state not in _WAYS_OUT:
            return self.missing
        return f"{self.why}: {_WAYS_OUT[self.state]}"

    def fans(self, convention: Convention = "torch") -> tuple[float, float]:
        """Fan-in and fan-out.

        ``"torch"`` counts as ``torch.nn.init`` does, from the shape alone: dimension 1 is the input,
        dimension 0 the output, whatever the layer. ``"true"`` counts the connections that the layer
        makes: groups, transposed kernels, stride, gates, experts, look-ups.

        Raises FanError for a tensor with fewer than two dimensions.

        >>> site = Site("up.weight", (16, 32, 3, 3), layout=Layout(in_axes=(0,), out_axes=(1,)))
        >>> site.fans(), site.fans("true")
        ((288.0, 144.0), (144.0, 288.0))
        """
        layout = self.layout if convention == "true" and self.layout else Layout()
        if len(self.shape) < 2:
            raise FanError(
                f"{self.name!r} has shape {self.shape}: fans need at least 2 dimensions. Give it an initializer"
                " that does not depend on fans, for example Constant or Normal"
            )
        return layout.fans(self.shape)


def sites(model: nn.Module) -> tuple[Site, ...]:
    """The parameters and buffers of a model, on any device, meta included.

    They come in the order of ``Module.apply``: children before their parents. Tensors that share memory
    are one site with aliases.

    >>> [site.name for site in sites(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False)))]
    ['0.weight', '0.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    return tuple(site for site, _ in grouped(held(model)))


def grouped(every: Iterable[Held]) -> list[tuple[Site, list[Held]]]:
    """The sites of what the modules of a model hold, each with all of its tensor's holdings."""
    found: dict[object, list[Held]] = {}
    turns: dict[tuple[int, str], int] = {}
    for one in every:
        turns.setdefault((one.place.turn, one.leaf), len(turns))
        found.setdefault(one.key, []).append(one)
    names = {key: group[0].name for key, group in found.items()}
    shared = entangled({key: group[0].tensor for key, group in found.items() if group[0].way is None})
    return [
        (
            _tie(
                [_site(one, turns[one.place.turn, one.leaf]) for one in group],
                shares=tuple(names[other] for other in shared.get(key, ())),
            ),
            group,
        )
        for key, group in found.items()
    ]


def _tie(group: list[Site], shares: tuple[str, ...]) -> Site:
    # The padding row of an embedding is zero under whatever other name the table is used.
    row = next((site.zero_row for site in group if site.zero_row is not None), None)
    if row is not None:
        group = [replace(site, zero_row=row) for site in group]
    first, *others = group
    return replace(first, aliases=tuple(others), shares=shares) if others or shares else first


def _site(one: Held, position: int) -> Site:
    module = one.place.module
    state: State = "flat" if one.flat else "fixed" if one.way and not one.way.assign else _state(one.tensor)
    is_empty = state == "ready" and one.kind == "parameter" and not one.tensor.numel()
    slot = describe(module, one.leaf) if state != "lazy" else Slot("other")
    sources = one.way.sources if one.way else (one.tensor,)
    return Site(
        name=one.name,
        shape=() if state == "lazy" else tuple(one.tensor.shape),
        dtype=one.tensor.dtype,
        owner=layer_class(type_before_parametrizations(module)),
        owner_name=one.name.rpartition(".")[0],
        kind=one.kind,
        parameter_kind=slot.kind,
        layout=slot.layout,
        block=one.place.block,
        zero_row=slot.zero_row,
        state=state,
        parametrized=one.way is not None,
        position=position,
        persistent=one.leaf not in module._non_persistent_buffers_set,
        hooks=one.place.hooks,
        frozen=one.kind == "parameter" and not any(tensor.requires_grad for tensor in sources),
        missing=_missing(one) if is_empty else "",
    )


def _missing(one: Held) -> str:
    """What is known of a parameter without elements; nothing where its layer gives it none.

    DeepSpeed leaves an empty tensor where it has partitioned a parameter, and notes its shape in ``ds_shape``.
    """
    whole, made = getattr(one.tensor, "ds_shape", None), intent(one.place.module, one.leaf)
    shape = made.shape if whole is None and made else whole
    if shape is None:
        return EMPTY + _REGISTER_NONE
    if not math.prod(shape):
        return ""
    layer = f", but its {made.layer} has {math.prod(made.shape):,}" if made else ""
    known = f" (ds_shape {tuple(whole)})" if whole is not None else ""
    return f"{EMPTY}{layer}: is it partitioned{known}? gather it first"


def _state(tensor: Tensor) -> State:
    if is_lazy(tensor):
        return "lazy"
    if tensor.is_quantized or tensor.dtype in _PACKED:
        return "quantized"
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return "integer"
    if tensor.layout != torch.strided:
        return "sparse"
    if local_part(tensor).is_inference():
        return "inference"
    return "overlapping" if overlaps(tensor) else "ready"


_PACKED = {getattr(torch, name, None) for name in ("float4_e2m1fn_x2", "float8_e8m0fnu")}
"""Floating by name, but two numbers an element, or powers of two that scale the blocks of another tensor."""


def find(known: Iterable[Site], name: str) -> Site | None:
    """The site that has this name, its aliases' names included."""
    return next((site for site in known if name in {view.name for view in site.views}), None)
