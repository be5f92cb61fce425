"""Sites: the parameters and buffers of a model, described without their values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._collector import collector_paused
from torchinit._frozen import changed, quickly_made
from torchinit._text import full_name
from torchinit.errors import FanError
from torchinit.model.constructors import intent
from torchinit.model.dtensor import local_part
from torchinit.model.layouts import Describe, Layout, ParameterKind, Slot, described_by, describing
from torchinit.model.parametrizations import bare_class
from torchinit.model.storage import entangled, overlaps
from torchinit.model.traversal import HeldTensor, Kind, walk_tensors

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
"""The meaning of each state that a fill cannot work on, and the way out where there is one."""

_WAYS_OUT: dict[State, str] = {
    "integer": "load it (Pretrained), or make it a buffer",
    "quantized": "initialize the model before it is quantized",
    "sparse": "initialize it while it is dense",
}
"""The ways to give a parameter values where no rule can."""

EMPTY = "has no elements"
_DS_SHAPE = " (ds_shape"
_GATHERED = "deepspeed.zero.GatheredParameters([*model.parameters()], modifier_rank=0)"
_REGISTER_NONE = ": gather it first if it is partitioned, or register None in its place if it is to have none"


@dataclass(frozen=True, slots=True)
class LayerClass:
    """The class of a module, as plain data: its name, its direct bases' names, the full names of all above it.

    Data, so that a plan goes to JSON and comes back without an import, and a selector compares names.

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


@quickly_made
@dataclass(frozen=True, slots=True)
class Site:
    """One parameter or buffer, described without its values.

    >>> site = Site("layers.0.weight", (8, 4))
    >>> site.leaf, site.numel
    ('weight', 32)

    ``name`` is the qualified name without wrappers (``module.``, ``_orig_mod.`` and the like); ``owner`` and
    ``owner_name`` tell the module that holds it, ``parameter_kind`` whether it is a weight or a bias of that module;
    ``block`` is index and count in the list of blocks around it, ``tower`` among the blocks of all stages;
    ``position`` is its turn in the order of ``Module.apply`` (children first), in which MMEngine initializes.
    ``persistent`` tells whether it is part of the model's ``state_dict``. ``hooks`` names the class, of the owner or
    of a module above, that has hooks of its own for loading; it may be empty. A tied tensor is one site: ``aliases``
    describes it as the other modules that hold it see it. ``shares`` names other sites that lie in part of its memory
    (a view of another shape). ``neutral`` is the value at which it does nothing to the norm that holds it; None where
    it is not a norm's, or nobody could tell. ``frozen`` tells that it does not learn (``requires_grad`` is false).
    ``activation`` is what follows a weight's layer: a nonlinearity of :func:`~torchinit.knowledge.gain`, with its
    slope (``"relu"``, ``"leaky_relu(0.2)"``), ``"linear"`` for none, ``"norm"`` for a normalization; None where the
    model's structure does not show it. ``role`` is what it is for, as :func:`torchinit.roles` says; None where nobody
    asked, as in a plan of rules that do not select by roles. ``weight`` is the weight that a bias belongs to, where
    somebody asked. ``missing`` says what is known of a parameter without elements that should have some.
    ``partition_dim`` is the axis along which a plain tensor says that it was cut, and is one rank's part of a larger
    one: Megatron marks it so, with ``tensor_model_parallel``.
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
    tower: tuple[int, int] | None = None
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
    role: str | None = None
    weight: Site | None = None
    missing: str = ""
    partition_dim: int | None = None

    @property
    def leaf(self) -> str:
        """The last part of the name: ``weight`` of ``layers.0.weight``."""
        return self.name.rpartition(".")[2]

    @property
    def learning(self) -> Literal["trainable", "frozen", "buffer"]:
        """Whether the site is a parameter that learns, one that does not, or a buffer."""
        return "buffer" if self.kind == "buffer" else "frozen" if self.frozen else "trainable"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_partitioned(self) -> bool:
        """Whether its elements are surely elsewhere: DeepSpeed says so."""
        return _DS_SHAPE in self.missing

    @property
    def views(self) -> tuple[Site, ...]:
        """The site as each of its modules sees it, itself first."""
        return (changed(self, aliases=()), *self.aliases) if self.aliases else (self,)

    @property
    def why(self) -> str:
        """The reason why no fill can be written to the site; empty where one can."""
        return WHY.get(self.state) or self.missing.removesuffix(_REGISTER_NONE) or ("" if self.numel else EMPTY)

    @property
    def lack(self) -> str:
        """The reason why a parameter lacks the values that it should have, and the way out; empty for other sites.

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
    return tuple(site for site, _ in group_sites(walk_tensors(model)))


