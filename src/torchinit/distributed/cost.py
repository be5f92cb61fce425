"""Cost: the memory and the time that a plan takes on each rank of a mesh, before there is any."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch

from torchinit._text import count, dtype_name, fold_numbers, format_table, shape_text
from torchinit.distributed.partition import Partition
from torchinit.initializers.elementwise import Constant, Fill
from torchinit.model.shards import Box, Shard
from torchinit.model.sites import Site
from torchinit.noise import Keyed
from torchinit.noise.engines import dispatch
from torchinit.plans.plan import Plan, Step
from torchinit.plans.run import write


@dataclass(frozen=True, slots=True)
class CostGroup:
    """Sites that differ in nothing but the numbers in their names, and the part of each that the first rank holds."""

    name: str
    sites: int
    shape: tuple[int, ...]
    dtype: str
    fill: str
    axes: tuple[int | None, ...]
    local: tuple[int, ...]
    bytes: int

    def cells(self) -> tuple[str, ...]:
        axes = " ".join("-" if axis is None else str(axis) for axis in self.axes)
        shapes = shape_text(self.shape), self.dtype, axes, shape_text(self.local)
        return self.name, str(self.sites), *shapes, f"{self.bytes / 2**20:.3f}", self.fill


@dataclass(frozen=True, slots=True)
class WholeFill:
    """A site, or a matrix of one, that a rank with a part of it computes whole: memory for a moment, and the time."""

    name: str
    fill: str
    elements: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a plan on a mesh: of the first rank, which holds the most, unless it says otherwise.

    ``bytes`` and ``elements`` are those of the model, ``most`` and ``least`` the bytes that a rank holds, ``written``
    the elements that it draws. ``seconds`` is the elements times the ``rates``, nanoseconds an element by kind of fill,
    ``call`` seconds a site, and the time of the ``whole`` fills; ``source`` tells where the rates come from. Measured
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
    groups: tuple[CostGroup, ...]
    whole: tuple[WholeFill, ...]

    @property
    def peak(self) -> int:
        """The most memory that a rank takes at a time: its parts, and the largest fill computed whole."""
        return self.most + max((fill.bytes for fill in self.whole), default=0)

    def to_dict(self) -> dict[str, object]:
        """The cost as plain data."""
        return {**asdict(self), "peak": self.peak}

    def table(self) -> str:
        """The cost as plain text: a line for each kind of site, then the sums."""
        head = ("name", "sites", "shape", "dtype", "cut along", "on rank 0", "MiB on rank 0", "fill")
        return "\n".join([format_table(head, [group.cells() for group in self.groups]), self.summary()])

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


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def cost_of(plan: Plan, partition: Partition, rates: Rates) -> Cost:
    """The cost of a plan; raises RunError where the partition does not go with the plan's sites."""
    fills = {step.site.name: step.fill for step in plan.steps}
    sites = plan.sites
    partition.check(sites)
    # Of what torch.chunk cuts, the first piece is as large as any and the last as small, along every axis. So two ranks
    # tell the most and the least that any of thousands holds.
    first, last = (0,) * len(partition.sizes), tuple(size - 1 for size in partition.sizes)
    most = least = written = 0
    whole: list[WholeFill] = []
    elements: Counter[str] = Counter()
    alike: Counter[CostGroup] = Counter()
    for site in sites:
        fill, shape, dtype = fills.get(site.name), partition.local_shape(site, first), dtype_name(site.dtype)
        number = math.prod(shape)
        size, name = number * site.dtype.itemsize, fold_numbers(site.name)
        alike[CostGroup(name, 1, site.shape, dtype, str(fill or "-"), partition.axes(site), shape, size)] += 1
        most += size
        least += math.prod(partition.local_shape(site, last)) * site.dtype.itemsize
        if fill is not None and number:
            written += number
            regions = whole_regions(fill, site.shape)
            # The first rank's part begins at the origin, so of the matrices of a stack it may hold the first few only.
            whole += [
                WholeFill(site.name, str(fill), box.numel, part.scratch(box.shape), rates.seconds_of(part, box.shape))
                for box, part in regions
                if all(start < size for start, size in zip(box.start, shape, strict=True))
            ]
            if not regions:
                elements[kind_of(fill, site)] += number
    drawing = sum(rates.nanoseconds[kind] * number * 1e-9 for kind, number in elements.items())
    return Cost(
        mesh=str(partition),
        ranks=partition.ranks,
        sites=len(sites),
        elements=sum(site.numel for site in sites),
        bytes=sum(site.numel * site.dtype.itemsize for site in sites),
        most=most,
        least=least,
        written=written,
        seconds=drawing + rates.call * len(fills) + sum(fill.seconds for fill in whole),
        rates={kind: rates.nanoseconds[kind] for kind in elements},
        call=rates.call,
        source=rates.source,
        groups=tuple(replace(group, sites=times, bytes=times * group.bytes) for group, times in alike.items()),
        whole=tuple(whole),
    )


