"""Fusion: several weights as one, and one as several: q, k, v, gate, up, experts; heads in another order, or fewer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from torchinit._text import did_you_mean
from torchinit.checkpoints.adapters.base import Adapter, Promise, ReadPlan, register
from torchinit.checkpoints.adapters.tensors import Size, check_same, listed, upcast
from torchinit.checkpoints.key_mapping import find_parts, numbered, replace_parts
from torchinit.model.shards import Box, inserted, replaced, without
from torchinit.serialization.json import FrozenDict
from torchinit.serialization.schema import is_integer


@register
class Fuse(Adapter):
    """Several weights of the file one after the other: q, k and v as one, gate and up as one.

    A key is the site's own with ``into`` replaced by each of ``parts``, whole dotted parts of a name. They
    follow each other along ``axis``. With ``groups=n`` each is cut into n, and group by group they follow
    each other: ``groups=heads`` is the layout of GPT-NeoX and BLOOM, ``groups=kv_heads`` that of Megatron and
    Falcon where several queries share a key.

    >>> Fuse("qkv", ("q_proj", "k_proj", "v_proj")).wants("layers.0.qkv.weight")
    ('layers.0.q_proj.weight', 'layers.0.k_proj.weight', 'layers.0.v_proj.weight')
    """

    into: str
    parts: tuple[str, ...]
    axis: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        _check_parts(self)

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(replace_parts(key, self.into, part) for part in self.parts)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        axis = self.axis
        if any(len(stored) <= axis or replaced(stored, axis, 0) != replaced(shapes[0], axis, 0) for stored in shapes):
            raise ValueError(f"{self} needs parts that differ in dimension {axis} alone, but got {listed(shapes)}")
        for part, stored in zip(self.parts, shapes, strict=True):
            if stored[axis] % self.groups:
                raise ValueError(f"{self} needs {part!r} in {self.groups} equal groups, but got {list(stored)}")
        return replaced(shapes[0], axis, sum(stored[axis] for stored in shapes))

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        # A new dimension counts the groups; then what belongs to one group lies side by side in the next.
        grouped = [tensor.unflatten(self.axis, (self.groups, -1)) for tensor in tensors]
        return torch.cat(grouped, self.axis + 1).flatten(self.axis, self.axis + 1)

    def slices_along(self) -> int:
        return self.axis


@register
class Split(Adapter):
    """A part of a fused weight of the file: the reverse of :class:`Fuse`.

    The key is the site's own with the one of ``parts`` that it has replaced by ``whole``. The parts have
    equal sizes unless ``sizes`` says in which proportion they stand: ``(4, 1, 1)`` where four queries share a
    key. ``axis`` and ``groups`` are as for :class:`Fuse`.

    >>> Split("qkv", ("q_proj", "k_proj", "v_proj")).adapt([torch.arange(6)], (2,), "layers.0.k_proj.bias")
    tensor([2, 3])
    """

    whole: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    axis: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        _check_parts(self)
        sizes = self.sizes or ()
        if self.sizes is not None and (len(sizes) != len(self.parts) or not all(map(is_integer, sizes))):
            raise ValueError(f"sizes must be a whole number from 1 for each of {self.parts}, but got {sizes!r}")

    def wants(self, key: str) -> tuple[str, ...]:
        return (replace_parts(key, self.parts[self._number(key)], self.whole),)

    def _number(self, key: str) -> int:
        """The number of the part that the key asks for: the last one in it."""
        places = [-1 if (found := find_parts(key, part)) is None else found.start(2) for part in self.parts]
        if max(places) < 0:
            near = next(filter(None, (did_you_mean(part, key.split(".")) for part in self.parts)), "")
            raise ValueError(f"{key!r} has none of the parts {', '.join(map(repr, self.parts))}{near}")
        return places.index(max(places))

    def _span(self, size: int, key: str) -> tuple[int, int]:
        """The start and the length of the part in each group."""
        # Sizes are proportions: (8, 2, 2) cuts as (4, 1, 1) does, so they are taken without their common divisor.
        sizes, number = self.sizes or (1,) * len(self.parts), self._number(key)
        unit, rest = divmod(size * math.gcd(*sizes), self.groups * sum(sizes))
        if rest:
            raise ValueError(f"{self} cannot cut {size} rows into {self.groups} x {sizes}")
        scaled = [unit * part // math.gcd(*sizes) for part in sizes]
        return sum(scaled[:number]), scaled[number]

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        stored = shapes[0]
        if len(stored) <= self.axis:
            raise ValueError(f"{self} needs at least {self.axis + 1} dimensions, but got {list(stored)}")
        return replaced(stored, self.axis, self.groups * self._span(stored[self.axis], key)[1])

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        start, length = self._span(tensors[0].shape[self.axis], key)
        groups: Tensor = tensors[0].unflatten(self.axis, (self.groups, -1))
        return groups.narrow(self.axis + 1, start, length).flatten(self.axis, self.axis + 1)

    def slices_along(self) -> int:
        return self.axis


@register
class Stack(Adapter):
    """Weights of the same shape, stacked along a new dimension ``axis``: the experts of a mixture.

    A key is the site's own with ``into`` replaced by ``parts``, whose ``*`` is 0, 1, ... to ``count``.

    >>> Stack("experts.w1", "experts.*.w1.weight", count=2).wants("layers.0.experts.w1")
    ('layers.0.experts.0.w1.weight', 'layers.0.experts.1.w1.weight')
    """

    into: str
    parts: str
    count: int
    axis: int = 0

    def __post_init__(self) -> None:
        _check_pattern(self.parts)

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(replace_parts(key, self.into, self.parts.replace("*", str(index))) for index in range(self.count))

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        different = [*dict.fromkeys(shapes)]
        if len(different) > 1 or len(shapes[0]) < self.axis:
            wanted = f"tensors of one shape, to be stacked at {self.axis}"
            raise ValueError(f"{self} needs {wanted}, but got {listed(different[:2])}")
        return inserted(shapes[0], self.axis, len(shapes))

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return torch.stack(tuple(tensors), self.axis)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        start, size = without(box.start, self.axis), without(box.shape, self.axis)
        here = range(box.start[self.axis], box.start[self.axis] + box.shape[self.axis])
        boxes = (Box(start, size if number in here else (0,) * len(size)) for number in range(len(shapes)))

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            slices = tuple(tensors[here.start : here.stop])
            return torch.stack(slices, self.axis) if slices else tensors[0].new_empty(box.shape)

        return ReadPlan(tuple(boxes), combine)


@register
class Unstack(Adapter):
    """One of a stack: the reverse of :class:`Stack`. The site's own key says which, at the ``*`` of ``parts``.

    >>> expert = Unstack("experts.w1", "experts.*.w1.weight")
    >>> expert.wants("layers.0.experts.5.w1.weight"), expert.makes([(8, 64, 16)], "layers.0.experts.5.w1.weight")
    (('layers.0.experts.w1',), (64, 16))
    """

    whole: str
    parts: str
    axis: int = 0

    def __post_init__(self) -> None:
        _check_pattern(self.parts)

    def wants(self, key: str) -> tuple[str, ...]:
        _, part = numbered(key, self.parts)
        return (replace_parts(key, part, self.whole),)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        stored, (number, _) = shapes[0], numbered(key, self.parts)
        if len(stored) <= self.axis or stored[self.axis] <= number:
            raise ValueError(f"{self} needs more than {number} along dimension {self.axis}, but got {list(stored)}")
        return without(stored, self.axis)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return tensors[0].select(self.axis, numbered(key, self.parts)[0])

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        number, _ = numbered(key, self.parts)
        slab = Box(inserted(box.start, self.axis, number), inserted(box.shape, self.axis, 1))
        return ReadPlan((slab,), lambda tensors: tensors[0].squeeze(self.axis))


def _check_parts(adapter: Fuse | Split) -> None:
    if len(adapter.parts) < 2 or len({*adapter.parts}) < len(adapter.parts):
        raise ValueError(f"parts must be two or more different names, but got {adapter.parts!r}")


def _check_pattern(parts: str) -> None:
    if parts.split(".").count("*") != 1:
        raise ValueError(f"parts must have one part '*', the number of each, but got {parts!r}")


# --- heads -----------------------------------------------------------------------------------------------------------


Order: TypeAlias = Literal["half", "interleaved"]


@register
class RopeOrder(Adapter):
    """The rows of a query or key weight for the other way of writing rotary embeddings, head by head.

    Rotary embeddings turn pairs of rows. In Meta's Llama the rows of a pair follow each other
    (``interleaved``); in transformers' they are half a head apart (``half``). ``to`` is the site's order, the
    file's is the other. ``heads`` is the number of heads of this weight: for keys that of the key heads.
    ``rotary`` is how many rows of each head are turned, all of them if it is left out. Queries and keys need
    it both; values and outputs stay. Before a :class:`Fuse` the heads of each part tell which are turned:
    ``Chain((RopeOrder({"wq": 32, "wk": 8}), Fuse("qkv", ("wq", "wk", "wv"))))``.

    >>> RopeOrder(heads=1).adapt([torch.tensor([1, -1, 2, -2])], (4,), "wq.bias")
    tensor([ 1,  2, -1, -2])
    """

    heads: int | Mapping[str, int]
    to: Order = "half"
    rotary: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.heads, Mapping):
            object.__setattr__(self, "heads", FrozenDict(self.heads))
            if not self.heads or not all(map(is_integer, self.heads.values())):
                raise ValueError(f"heads must give whole numbers from 1 to parts of names, but got {self.heads!r}")
        elif not is_integer(self.heads):
            raise ValueError(f"heads must be a whole number from 1, but got {self.heads!r}")
        if self.rotary is not None and not (is_integer(self.rotary, 2) and self.rotary % 2 == 0):
            raise ValueError(f"rotary must be an even whole number from 2, but got {self.rotary!r}")

    def _heads_of(self, key: str) -> int:
        """The number of heads of a weight; 0 for one that stays."""
        if not isinstance(self.heads, Mapping):
            return self.heads
        return next((heads for part, heads in self.heads.items() if find_parts(key, part)), 0)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        stored, heads = shapes[0], self._heads_of(key)
        if heads:
            size, rest = divmod(stored[0], heads) if stored else (0, 1)
            if rest:
                raise ValueError(f"{self} needs rows for {heads} heads, but got {list(stored)}")
            if (turned := self.rotary or size) % 2 or turned > size:
                raise ValueError(f"{self} cannot turn {turned} of the {size} rows of each head of {list(stored)}")
        return stored

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        if not (count := self._heads_of(key)):
            return tensors[0]
        heads = tensors[0].unflatten(0, (count, -1))
        turned = self.rotary or heads.shape[1]
        # As (pairs, 2) the rows of a pair follow each other, as (2, pairs) they are half a head apart: the one is the
        # other transposed. Rows that are not turned lie behind, and stay.
        pairs = (turned // 2, 2) if self.to == "half" else (2, turned // 2)
        ordered = heads[:, :turned].unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
        return torch.cat([ordered, heads[:, turned:]], 1).flatten(0, 1)

    def slices_along(self) -> int:
        return 0


@register
class Rearrange(Adapter):
    """The rows of a weight in another order of the numbers that count them: of groups, heads, rows of a head.

    The file counts rows by ``sizes``, the slowest first; -1 is left open. Dimension i of the site's count is dimension
    ``order[i]`` of the file's: of a fused weight ``Rearrange((heads, 3, -1), (1, 0, 2))`` makes q, k, v one after the
    other of q, k, v head by head. ``axis=1`` does it to the columns of the weight that reads what such rows give.

    >>> Rearrange((2, 2, -1), (1, 0, 2)).adapt([torch.arange(8)], (8,), "q.bias")
    tensor([0, 1, 4, 5, 2, 3, 6, 7])
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if self.sizes.count(-1) > 1 or not all(is_integer(size) or size == -1 for size in self.sizes):
            raise ValueError(f"sizes must be whole numbers from 1, one of them -1 at most, but got {self.sizes}")
        if sorted(self.order) != list(range(len(self.sizes))):
            raise ValueError(f"order must be 0 to {len(self.sizes) - 1} in some order, but got {self.order}")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        stored, known = shapes[0], abs(math.prod(self.sizes))
        rows = stored[self.axis] if len(stored) > self.axis else -1
        if rows < 0 or rows % known or (-1 not in self.sizes and rows != known):
            raise ValueError(f"{self} cannot divide dimension {self.axis} of {list(stored)} into {self.sizes}")
        return stored

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        numbers = torch.arange(tensors[0].shape[self.axis], device=tensors[0].device)
        return tensors[0].index_select(self.axis, numbers.view(self.sizes).permute(self.order).flatten())

    def slices_along(self) -> int:
        return self.axis


