"""Mixtures: the experts of a mixture from one dense block, and one dense block from the experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import BySlices, Promise, ReadPlan, register
from torchinit.checkpoints.adapters.tensors import Size, along, listed, normal, picked, span, taken, upcast
from torchinit.checkpoints.key_mapping import find_parts, numbered, replace_parts
from torchinit.model.shards import Box, Shard, replaced
from torchinit.noise import Keyed
from torchinit.noise.settings import one_thread


@register
class Upcycle(BySlices):
    """The experts of a mixture, each the dense block of the file or a part of it: sparse upcycling.

    A key is the site's own with ``into`` replaced by ``dense``. One site, ``[experts, ...]``, holds all experts; where
    each has a site of its own, ``into`` has a ``*``, which is the expert's number. https://arxiv.org/abs/2212.05055

    ``hidden`` is the dimension of the dense weight that runs over the hidden units, ``fused`` the number of weights
    that lie one after the other along it (2: gate and up). ``granularity=g`` cuts the hidden units into g equal parts:
    expert e has part e mod g, and g neighbours make up the block; their router must choose them together. ``scale``
    multiplies the values, for the weight of the way out and no other: by g where the weights of the chosen experts sum
    to one, by g · experts / chosen where they do not (https://arxiv.org/abs/2410.07524). With a granularity it must be
    given, as 1 for ways in, unless several weights are fused.

    ``drop=r`` starts the share r of each expert's hidden units anew, the same in all weights of the block, from the
    normal distribution with the mean and standard deviation of the values that they had (Drop-Upcycling,
    https://arxiv.org/abs/2502.19261). As in its authors' script the share is rounded down, and the moments are those of
    the dropped values of each weight; that all weights drop the same units is assumed, since a unit of which a part
    stays is not anew: the script draws them for each weight apart.

    ``noise`` is the standard deviation of what is added to every value. Draws are those of ``seed`` and the names of
    sites. The function stays if neither is asked for and the weights of the chosen experts sum to one.

    >>> up = Upcycle("experts.down_proj", "down_proj.weight")
    >>> up.wants("layers.0.mlp.experts.down_proj"), up.adapt([torch.ones(2, 3)], (8, 2, 3), "experts.down_proj").shape
    (('layers.0.mlp.down_proj.weight',), torch.Size([8, 2, 3]))
    >>> Upcycle("experts.*.w2", "down_proj").wants("layers.0.mlp.experts.3.w2.weight")
    ('layers.0.mlp.down_proj.weight',)
    """

    into: str
    dense: str
    hidden: int | None = None
    fused: int = 1
    granularity: int = 1
    scale: float | None = None
    noise: float = 0.0
    drop: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must lie in [0, 1], but got {self.drop!r}")
        if self.hidden is None and (self.granularity > 1 or self.drop or self.fused > 1):
            raise ValueError("granularity, drop and fused need hidden, the dimension that runs over the hidden units")
        if self.scale is None and self.granularity > 1 and self.fused == 1:
            advice = f"{self.granularity} for the way out of blocks if the weights of chosen experts sum to one"
            raise ValueError(f"granularity needs scale, the factor of the values: {advice}, 1 for a way in")
        if self.into.split(".").count("*") > 1:
            raise ValueError(f"into may have one part '*', the expert's number, but got {self.into!r}")

    @property
    def promise(self) -> Promise:
        if self.drop and not self.noise:
            return "statistics"
        return "none" if self.noise else "function"

    @property
    def goes_by_slices(self) -> bool:
        return not self.drop

    @property
    def _listed(self) -> bool:
        return "*" in self.into.split(".")

    def wants(self, key: str) -> tuple[str, ...]:
        return (replace_parts(key, numbered(key, self.into)[1] if self._listed else self.into, self.dense),)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (stored,), one = shapes, shape if self._listed else shape[1:]
        expert = stored
        if self.hidden is not None:
            units = stored[self.hidden] if len(stored) > self.hidden else 0
            if not units or units % (self.fused * self.granularity):
                cut = f"{self.fused} x {self.granularity} equal parts"
                raise ValueError(f"{self} cannot cut dimension {self.hidden} of {list(stored)} into {cut}")
            expert = replaced(stored, self.hidden, units // self.granularity)
        if not expert or one != expert or (not self._listed and not shape):
            made = f"experts of {list(expert)} from {list(stored)}"
            raise ValueError(f"{self} makes {made}, but the site has {list(shape)}")
        if not self._listed and shape[0] % self.granularity:
            raise ValueError(f"{self} needs whole blocks of {self.granularity} experts, but the site has {list(shape)}")

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        # Copies need the rows and columns of the box alone. What starts anew needs the statistics of all that it was,
        # so with `drop` the whole is read, on every rank that holds a part.
        (stored,), axis, scale = shapes, self.hidden or 0, 1.0 if self.scale is None else self.scale
        if self._listed:
            number, _ = numbered(key, self.into)
            experts, inner = range(number, number + 1), box
        else:
            experts = range(box.start[0], box.start[0] + box.shape[0])
            inner = Box(box.start[1:], box.shape[1:])
        places = [self._places(stored[axis], expert) for expert in experts]
        needed = [place.narrow(0, inner.start[axis], inner.shape[axis]) for place in places]
        first, end = span(needed)
        read = Box(replaced(inner.start, axis, first), replaced(inner.shape, axis, end - first))

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            dense = upcast(tensors[0]) if scale != 1 or self.noise or self.drop else tensors[0]
            if not box.numel:
                return dense.new_empty(box.shape)
            if self.drop:
                fresh = normal(self.seed, key, box, shape, dense, index=1).view(len(experts), *inner.shape)
                found, parts = find_parts(key, self.into), zip(places, experts, fresh, strict=True)
                block = found[1] if found else ""  # whose weights drop the same units
                with one_thread():
                    values = torch.stack([self._restarted(dense, *part, inner, block) for part in parts])
            elif self.granularity > 1:
                rows = [(place - first).to(dense.device) for place in needed]
                values = torch.stack([dense.index_select(axis, each) for each in rows])
            else:  # copies take no memory of their own until they are written
                values = dense.expand(len(experts), *inner.shape)
            values = values.reshape(box.shape) if self._listed else values
            values = values if scale == 1 else values * scale
            return values + normal(self.seed, key, box, shape, dense) * self.noise if self.noise else values

        return ReadPlan((Box.whole(stored) if self.drop else read,), combine)

    def _places(self, size: int, expert: int) -> Tensor:
        """The places of an expert's hidden units in the dense block."""
        if self.granularity == 1:
            return torch.arange(size, device="cpu")
        halves = torch.arange(size, device="cpu").view(self.fused, self.granularity, -1)
        return halves[:, expert % self.granularity].flatten()

    def _restarted(self, dense: Tensor, places: Tensor, expert: int, fresh: Tensor, inner: Box, block: str) -> Tensor:
        """A box of an expert, with numbers of the same moments in place of the units that it drops."""
        axis, units = self.hidden or 0, len(places) // self.fused
        whole = dense.index_select(axis, places.to(dense.device))
        # All weights of an expert drop the same units, so their order belongs to the name that these share.
        order = Keyed(self.seed).order(
            Shard.whole(f"{block}[{expert}]", torch.empty(units, dtype=torch.float32, device="cpu"))
        )
        lost = order[: int(units * self.drop)].to(dense.device)
        is_lost = torch.zeros(len(places), dtype=torch.bool, device=dense.device)
        mean, std = whole.new_zeros(2, len(places))
        for part in range(self.fused if len(lost) else 0):  # gate and up have moments of their own
            rows = lost + part * units
            values = whole.index_select(axis, rows)
            is_lost[rows] = True
            mean[rows], std[rows] = values.mean(), values.std(correction=min(1, values.numel() - 1))
        here = slice(inner.start[axis], inner.start[axis] + inner.shape[axis])
        is_lost, mean, std = (along(each[here], axis, whole) for each in (is_lost, mean, std))
        return torch.where(is_lost, mean + std * fresh, inner.of(whole))


@register
class UpcycleRouter(BySlices):
    """The router of a mixture whose experts :class:`Upcycle` makes: normal draws, and nothing of the file.

    A key is the site's own with ``into`` replaced by ``dense``, which says that the file has a dense block in the place
    of the mixture. With ``granularity=g`` each row of ``[experts, width]`` comes g times, so that the parts of a block
    are chosen together (virtual groups, https://arxiv.org/abs/2410.07524). A small ``std`` spreads tokens evenly.

    >>> UpcycleRouter("gate", "down_proj").wants("layers.0.mlp.gate.weight")
    ('layers.0.mlp.down_proj.weight',)
    """

    promise: ClassVar[Promise] = "function"
    into: str
    dense: str
    std: float = 0.02
    granularity: int = 1
    seed: int = 0

    def wants(self, key: str) -> tuple[str, ...]:
        return (replace_parts(key, self.into, self.dense),)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        if not shape or shape[0] % self.granularity:
            raise ValueError(f"{self} needs whole blocks of {self.granularity} experts, but the site has {list(shape)}")

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        rows = torch.arange(shape[0], device="cpu") // self.granularity
        inner, places = picked([rows, *(torch.arange(size, device="cpu") for size in shape[1:])], box)
        whole = replaced(shape, 0, shape[0] // self.granularity)

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            like = torch.empty(0, dtype=torch.float32, device="cpu")
            return taken(normal(self.seed, key, inner, whole, like, std=self.std), places)

        return ReadPlan((Box.nothing(len(shapes[0])),), combine)


@register
class MergeExperts(BySlices):
    """A dense block that is the mean of a mixture's experts: the way back from :class:`Upcycle`.

    A key is the site's own with ``into`` replaced by ``experts``: a stack, whose first dimension runs over the experts,
    or with a ``*`` in it, which is 0, 1, ... to ``count``, the weight of each. The function stays the same where the
    experts are alike.

    >>> MergeExperts("w2", "experts.*.w2", count=2).wants("mlp.w2.weight")
    ('mlp.experts.0.w2.weight', 'mlp.experts.1.w2.weight')
    >>> MergeExperts("w2.weight", "experts.w2").adapt([torch.tensor([[1.0, 2.0], [3.0, 6.0]])], (2,), "w2.weight")
    tensor([2., 4.])
    """

    promise: ClassVar[Promise] = "none"
    into: str
    experts: str
    count: int | None = None

    def __post_init__(self) -> None:
        if self.experts.split(".").count("*") != (self.count is not None):
            raise ValueError(f"experts has one part '*' if there is a count, and none for a stack, but got {self}")

    def wants(self, key: str) -> tuple[str, ...]:
        names = [self.experts.replace("*", str(number)) for number in range(self.count or 1)]
        return tuple(replace_parts(key, self.into, name) for name in names)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        different = [*dict.fromkeys(shapes)]
        if len(different) > 1:
            raise ValueError(f"{self} needs experts of one shape, but got {listed(different[:2])}")
        if self.count is None and not (shapes[0] and shapes[0][0]):
            raise ValueError(f"{self} needs a stack of experts, but got {list(shapes[0])}")
        return shapes[0] if self.count else shapes[0][1:]

    def _mean(self, tensors: Sequence[Tensor]) -> Tensor:
        experts = tensors if self.count else tensors[0].unbind()
        # One after the other, so that a part of the sum has the bits that it has in the whole.
        total = upcast(experts[0]).clone()
        for expert in experts[1:]:
            total += expert
        return total / len(experts)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        stack = Box((0, *box.start), (shapes[0][0], *box.shape)) if self.count is None else None
        boxes = (stack,) if stack else (box,) * len(shapes)
        return ReadPlan(boxes, self._mean)
