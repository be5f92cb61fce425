"""Sites: the parameters and buffers of a model, described without their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from torchinit.core.layouts import Layout, Role, Slot, describe
from torchinit.core.names import normalize
from torchinit.errors import FanError

Convention: TypeAlias = Literal["torch", "true"]
Kind: TypeAlias = Literal["parameter", "buffer"]
State: TypeAlias = Literal["ready", "integer", "quantized", "sparse", "lazy", "inference", "overlapping", "fixed"]

WHY: dict[State, str] = {
    "integer": "holds whole numbers",
    "quantized": "is quantized",
    "sparse": "is a sparse tensor",
    "lazy": "has no shape yet: run the model once on an example",
    "inference": "was made in inference mode and cannot be written: build the model outside of it",
    "overlapping": "has elements that share memory (an expanded tensor?): give it memory of its own",
    "fixed": "is computed by a parametrization without right_inverse, so no value can be given to it",
}
"""What each state that a fill cannot work on means, and the way out where there is one."""


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
        """Whether the class or one above it has this name, bare or qualified."""
        return any(name in (full, full.rpartition(".")[2]) for full in self.lineage)


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

    ``name`` is the qualified name without wrappers (``module.``, ``_orig_mod.`` and the like); ``owner``
    and ``owner_name`` tell the module that holds it; ``block`` is index and count in the innermost
    ``ModuleList`` or ``Sequential`` of like blocks around it; ``position`` is its turn in the order of
    ``Module.apply`` (children first), in which MMEngine initializes. A tied tensor is one site: ``aliases``
    describes it as the other modules that hold it see it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    owner: LayerClass = LayerClass("Module")
    owner_name: str = ""
    kind: Kind = "parameter"
    role: Role = "other"
    layout: Layout | None = None
    block: tuple[int, int] | None = None
    zero_row: int | None = None
    state: State = "ready"
    parametrized: bool = False
    position: int = 0
    aliases: tuple[Site, ...] = ()

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


@dataclass(frozen=True, slots=True)
class Place:
    """A module where it stands in a model: its name, the module, and its block."""

    name: str
    module: nn.Module
    block: tuple[int, int] | None = None


def places(model: nn.Module) -> list[Place]:
    """Every module in the order of ``Module.apply``: children first; a shared module once a parent."""
    found: list[Place] = []

    def walk(module: nn.Module, name: str, block: tuple[int, int] | None) -> None:
        numbered = _is_block_list(module)
        children = [child for child in dict.fromkeys(module._modules.values()) if child is not None]
        names = {id(child): key for key, child in reversed(module._modules.items())}
        for index, child in enumerate(children):
            below = (index, len(children)) if numbered else block
            walk(child, _join(name, names[id(child)]), below)
        found.append(Place(name, module, block))

    walk(model, "", None)
    return found


def _is_block_list(module: nn.Module) -> bool:
    """Whether the children are the like blocks of a deep model: one class, made of layers themselves."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
        return False
    if isinstance(module, nn.Sequential) and len(module) < 2:
        return False
    classes = {type(child) for child in module}
    return len(classes) == 1 and all(child._modules for child in module)


def sites(model: nn.Module) -> tuple[Site, ...]:
    """The parameters and buffers of a model, on any device, meta included.

    They come in the order of ``Module.apply``: children before their parents. Tensors that share memory
    are one site with aliases.

    >>> [site.name for site in sites(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False)))]
    ['0.weight', '0.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    seen: dict[object, list[Site]] = {}
    position = 0
    for place in places(model):
        for leaf, tensor, kind, parametrized in tensors(place.module):
            key = (id(place.module), leaf) if parametrized else _identity(tensor)
            site = _site(place, leaf, tensor, kind, parametrized, position)
            position += 1
            seen.setdefault(key, []).append(site)
    return tuple(_tie(group) for group in seen.values())


def _tie(group: list[Site]) -> Site:
    if len(group) == 1:
        return group[0]
    # The padding row of an embedding is zero under whatever other name the table is used.
    row = next((site.zero_row for site in group if site.zero_row is not None), None)
    first, *others = (replace(site, zero_row=row) for site in group)
    return replace(first, aliases=tuple(others))


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, Kind, bool]]:
    """The module's own tensors: name, tensor, kind, and whether a parametrization computes it."""
    if is_parametrized(module):
        for leaf in cast("nn.ModuleDict", module.parametrizations):
            with torch.no_grad():
                yield leaf, getattr(module, leaf), "parameter", True
    hidden = isinstance(module, nn.utils.parametrize.ParametrizationList)
    for leaf, parameter in module._parameters.items():
        if parameter is not None and not (hidden and leaf.startswith("original")):
            yield leaf, parameter, "parameter", False
    for leaf, buffer in module._buffers.items():
        if buffer is not None and not (hidden and leaf.startswith("original")):
            yield leaf, buffer, "buffer", False


def _site(place: Place, leaf: str, tensor: Tensor, kind: Kind, parametrized: bool, position: int) -> Site:
    state = "fixed" if parametrized and not _invertible(place.module, leaf) else _state(tensor)
    slot = describe(place.module, leaf) if state != "lazy" else Slot("other")
    return Site(
        name=normalize(_join(place.name, leaf)),
        shape=() if state == "lazy" else tuple(tensor.shape),
        dtype=tensor.dtype,
        owner=layer_class(type_before_parametrizations(place.module)),
        owner_name=normalize(place.name),
        kind=kind,
        role=slot.role,
        layout=slot.layout,
        block=place.block,
        zero_row=slot.zero_row,
        state=state,
        parametrized=parametrized,
        position=position,
    )


def _state(tensor: Tensor) -> State:
    if is_lazy(tensor):
        return "lazy"
    if tensor.is_quantized:
        return "quantized"
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return "integer"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_inference():
        return "inference"
    return "overlapping" if _overlaps(tensor) else "ready"


def _invertible(module: nn.Module, leaf: str) -> bool:
    chain = cast("nn.ModuleDict", module.parametrizations)[leaf]
    return all(hasattr(step, "right_inverse") for step in cast("nn.ModuleList", chain))


def _overlaps(tensor: Tensor) -> bool:
    """Whether two indices may reach the same memory: no stride may lie within the reach of the smaller ones."""
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _identity(tensor: Tensor) -> object:
    """What two names of one tensor have in common: its memory, or the object where there is none."""
    if is_lazy(tensor) or tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter) or not tensor.numel():
        return id(tensor)
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def find(known: Iterable[Site], name: str) -> Site | None:
    """The site that has this name, its aliases' names included."""
    return next((site for site in known if name in {view.name for view in site.views}), None)