def whole_regions(fill: Fill, shape: tuple[int, ...]) -> list[tuple[Box, Fill]]:
    """The regions of a tensor that a fill computes whole wherever a part of them is."""
    return [(box, part) for box, part in fill.regions(shape) if part.scratch(box.shape)]


# --- rates -------------------------------------------------------------------------------------------------

_ELEMENTS = 1 << 18
"""The most elements of a sample."""

_TIMES = 5
_SIDE = 256
"""Matrices that are computed whole are measured at this size."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Nanoseconds an element, by kind of fill and dtype, seconds a site, and where they come from."""

    nanoseconds: Mapping[str, float]
    source: str
    call: float = 0.0
    _whole: dict[Fill, float] = field(default_factory=dict, repr=False, compare=False)

    def seconds_of(self, fill: Fill, shape: tuple[int, ...]) -> float:
        """The time that a fill takes for a whole tensor of this shape, scaled up from a small one, which it draws."""
        if not math.prod(shape):
            return 0.0
        # The true size would take as long as what is to be estimated. `work` scales it up, but not what caches and
        # threads make of a large matrix. A fill has one rate, that of the first shape which asks for it.
        small = tuple(min(size, _SIDE) for size in shape)
        if fill not in self._whole:
            self._whole[fill] = _time(
                fill, Shard.whole("sample", torch.empty(small, dtype=torch.float32, device="cpu"))
            ) / fill.work(small)
        return self._whole[fill] * fill.work(shape)


def kind_of(fill: Fill, site: Site) -> str:
    """The kind of fills of one rate: the class of the first that they consist of, and the dtype."""
    _, first = fill.regions(site.shape)[0]
    return f"{type(first).__name__} {dtype_name(site.dtype)}"


def measured(plan: Plan) -> Rates:
    """The rates of the fills in a plan, each measured for some milliseconds on a corner of the largest of its sites."""
    largest: dict[str, Step] = {}
    for step in plan.steps:
        if step.site.numel and not step.fill.scratch(step.site.shape):  # else its time is scaled up from a small one
            kind = kind_of(step.fill, step.site)
            largest[kind] = max(largest.get(kind, step), step, key=lambda each: each.site.numel)
    nanoseconds = {kind: _rate(step.fill, step.site) for kind, step in largest.items()}
    call = _time(Constant(0.0), Shard.whole("sample", torch.empty(1, device="cpu")))
    chosen = dispatch.chosen_kernel()
    where = f"{count(torch.get_num_threads(), 'thread')}, {f'kernel {chosen.name}' if chosen else 'no compiled kernel'}"
    return Rates(nanoseconds, f"measured here and now on the CPU, {where}", call)


def _rate(fill: Fill, site: Site) -> float:
    """Nanoseconds an element, on a corner of the site: cut from its first axis on until it is small enough."""
    corner = list(site.shape)
    for axis, size in enumerate(site.shape):
        corner[axis] = min(size, max(1, _ELEMENTS // math.prod(corner[axis + 1 :])))
    local = torch.empty(corner, dtype=site.dtype, device="cpu")
    return 1e9 * _time(fill, Shard(site.name, local, site.shape, (0,) * local.dim())) / local.numel()


def _time(fill: Fill, shard: Shard) -> float:
    """The shortest of a few: what disturbs a measurement makes it longer."""
    noise, times = Keyed(0), []
    for _ in range(_TIMES):
        begin = time.perf_counter()
        write(fill, shard, noise)
        times.append(time.perf_counter() - begin)
    return min(times)