@register
class PoolHeads(Adapter):
    """A key or value weight for fewer heads, each the mean of a group (https://arxiv.org/abs/2305.13245).

    ``heads`` is the number of key heads in the file; the site's shape says how many are left. Neighbours make a group.
    ``choose`` takes one of the file's heads for each that is left, as it is, in place of the means.

    >>> PoolHeads(heads=4).adapt([torch.tensor([1.0, 3.0, 5.0, 7.0])], (2,), "k_proj.bias")
    tensor([2., 6.])
    >>> PoolHeads(heads=4, choose=(0, 2)).adapt([torch.tensor([1.0, 3.0, 5.0, 7.0])], (2,), "k_proj.bias")
    tensor([1., 5.])
    """

    promise: ClassVar[Promise] = "none"
    heads: int
    choose: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if outside := [head for head in self.choose or () if not 0 <= head < self.heads]:
            raise ValueError(f"choose names head {outside[0]}, but the file has heads 0 to {self.heads - 1}")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {0})
        size, rest = divmod(stored[0], self.heads)
        if rest or shape[0] == 0 or shape[0] % size or self.heads % (shape[0] // size):
            groups = f"{self.heads} heads of {list(stored)} in equal groups"
            raise ValueError(f"{self} cannot pool {groups} for a site of {list(shape)}")
        if self.choose is not None and len(self.choose) != shape[0] // size:
            raise ValueError(f"{self} chooses {len(self.choose)} heads, but the site has {shape[0] // size}")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        size = tensors[0].shape[0] // self.heads
        if self.choose is not None:
            chosen = torch.tensor(self.choose, device=tensors[0].device)
            heads: Tensor = tensors[0].unflatten(0, (self.heads, size))
            return heads.index_select(0, chosen).flatten(0, 1)
        groups: Tensor = upcast(tensors[0]).unflatten(0, (shape[0] // size, -1, size))
        return groups.mean(1).flatten(0, 1)

    def slices_along(self) -> int | None:
        return None if self.choose is None else 0