def with_weights(sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites of a model, each bias with the weight that stands beside it in its layer: ``Site.weight``.

    >>> [site.weight and site.weight.shape for site in with_weights(sites(nn.LSTM(2, 3, num_layers=1)))]
    [None, None, (12, 2), (12, 3)]
    """
    sites = tuple(sites)
    views = {view.name: view for site in sites for view in site.views}

    def completed(view: Site) -> Site:
        weight = views.get(f"{view.owner_name}.{view.leaf.replace('bias', 'weight')}".lstrip("."))
        aliases = tuple(map(completed, view.aliases))
        return changed(view, weight=weight, aliases=aliases) if view.parameter_kind == "bias" else view

    return tuple(map(completed, sites))


@collector_paused()
def group_sites(every: Iterable[HeldTensor]) -> list[tuple[Site, list[HeldTensor]]]:
    """The sites of what the modules of a model hold, each with all of its tensor's holdings."""
    functions = cache(describing)  # for this model alone, since classes can be renamed and layouts registered
    turns: dict[tuple[int, str], int] = {}
    groups: dict[object, list[HeldTensor]] = {}
    sites: dict[object, Site] = {}
    aliases: dict[object, list[Site]] = defaultdict(list)
    for entry in every:
        view = _site(entry, turns.setdefault((entry.place.turn, entry.leaf), len(turns)), functions)
        if sites.setdefault(entry.key, view) is view:
            groups[entry.key] = [entry]
        else:
            groups[entry.key].append(entry)
            aliases[entry.key].append(view)
    # A key that is a number says that nothing else lies in the tensor's memory.
    meeting = {key: group[0] for key, group in groups.items() if type(key) is not int}
    shared = entangled({key: entry.tensor for key, entry in meeting.items() if entry.computed_as is None})
    for key in {**aliases, **shared}:
        views = [sites[key], *aliases[key]]
        # The padding row of an embedding is zero under whatever other name the table is used.
        zero_row = next((view.zero_row for view in views if view.zero_row is not None), None)
        first, *others = [changed(view, zero_row=zero_row) for view in views]
        shares = tuple(groups[other][0].name for other in shared.get(key, ()))
        sites[key] = changed(first, aliases=tuple(others), shares=shares)
    return [*zip(sites.values(), groups.values(), strict=True)]


def _site(entry: HeldTensor, position: int, functions: Callable[[type], Sequence[Describe]]) -> Site:
    name, (_, module, block, _, hooks, tower), leaf, tensor, kind, computed, _, flat = entry
    state: State = "flat" if flat else "fixed" if computed and not computed.assign else _state(tensor)
    shape = () if state == "lazy" else tuple(tensor.shape)
    slot = described_by(functions(type(module)), module, leaf) if state != "lazy" else Slot("other")
    frozen, missing = False, ""
    if kind == "parameter":
        frozen = not any(source.requires_grad for source in computed.sources) if computed else not tensor.requires_grad
        missing = _missing(entry) if 0 in shape and state == "ready" else ""
    owner, path = layer_class(bare_class(module)), name.rpartition(".")[0]
    is_saved = leaf not in module._non_persistent_buffers_set
    cut = getattr(tensor, "partition_dim", None) if getattr(tensor, "tensor_model_parallel", False) else None
    return Site(  # by position: a call of a class with so many keywords takes three times as long
        name, shape, tensor.dtype, owner, path, kind, slot.kind, slot.layout, block, tower, slot.zero_row, state,
        computed is not None, position, is_saved, hooks, (), (), None, frozen, None, None, None, missing, cut,
    )  # fmt: skip


def _missing(entry: HeldTensor) -> str:
    """All that is known of a parameter without elements; nothing where its layer gives it none.

    DeepSpeed leaves an empty tensor where it has partitioned a parameter, and notes its shape in ``ds_shape``.
    """
    whole, intended = getattr(entry.tensor, "ds_shape", None), intent(entry.place.module, entry.leaf)
    shape = intended.shape if whole is None and intended else whole
    if shape is None:
        return EMPTY + _REGISTER_NONE
    if not math.prod(shape):
        return ""
    layer = f", but its {intended.layer} has {math.prod(intended.shape):,}" if intended else ""
    if whole is not None:
        return f"{EMPTY}{layer}: it is partitioned{_DS_SHAPE} {tuple(whole)}). Write it within {_GATHERED}"
    return f"{EMPTY}{layer}: is it partitioned? gather it first"


def _state(tensor: Tensor) -> State:
    is_usual = type(tensor) is nn.Parameter and tensor.dtype in _USUAL and tensor.layout is torch.strided
    if is_usual and tensor.is_contiguous() and not tensor.is_inference():
        return "ready"
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


_USUAL = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))

_PACKED = {getattr(torch, name, None) for name in ("float4_e2m1fn_x2", "float8_e8m0fnu")}
"""Floating by name, but two numbers an element, or powers of two that scale the blocks of another tensor."""


def find_site(known: Iterable[Site], name: str) -> Site | None:
    """The site that has this name, its aliases' names included."""
    return next((site for site in known if name in {view.name for view in site.views}), None)
