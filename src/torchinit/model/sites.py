"""Sites: the parameters and buffers of a model, described without their values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, groupby
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._frozen import changed, collector_paused, quickly_made, stamper
from torchinit._text import full_name
from torchinit.errors import FanError
from torchinit.model.layouts import (
    BY_SHAPE,
    EXPERTS,
    Describe,
    Layout,
    ParameterKind,
    Slot,
    described_by,
    describing,
)
from torchinit.model.parametrizations import bare_class
from torchinit.model.states import DS_SHAPE, EMPTY, REGISTER_NONE, WAYS_OUT, WHY, State, missing_from, state_of
from torchinit.model.storage import entangled
from torchinit.model.traversal import HeldTensor, Kind, walk_tensors

Convention: TypeAlias = Literal["torch", "true"]


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
    one: Megatron marks it so, with ``tensor_model_parallel``. ``exit`` is there for weights and biases that lead out of
    a block, where somebody asked: empty if the block passes on what comes once they are zero, else why it does not.
    ``attention`` is the class of the attention around what is of one, and the size of its heads, where somebody asked
    and an attribute tells.
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
    exit: str | None = None
    attention: tuple[str, int] | None = None

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
        return DS_SHAPE in self.missing

    @property
    def views(self) -> tuple[Site, ...]:
        """The site as each of its modules sees it, itself first."""
        return (changed(self, aliases=()), *self.aliases) if self.aliases else (self,)

    @property
    def why(self) -> str:
        """The reason why no fill can be written to the site; empty where one can."""
        return WHY.get(self.state) or self.missing.removesuffix(REGISTER_NONE) or ("" if self.numel else EMPTY)

    @property
    def lack(self) -> str:
        """The reason why a parameter lacks the values that it should have, and the way out; empty for other sites.

        >>> Site("ids", (4,), state="integer").lack, Site("ids", (4,), state="integer", kind="buffer").lack
        ('holds whole numbers: load it (Pretrained), or make it a buffer', '')
        """
        if self.kind == "buffer" or self.state not in WAYS_OUT:
            return self.missing
        return f"{self.why}: {WAYS_OUT[self.state]}"

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
    return tuple(known_sites(walk_tensors(model)))


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


class KnownSites(tuple[Site, ...]):
    """The sites of a model, with the number of each one's kind: those of a kind differ in their names and places alone.

    Without ``kinds`` nobody has sorted them.
    """

    kinds: Sequence[int] = ()

    @classmethod
    def of(cls, sites: Iterable[Site], kinds: Sequence[int]) -> KnownSites:
        """The sites, each of its kind."""
        made = cls(sites)
        made.kinds = kinds
        return made

    def changed(self, others: Mapping[int, Site]) -> KnownSites:
        """The same with other sites in some places, each of a kind of its own."""
        kinds = [*self.kinds]
        for new, at in enumerate(others if kinds else (), start=max(kinds, default=0) + 1):
            kinds[at] = new
        return self.of((others.get(at, site) for at, site in enumerate(self)), kinds)


def group_sites(every: Iterable[HeldTensor]) -> list[tuple[Site, list[HeldTensor]]]:
    """The sites of what the modules of a model hold, each with all of its tensor's holdings."""
    entries = [*every]
    groups: dict[object, list[HeldTensor]] = defaultdict(list)
    for entry in entries:
        groups[entry.key].append(entry)
    return [*zip(known_sites(entries), groups.values(), strict=True)]


