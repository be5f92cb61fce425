"""Partitions: the part of each site that each rank of a mesh will hold, by arithmetic on shapes alone.

Nothing of torch.distributed is needed, so a mesh of thousands of ranks costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torchinit._text import count, did_you_mean
from torchinit.errors import RunError
from torchinit.model.names import check_glob, glob_matches
from torchinit.model.sites import Site

Way: TypeAlias = Literal["replicate", "fsdp", "tp", "ep"]
"""The use of a dimension of a mesh: whole copies, FSDP2, tensor parallelism, experts apart."""

WAYS: tuple[Way, ...] = get_args(Way)
_USUAL: dict[int, tuple[Way, ...]] = {1: ("fsdp",), 2: ("fsdp", "tp"), 3: ("replicate", "fsdp", "tp")}

_COLUMNS = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "wq", "wk", "wv", "wqkv", "c_attn", "query", "key", "value"),
        *("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "c_fc", "fc1"),
        *("embed_tokens", "tok_embeddings", "wte", "lm_head", "output"),
    )
)
"""Layers whose outputs, or whose rows of a table, tensor parallelism divides, by the last part of their name."""

_ROWS = frozenset(("o_proj", "out_proj", "wo", "down_proj", "w2", "c_proj", "fc2"))
"""Layers whose inputs it divides."""


@dataclass(frozen=True, slots=True)
class PartitionOverride:
    """An axis that a site is cut along in one dimension of the mesh, by name; None: it is not cut."""

    way: Way
    name: str
    axis: int | None

    def matches(self, site: Site) -> bool:
        return any(glob_matches(self.name, view.name) for view in site.views)


@dataclass(frozen=True, slots=True)
class Partition:
    """A mesh, the use of each of its dimensions, and the sites for which that is something else than usual.

    FSDP2 cuts parameters along axis 0, after tensor parallelism has cut them; buffers stay whole. Tensor parallelism
    cuts layers with the usual names (``q_proj``, ``wo``, ...) as Megatron does, and a stack of experts by experts, as
    ``ep`` does. A later placing wins.

    >>> halves = Partition((4, 2), ("fsdp", "tp"))
    >>> site = Site("layers.0.q_proj.weight", (30, 16))
    >>> halves.axes(site), halves.local_shape(site, (0, 0)), halves.local_shape(site, (3, 1))
    ((0, 0), (4, 16), (3, 16))
    """

    sizes: tuple[int, ...]
    ways: tuple[Way, ...]
    overrides: tuple[PartitionOverride, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"a mesh has dimensions of at least 1 rank, but got {self.sizes}")
        if len(self.sizes) != len(self.ways):
            raise ValueError(f"a mesh of {count(len(self.sizes), 'dimension')} needs as many ways, but got {self.ways}")

    @property
    def ranks(self) -> int:
        return math.prod(self.sizes)

    def __str__(self) -> str:
        return " x ".join(f"{way} {size}" for way, size in zip(self.ways, self.sizes, strict=True))

    def axes(self, site: Site) -> tuple[int | None, ...]:
        """The axis along which each dimension of the mesh cuts the site; None where its ranks hold the same."""
        if site.kind == "buffer" or not site.shape:
            return (None,) * len(self.ways)
        return tuple(self._axis(way, site) for way in self.ways)

    def _axis(self, way: Way, site: Site) -> int | None:
        for placing in reversed(self.overrides):
            if placing.way == way and placing.matches(site):
                return placing.axis
        # A stack is cut by experts, in the dimension that is for them, or else by tensor parallelism. To cut within the
        # experts is the other way to do it, which nothing in a model tells: a placing says so.
        experts = _expert_axis(site)
        if way == "tp" and experts is not None:
            return None if "ep" in self.ways else experts
        return {"replicate": None, "fsdp": 0, "ep": experts, "tp": _tensor_axis(site)}[way]

    def local_shape(self, site: Site, coordinate: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part that the rank at this place of the mesh holds."""
        shape = list(site.shape)
        cuts = list(zip(self.ways, self.axes(site), self.sizes, coordinate, strict=True))
        for _, axis, pieces, at in sorted(cuts, key=lambda cut: cut[0] == "fsdp"):  # FSDP2 cuts what the others left
            if axis is not None:
                shape[axis] = piece(shape[axis], pieces, at)
        return tuple(shape)

    def check(self, sites: Iterable[Site]) -> None:
        """Raise RunError where a placing matches no site, or names an axis that a site does not have."""
        known, problems = list(sites), []
        for placing in self.overrides:
            text, matched = f"{placing.way}:{placing.name}", [site for site in known if placing.matches(site)]
            if placing.way not in self.ways:
                problems.append(f"{text}: the mesh has no dimension {placing.way!r}: it is {self}")
            if not matched:
                near = did_you_mean(placing.name, [site.name for site in known])
                problems.append(f"{text} matches none of {count(len(known), 'site')}{near}")
            problems += [
                f"{text}: {site.name} has no axis {placing.axis}: its shape is {site.shape}"
                for site in matched
                if placing.axis is not None and placing.axis >= len(site.shape)
            ]
        if problems:
            raise RunError(f"{count(len(problems), 'mistake')} in the placements", problems)


