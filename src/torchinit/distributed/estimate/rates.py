"""Rates: how long fills take an element, measured here and now on a small part of what they are for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from torchinit._text import dtype_name
from torchinit.errors import count
from torchinit.initializers.elementwise import Constant, Fill
from torchinit.model.shards import Shard
from torchinit.model.sites import Site
from torchinit.noise import Keyed
from torchinit.noise.engines import dispatch
from torchinit.plans.plan import Plan, Step
from torchinit.plans.run import write

_ELEMENTS = 1 << 18
"""A sample has no more elements than this."""

_TIMES = 5
_SIDE = 256
"""Matrices that are computed whole are measured at this size."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Nanoseconds an element, by kind of fill and dtype, seconds a site, and where they come from.

    >>> Rates({"Constant float32": 0.5}, "given").nanoseconds["Constant float32"]
    0.5
    """

    nanoseconds: Mapping[str, float]
    source: str
    call: float = 0.0
    _whole: dict[Fill, float] = field(default_factory=dict, repr=False, compare=False)

    def seconds_of(self, fill: Fill, shape: tuple[int, ...]) -> float:
        """The time that a fill takes for a whole tensor of this shape, scaled up from a small one, which it draws."""
        if not math.prod(shape):
            return 0.0
        small = tuple(min(size, _SIDE) for size in shape)
        if fill not in self._whole:
            self._whole[fill] = _time(fill, Shard.whole("sample", torch.empty(small))) / fill.work(small)
        return self._whole[fill] * fill.work(shape)


def kind_of(fill: Fill, site: Site) -> str:
    """What fills of one rate have in common: the class of the first that they are made of, and the dtype.

    >>> from torchinit import Normal
    >>> from torchinit.initializers import Padded
    >>> kind_of(Padded(Normal(std=0.02), row=0), Site("table", (4, 2), torch.bfloat16))
    'Normal bfloat16'
    """
    _, first = fill.regions(site.shape)[0]
    return f"{type(first).__name__} {dtype_name(site.dtype)}"


def measured(plan: Plan) -> Rates:
    """The rates of the fills in a plan, each measured on a corner of the largest site that it writes.

    It takes some milliseconds a kind.

    >>> from torchinit import Constant, Leaf, Rule
    >>> from torchinit.plans import make_plan
    >>> from torchinit.model.sites import Site
    >>> rates = measured(make_plan([Site("weight", (64, 32))], [Rule(Leaf("weight"), Constant(0.0))]))
    >>> list(rates.nanoseconds)
    ['Constant float32']
    """
    largest: dict[str, Step] = {}
    for step in plan.steps:
        if not step.site.numel or step.fill.scratch(step.site.shape):  # the latter's time is scaled up from a small one
            continue
        kind = kind_of(step.fill, step.site)
        if kind not in largest or step.site.numel > largest[kind].site.numel:
            largest[kind] = step
    nanoseconds = {kind: _rate(step.fill, step.site) for kind, step in largest.items()}
    call = _time(Constant(0.0), Shard.whole("sample", torch.empty(1)))
    chosen = dispatch.chosen_kernel()
    where = f"{count(torch.get_num_threads(), 'thread')}, {f'kernel {chosen.name}' if chosen else 'no compiled kernel'}"
    return Rates(nanoseconds, f"measured here and now on the CPU, {where}", call)


def _corner(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, cut from its first axis on until it is small enough."""
    found = list(shape)
    for axis, size in enumerate(shape):
        found[axis] = min(size, max(1, _ELEMENTS // math.prod(found[axis + 1 :])))
    return tuple(found)


def _rate(fill: Fill, site: Site) -> float:
    local = torch.empty(_corner(site.shape), dtype=site.dtype)
    return 1e9 * _time(fill, Shard(site.name, local, site.shape, (0,) * local.dim())) / local.numel()


def _time(fill: Fill, shard: Shard) -> float:
    """The shortest of a few: what disturbs a measurement makes it longer."""
    noise, times = Keyed(0), []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        write(fill, shard, noise)
        times.append(time.perf_counter() - begun)
    return min(times)