@collector_paused()
def known_sites(
    every: Sequence[HeldTensor],
    followers: Mapping[str, str | None] = MappingProxyType({}),
    complete: Callable[[Site], Site] = lambda site: site,
) -> KnownSites:
    """The sites of what the modules of a model hold.

    ``followers`` tells what follows each layer, ``complete`` adds to a site what it has in common with all of its kind.
    """
    # A model of a thousand tensors has some ten kinds: of the same layer, name, shape and dtype. All that a kind has in
    # common is found out on its first tensor; for the others only name and place are looked at. A tensor that is not
    # quite ordinary, or has several names, is a kind of its own.
    functions = cache(describing)  # for this model alone, since classes can be renamed and layouts registered
    numbers: dict[object, dict[object, int]] = defaultdict(dict)  # of the kinds of like modules, by tensor
    first: list[Site] = []  # of each kind
    rows: list[list[tuple[object, ...]]] = []  # of each kind, what the others do not have in common with the first
    kinds: list[int] = []
    keys = {entry.key for entry in every}
    has_aliases = len(keys) < len(every)
    turns: dict[tuple[int, str], int] = {}
    for (_, module, block, turn, hooks, tower), held in groupby(every, attrgetter("place")):
        cls: Any = type(module)
        describers, temporary, of_module = functions(cls), module._non_persistent_buffers_set, numbers[cls, hooks]
        is_plain, is_told = "parametrizations" not in module._modules, BY_SHAPE.issuperset(describers)
        for entry in held:
            name, _, leaf, tensor, kind, computed, _, flat = entry
            # Two names that a module has for one child are one turn.
            position = turns.setdefault((turn, leaf), len(turns)) if has_aliases else len(kinds)
            path = name[: -1 - len(leaf)]
            follower = followers.get(path)
            slot = None if is_told and leaf not in EXPERTS else _slot(entry, describers)
            alike: tuple[object, ...] = ()
            if (
                is_plain
                and type(tensor) in _ORDINARY
                and computed is None
                and tensor.layout is torch.strided
                and tensor.is_contiguous()
                and not (flat or tensor.is_inference() or getattr(tensor, "tensor_model_parallel", False))
            ):
                told = slot and (slot.kind, id(slot.layout), slot.zero_row)
                seen = tensor.shape, tensor.dtype, tensor.requires_grad
                alike = leaf, seen, kind, follower, told, leaf in temporary
            number = of_module.get(alike)
            if number is None:
                number = len(first)
                first.append(complete(_site(entry, position, slot or _slot(entry, describers), follower)))
                rows.append([])
                if alike and 0 not in tensor.shape:
                    of_module[alike] = number
            else:
                rows[number].append((name, path, block, tower, position))
            kinds.append(number)
    like = [chain((site,), _stamped(site, those)) for site, those in zip(first, rows, strict=True)]
    views = [next(like[number]) for number in kinds]
    # A key that is a number says that nothing else lies in the tensor's memory.
    is_alone = not has_aliases and {int}.issuperset(map(type, keys))
    return KnownSites.of(views, kinds) if is_alone else _merged(every, views, kinds)


def _merged(every: Sequence[HeldTensor], views: Sequence[Site], numbers: Sequence[int]) -> KnownSites:
    """The sites of views, with aliases and the others in their memory; each of these is a kind of its own."""
    sites: dict[object, Site] = {}
    kinds: dict[object, int] = {}
    aliases: dict[object, list[Site]] = defaultdict(list)
    for entry, view, number in zip(every, views, numbers, strict=True):
        if entry.key in sites:
            aliases[entry.key].append(view)
        else:
            sites[entry.key], kinds[entry.key] = view, number
    meeting = {entry.key: entry for entry in every if type(entry.key) is not int}
    shared = entangled({key: entry.tensor for key, entry in meeting.items() if entry.computed_as is None})
    for new, key in enumerate({**aliases, **shared}, start=max(numbers, default=0) + 1):
        views = [sites[key], *aliases.get(key, ())]
        # The padding row of an embedding is zero under whatever other name the table is used; what follows is known of
        # a tensor if it is the same behind all layers that have it, but for a look-up.
        zero_row = next((view.zero_row for view in views if view.zero_row is not None), None)
        behind = {view.activation for view in views if not (view.layout and view.layout.lookup)}
        activation = behind.pop() if len(behind) == 1 else None
        first, *others = [changed(view, zero_row=zero_row, activation=activation) for view in views]
        shares = tuple(sites[other].name for other in shared.get(key, ()))
        sites[key], kinds[key] = changed(first, aliases=tuple(others), shares=shares), new
    return KnownSites.of(sites.values(), [*kinds.values()])


_ORDINARY: Final = frozenset((Tensor, nn.Parameter))
_stamped: Final = stamper(Site, "name", "owner_name", "block", "tower", "position")


def _slot(entry: HeldTensor, describers: Sequence[Describe]) -> Slot:
    return Slot("other") if is_lazy(entry.tensor) else described_by(describers, entry.place.module, entry.leaf)


def _site(entry: HeldTensor, position: int, slot: Slot, follower: str | None) -> Site:
    name, (_, module, block, _, hooks, tower), leaf, tensor, kind, computed, _, flat = entry
    state: State = "flat" if flat else "fixed" if computed and not computed.assign else state_of(tensor)
    shape = () if state == "lazy" else tuple(tensor.shape)
    frozen, missing = False, ""
    if kind == "parameter":
        frozen = not any(source.requires_grad for source in computed.sources) if computed else not tensor.requires_grad
        missing = missing_from(entry) if 0 in shape and state == "ready" else ""
    owner, path = layer_class(bare_class(module)), name.rpartition(".")[0]
    is_saved = leaf not in module._non_persistent_buffers_set
    cut = getattr(tensor, "partition_dim", None) if getattr(tensor, "tensor_model_parallel", False) else None
    activation = follower if slot.kind == "weight" and not (slot.layout and slot.layout.lookup) else None
    return Site(  # by position: a call of a class with so many keywords takes three times as long
        name, shape, tensor.dtype, owner, path, kind, slot.kind, slot.layout, block, tower, slot.zero_row, state,
        computed is not None, position, is_saved, hooks, (), (), None, frozen, activation, None, None, missing, cut,
    )  # fmt: skip


def find_site(known: Iterable[Site], name: str) -> Site | None:
    """The site that has this name, its aliases' names included."""
    return next((site for site in known if name in {view.name for view in site.views}), None)
