"""Costs: the memory and the time that a plan takes on each rank of a mesh, before there is any."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from torchinit._text import columns, shape_text
from torchinit.distributed.estimate.partition import Partition
from torchinit.distributed.estimate.rates import Rates, kind_of
from torchinit.errors import count
from torchinit.initializers.elementwise import Fill
from torchinit.model.shards import Box
from torchinit.model.sites import Site
from torchinit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Group:
    """Sites that differ in nothing but the numbers in their names, and what the first rank holds of each."""

    name: str
    sites: int
    shape: tuple[int, ...]
    dtype: str
    fill: str
    axes: tuple[int | None, ...]
    local: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class WholeFill:
    """A site that every rank with a part of it computes whole: the memory that it takes for a moment, and the time."""

    name: str
    fill: str
    elements: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan takes on a mesh: of the first rank, which holds the most, unless it says otherwise.

    ``bytes`` and ``elements`` are those of the model, ``most`` and ``least`` the bytes that a rank holds, ``written``
    the elements that it draws. ``seconds`` is the elements times the ``rates``, nanoseconds an element by kind of fill,
    ``call`` seconds a site, and the time of the ``whole`` fills; where the rates come from is in ``source``. Measured
    moments, start-up and communication are not in it.
    """

    mesh: str
    ranks: int
    sites: int
    elements: int
    bytes: int
    most: int
    least: int
    written: int
    seconds: float
    rates: Mapping[str, float]
    call: float
    source: str
    groups: tuple[Group, ...]
    whole: tuple[WholeFill, ...]

    @property
    def peak(self) -> int:
        """The most memory that a rank takes at a time: what it holds, and the largest fill computed whole."""
        return self.most + max((fill.bytes for fill in self.whole), default=0)

    def to_dict(self) -> dict[str, object]:
        """The cost as plain data."""
        return {**asdict(self), "peak": self.peak}

    def table(self) -> str:
        """The cost as plain text: a line for each kind of site, then the sums."""
        head = ("name", "sites", "shape", "dtype", "cut along", "on rank 0", "MiB on rank 0", "fill")
        return "\n".join([columns(head, [_row(group) for group in self.groups]), self.summary()])

    def summary(self) -> str:
        """The sums in a few lines."""
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in self.rates.items())
        model = f"{count(self.sites, 'site')}: {self.elements:,} elements, {_size(self.bytes)}"
        lines = [
            f"{model}, on {self.ranks:,} ranks ({self.mesh})",
            f"a rank holds {_size(self.most)} at most, {_size(self.least)} at least, {_size(self.peak)} at the peak",
            f"a rank writes {self.written:,} elements, in about {self.seconds:.3g} s",
            f"  nanoseconds an element: {rates or 'none'}; {1e6 * self.call:.1f} microseconds a site; {self.source}",
        ]
        if self.whole:
            most = max(self.whole, key=lambda fill: fill.bytes)
            lines.append(
                f"{count(len(self.whole), 'site')} computed whole on each rank with a part:"
                f" {most.name} takes the most memory, {_size(most.bytes)}, by {most.fill}"
            )
        return "\n".join(lines)


def cost_of(plan: Plan, partition: Partition, rates: Rates) -> Cost:
    """The cost of a plan; raises RunError where the partition does not go with the plan's sites.

    >>> from torchinit import Constant, Leaf, Rule
    >>> from torchinit.plans import make_plan
    >>> plan = make_plan([Site("q_proj.weight", (64, 32))], [Rule(Leaf("weight"), Constant(0.0))])
    >>> cost = cost_of(plan, Partition((4, 2), ("fsdp", "tp")), Rates({"Constant float32": 0.5}, "given"))
    >>> cost.bytes, cost.most, cost.written
    (8192, 1024, 256)
    """
    fills = {step.site.name: step.fill for step in plan.steps}
    sites = [*(step.site for step in plan.steps), *plan.untouched, *(skip.site for skip in plan.skipped)]
    partition.check(sites)
    first, last = (0,) * len(partition.sizes), tuple(size - 1 for size in partition.sizes)
    held = [_Held(site, partition.local_shape(site, first), partition.local_shape(site, last)) for site in sites]
    written = [(one, fills[one.site.name]) for one in held if one.site.name in fills]
    whole = [
        WholeFill(one.site.name, str(fill), box.numel, part.scratch(box.shape), rates.seconds_of(part, box.shape))
        for one, fill in written
        if math.prod(one.local)
        for box, part in wholes(fill, one.site.shape)
    ]
    spent: dict[str, int] = {}
    for one, fill in written:
        if not wholes(fill, one.site.shape):
            kind = kind_of(fill, one.site)
            spent[kind] = spent.get(kind, 0) + math.prod(one.local)
    return Cost(
        mesh=str(partition),
        ranks=partition.ranks,
        sites=len(sites),
        elements=sum(site.numel for site in sites),
        bytes=sum(site.numel * site.dtype.itemsize for site in sites),
        most=sum(math.prod(one.local) * one.site.dtype.itemsize for one in held),
        least=sum(math.prod(one.last) * one.site.dtype.itemsize for one in held),
        written=sum(math.prod(one.local) for one, _ in written),
        seconds=sum(rates.nanoseconds[kind] * number * 1e-9 for kind, number in spent.items() if number)
        + rates.call * len(written)
        + sum(fill.seconds for fill in whole),
        rates={kind: rates.nanoseconds[kind] for kind, number in spent.items() if number},
        call=rates.call,
        source=rates.source,
        groups=tuple(_groups(held, fills, partition)),
        whole=tuple(whole),
    )


class _Held(NamedTuple):
    site: Site
    local: tuple[int, ...]
    last: tuple[int, ...]


def wholes(fill: Fill, shape: tuple[int, ...]) -> list[tuple[Box, Fill]]:
    """The regions of a tensor that a fill computes whole wherever a part of them is.

    >>> from torchinit import Orthogonal
    >>> from torchinit.initializers import Blockwise
    >>> [box.shape for box, _ in wholes(Blockwise((Orthogonal(), Orthogonal()), sizes=(2, 4)), (6, 3))]
    [(2, 3), (4, 3)]
    """
    return [(box, part) for box, part in fill.regions(shape) if part.scratch(box.shape)]


def _groups(held: list[_Held], fills: Mapping[str, Fill], partition: Partition) -> Iterator[Group]:
    found: dict[tuple[str, str, object], list[_Held]] = {}
    for one in held:
        site, fill = one.site, str(fills.get(one.site.name, "-"))
        name = re.sub(r"(?<![^.])\d+(?![^.])", "*", site.name)
        found.setdefault((name, fill, (site.shape, site.dtype, partition.axes(site))), []).append(one)
    for (name, fill, _), group in found.items():
        site, local, _ = group[0]
        dtype, size = str(site.dtype).removeprefix("torch."), math.prod(local) * site.dtype.itemsize
        yield Group(name, len(group), site.shape, dtype, fill, partition.axes(site), local, len(group) * size)


def _row(group: Group) -> tuple[str, ...]:
    axes = " ".join("-" if axis is None else str(axis) for axis in group.axes)
    shapes = shape_text(group.shape), group.dtype, axes, shape_text(group.local)
    return group.name, str(group.sites), *shapes, f"{group.bytes / 2**20:.3f}", group.fill


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"
