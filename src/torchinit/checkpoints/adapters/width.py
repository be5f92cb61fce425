"""Width: wider layers from narrower ones that compute the same, narrower ones from wider, and rows over and over."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import Adapter, BySlices, Promise, ReadPlan, register
from torchinit.checkpoints.adapters.surroundings import Surroundings
from torchinit.checkpoints.adapters.tensors import Size, along, check_same, normal, picked, taken, upcast
from torchinit.knowledge.neutral import is_named_norm
from torchinit.model.shards import Box, Shard
from torchinit.model.sites import Site
from torchinit.noise import Keyed


@dataclass(frozen=True, slots=True)
class Widening(BySlices):
    """Units of a layer copied: what copies feed is divided by their number, so that the next layer sees what it saw.

    ``inputs`` are the axes that are summed over, ``axis`` is the one along which several weights lie side by side, in
    proportions ``sizes``; without ``inputs`` all three are told by the layer's class, its name and its role.
    """

    # Which units are copied must be the same for all layers that give or take them, and a site does not know them. So
    # the choice depends on the two widths alone, on nothing of the layer, and in lowest terms: from 32 to 48 as from 2
    # to 3, in 2 or 3 parts of 16. Then it is the same, too, behind a flattening, where each channel is a run of units,
    # and for heads, whose number tells what becomes of their rows. Graphs that say which axes belong together were not
    # tried: they need the model's code, and two layers that share widths by chance lose nothing by sharing a choice.
    # It fails where the size of a head grows instead of their number: the scores are scaled otherwise, and only a run
    # of both models shows it.

    only_resizes: ClassVar[bool] = True
    inputs: tuple[int, ...] | None = None
    sizes: tuple[int, ...] = (1,)
    axis: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be whole numbers from 1, but got {self.sizes!r}")

    @abstractmethod
    def copied(self, have: int, want: int) -> Tensor:
        """For each of the units wanted the one it is a copy of; raises ValueError where that cannot be."""

    def placed(self, site: Site, around: Surroundings, shapes: Sequence[Size]) -> Adapter:
        if self.inputs is not None:
            return self
        inputs, outputs = around.axes(site)
        stored, groups = shapes[0], site.layout.groups if site.layout else 1
        for axis, (have, want) in enumerate(zip(stored, site.shape, strict=False)):
            if have != want and axis not in (*inputs, *outputs):
                raise ValueError(f"{self} widens layers, and dimension {axis} is no width: {have} to {want}")
            if have != want and axis in inputs and groups > 1:
                raise ValueError(f"{self} cannot widen each of {groups} groups: let their number grow instead")
        if site.owner.is_a("GroupNorm"):
            raise ValueError(f"{self} would mix the groups of a GroupNorm; say inputs=[] if their number grows, too")
        changes = bool(outputs) and stored[outputs[0]] != site.shape[outputs[0]]
        sizes = around.parts(site) if changes else (1,)
        return replace(self, inputs=inputs, sizes=sizes, axis=min(outputs, default=0))

    def _picks(self, stored: Size, shape: Size) -> list[Tensor]:
        """For each axis of the site the places in the file of what comes there."""
        picks = []
        for axis, (have, want) in enumerate(zip(stored, shape, strict=True)):
            sizes = self.sizes if axis == self.axis else (1,)
            total = sum(sizes)
            if have == want:
                picks.append(torch.arange(have, device="cpu"))
                continue
            if have % total or want % total:
                raise ValueError(f"{self} cannot cut {have} and {want} into parts of {self.sizes}")
            starts = [have // total * sum(sizes[:number]) for number in range(len(sizes))]
            parts = (self.copied(have // total * size, want // total * size) for size in sizes)
            picks.append(torch.cat([part + start for part, start in zip(parts, starts, strict=True)]))
        return picks

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        if len(shapes[0]) != len(shape):
            sizes = f"the site has {list(shape)}, the file {list(shapes[0])}"
            raise ValueError(f"{self} keeps the number of dimensions, but {sizes}")
        if shapes[0] != shape:
            self._picks(shapes[0], shape)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if shapes[0] == shape:
            return ReadPlan((box,), lambda tensors: tensors[0])
        picks = self._picks(shapes[0], shape)
        wider = [axis for axis in self.inputs or () if shapes[0][axis] != shape[axis]]
        counts = {axis: torch.bincount(picks[axis])[picks[axis]] for axis in wider}
        read, places = picked(picks, box)

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            value = taken(tensors[0], places)
            for axis, copies in counts.items():
                value = upcast(value) / along(copies.narrow(0, box.start[axis], box.shape[axis]), axis, value)
            return self.noisy(value, picks, shape, box, key)

        return ReadPlan((read,), combine)

    @abstractmethod
    def noisy(self, value: Tensor, picks: Sequence[Tensor], shape: Size, box: Box, key: str) -> Tensor:
        """The values of a box with what breaks the symmetry of the copies."""


@register
class Net2Wider(Widening):
    """Wider layers that compute the same, by copies of units: Net2WiderNet (https://arxiv.org/abs/1511.05641).

    The units of a layer are followed by copies of some of them, chosen by ``seed`` in runs of the greatest common
    divisor of the two widths; a whole multiple repeats them all. What a unit feeds is divided by the number of its
    copies. ``even`` asks for as many copies of each unit, as a norm over all units does (LayerNorm, RMSNorm). ``noise``
    is the standard deviation of what is added to the weights of all copies but the first; with it the promise is none.

    ``inputs``, ``sizes`` and ``axis`` are told by the layer, if ``inputs`` is not given: the axes that are summed over,
    and the proportions of what lies side by side along an axis (``sizes=(1, 1, 1)`` for q, k and v in one).

    >>> wider = Net2Wider(inputs=(1,))
    >>> wider.adapt([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], (2, 4), "fc2.weight")
    tensor([[0.5000, 1.0000, 0.5000, 1.0000],
            [1.5000, 2.0000, 1.5000, 2.0000]])
    """

    noise: float = 0.0
    even: bool = False

    @property
    def promise(self) -> Promise:
        return "none" if self.noise else "function"

    def placed(self, site: Site, around: Surroundings, shapes: Sequence[Size]) -> Adapter:
        is_norm = self.inputs is None and is_named_norm(site) and not site.owner.is_a("_NormBase")
        return Widening.placed(replace(self, even=self.even or is_norm), site, around, shapes)

    def copied(self, have: int, want: int) -> Tensor:
        if want < have or not have:
            raise ValueError(f"{self} makes layers wider, not {have} to {want}; WeightSelection() makes them narrower")
        run = math.gcd(have, want)
        runs, wanted = have // run, want // run
        if runs == 1:
            return torch.arange(want, device="cpu") % have
        if self.even:
            norm = "a norm over all units unless each has as many copies"
            multiple = f"{have} to {want} is no whole multiple; {have * -(-want // have)} is"
            raise ValueError(f"{self} keeps nothing of {norm}: {multiple}")
        drawn = torch.empty(wanted - runs, dtype=torch.float32, device="cpu")
        Keyed(self.seed).fill(Shard.whole(f"Net2Wider from {runs} to {wanted}", drawn), "uniform", (0.0, float(runs)))
        chosen = torch.cat([torch.arange(runs, device="cpu"), drawn.long().clamp_(max=runs - 1)])
        return (chosen[:, None] * run + torch.arange(run, device="cpu")).flatten()

    def noisy(self, value: Tensor, picks: Sequence[Tensor], shape: Size, box: Box, key: str) -> Tensor:
        if not self.noise or not self.inputs or len(shape) < 2:
            return value
        units = picks[self.axis]
        order = units.argsort(stable=True)
        begins = units[order].diff(prepend=torch.tensor([-1], device="cpu")) > 0
        first = torch.empty(len(units), dtype=torch.bool, device="cpu").scatter_(0, order, begins)
        value = upcast(value)
        here = first.narrow(0, box.start[self.axis], box.shape[self.axis])
        draws = normal(self.seed, key, box, shape, value, std=self.noise)
        return value + draws.masked_fill_(along(here, self.axis, value), 0.0)


@register
class HyperClone(Widening):
    r"""Layers of a whole multiple of the width that compute the same: HyperCloning (https://arxiv.org/abs/2409.12903).

    A weight is laid out n times along its outputs and n times along its inputs, divided by n; biases, norms and
    embeddings are repeated. Heads grow in number, not in size. ``snr`` in decibels adds noise in pairs of copies of the
    inputs, so that it cancels as long as these are alike, as in the paper, which has 10:

    .. math:: \frac 1 2 \begin{pmatrix} W + N_1 & W - N_1 \\ W + N_2 & W - N_2 \end{pmatrix}

    ``inputs``, ``sizes`` and ``axis`` are those of :class:`Net2Wider`. A head that shares its table with an embedding
    takes its factor 1/n from the last norm before it.

    >>> HyperClone(inputs=(1,)).adapt([torch.tensor([[2.0, 4.0]])], (2, 4), "fc.weight")
    tensor([[1., 2., 1., 2.],
            [1., 2., 1., 2.]])
    """

    promise: ClassVar[Promise] = "function"
    snr: float | None = None

    def copied(self, have: int, want: int) -> Tensor:
        if not have or want % have:
            raise ValueError(f"{self} needs a whole multiple of each width, but got {have} to {want}")
        return torch.arange(want, device="cpu") % have

    @property
    def goes_by_slices(self) -> bool:
        return self.snr is None

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if self.snr is None or not self.inputs or shapes[0] == shape or box == Box.whole(shape):
            return Widening.read_plan(self, shapes, shape, box, key)
        return Adapter.read_plan(self, shapes, shape, box, key)

    def noisy(self, value: Tensor, picks: Sequence[Tensor], shape: Size, box: Box, key: str) -> Tensor:
        axis = (self.inputs or (0,))[0]
        copies = len(picks[axis]) // (int(picks[axis].max()) + 1)
        if self.snr is None or not self.inputs or len(shape) < 2 or copies < 2:
            return value
        wide = upcast(value)
        std = float(wide.square().mean().sqrt()) * 10 ** (-self.snr / 20)
        apart: Tensor = wide.unflatten(axis, (copies, -1)).movedim(axis, 0)  # a copy of the inputs each
        size = (copies // 2, *apart.shape[1:])
        draws = normal(self.seed, key, Box.whole(size), size, wide, std=std)
        noise = torch.zeros_like(apart)
        noise[0 : 2 * len(draws) : 2], noise[1 : 2 * len(draws) : 2] = draws, -draws
        return (apart + noise).movedim(0, axis).flatten(axis, axis + 1)


@register
class WeightSelection(BySlices):
    """Narrower layers of evenly spaced elements of wider ones, along every axis (https://arxiv.org/abs/2311.18823).

    Where a size is a whole multiple every so many of its elements are taken, else those nearest to even steps from the
    first to the last. The paper takes the first blocks of a deeper model: ``Pretrained(..., layers="first")``.

    >>> WeightSelection().adapt([torch.arange(6.0)], (3,), "fc.bias")
    tensor([0., 2., 4.])
    """

    promise: ClassVar[Promise] = "none"
    only_resizes: ClassVar[bool] = True

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = shapes[0]
        if len(stored) != len(shape) or any(want > have for have, want in zip(stored, shape, strict=True)):
            sizes = f"{list(stored)} for a site of {list(shape)}"
            raise ValueError(f"{self} takes a part of each dimension, but got {sizes}")

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        read, places = picked([*map(_spaced, shapes[0], shape)], box)
        return ReadPlan((read,), lambda tensors: taken(tensors[0], places))


@register
class Repeat(Adapter):
    """More rows: those of the file over and over, as Longformer's positions (https://arxiv.org/abs/2004.05150).

    >>> Repeat().adapt([torch.tensor([1.0, 2.0])], (5,), "position_embeddings.weight")
    tensor([1., 2., 1., 2., 1.])
    """

    promise: ClassVar[Promise] = "function"
    only_resizes: ClassVar[bool] = True
    axis: int = 0

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {self.axis}, least=self.axis + 1)
        have, want = stored[self.axis], shape[self.axis]
        if want < have:
            raise ValueError(f"{self} makes more rows, not {have} to {want}; Rows() takes some")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        rows = torch.arange(shape[self.axis], device=tensors[0].device) % tensors[0].shape[self.axis]
        return tensors[0].index_select(self.axis, rows)

    def slices_along(self) -> int:
        return self.axis


def _spaced(have: int, want: int) -> Tensor:
    """The evenly spaced places along an axis."""
    if want and have % want == 0:
        return torch.arange(want, device="cpu") * (have // want)
    return torch.linspace(0, have - 1, want, dtype=torch.float32, device="cpu").round().long()