def piece(size: int, pieces: int, at: int) -> int:
    """The length of one piece, as ``torch.chunk`` cuts: all of one size, the last ones shorter or empty."""
    each = -(-size // pieces)
    return max(0, min(each, size - at * each))


def _expert_axis(site: Site) -> int | None:
    """The axis over the experts of a stack."""
    layout = site.layout
    if len(site.shape) < 3:
        return None
    if layout is not None and layout.batch_axes:
        return layout.batch_axes[0]
    return 0 if "experts" in site.name.split(".") else None


def _tensor_axis(site: Site) -> int | None:
    """The axis that tensor parallelism cuts, as Megatron does: outputs of some layers, inputs of others."""
    layer, layout = site.name.rpartition(".")[0].rpartition(".")[2], site.layout
    table = layout is not None and layout.lookup
    outputs = layout.out_axes[0] if layout and layout.out_axes and not table else 0
    inputs = layout.in_axes[0] if layout and layout.in_axes else 1
    if layer in _COLUMNS:
        return 0 if len(site.shape) == 1 or table else outputs
    # The bias behind cut inputs is whole on every rank: it is added once, after the sum over ranks.
    return inputs if layer in _ROWS and len(site.shape) > 1 else None


def parse_mesh(text: str, ways: str = "") -> Partition:
    """The partition that ``512x8`` and ``fsdp,tp`` stand for, without ways the usual ones; else raises ValueError."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"a mesh is numbers of ranks such as 512x8, but got {text!r}")
    sizes = tuple(map(int, parts))
    if not ways and len(sizes) not in _USUAL:
        raise ValueError(f"what do the {len(sizes)} dimensions of {text} do? Name them, as in replicate,fsdp,tp,ep")
    return Partition(sizes, tuple(map(_way, ways.split(","))) if ways else _USUAL[len(sizes)])


def _way(text: str) -> Way:
    for way in WAYS:
        if way == text.strip():
            return way
    raise ValueError(f"a dimension of a mesh does one of {', '.join(WAYS)}, but got {text.strip()!r}")


def parse_override(text: str) -> PartitionOverride:
    """The placing that ``tp:**.router.weight=0`` or ``=replicate`` stands for; raises ValueError for anything else."""
    way, colon, rest = text.partition(":")
    name, equals, axis = rest.rpartition("=")
    if not (colon and equals and (axis == "replicate" or axis.isdecimal())):
        raise ValueError(f"a placement is way:name=axis, as in tp:**.router.weight=0, or =replicate, but got {text!r}")
    check_glob(name)
    return PartitionOverride(_way(way), name, None if axis == "replicate" else int(axis))
