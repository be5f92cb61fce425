"""Fusion: several weights of the file as one, and one as several: q, k, v, gate, up; the experts of a mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchinit._text import did_you_mean
from torchinit.checkpoints.adapters.base import (
    Adapter,
    Promise,
    ReadPlan,
    Size,
    check_whole,
    find_parts,
    listed,
    numbered,
    register,
    replace_parts,
    take_lists,
)
from torchinit.model.shards import Box, inserted, replaced, without
from torchinit.serialization.validation import is_integer

if TYPE_CHECKING:
    from torchinit.checkpoints.adapters.surroundings import Surroundings
    from torchinit.model.sites import Site


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
        _check_arguments(self)

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(replace_parts(key, self.into, part) for part in self.parts)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        axis = self.axis
        for part, stored in zip(self.parts, shapes, strict=True):
            if len(stored) <= axis or replaced(stored, axis, 0) != replaced(shapes[0], axis, 0):
                raise ValueError(f"{self} needs parts that differ in dimension {axis} alone, but got {listed(shapes)}")
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

    >>> import torch
    >>> Split("qkv", ("q_proj", "k_proj", "v_proj")).adapt([torch.arange(6)], (2,), "layers.0.k_proj.bias")
    tensor([2, 3])
    """

    whole: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    axis: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        _check_arguments(self)
        if self.sizes is not None:
            take_lists(self, int, "sizes")
            if len(self.sizes) != len(self.parts) or not all(map(is_integer, self.sizes)):
                wanted = f"a whole number from 1 for each of {self.parts}"
                raise ValueError(f"sizes must be {wanted}, but got {self.sizes!r}")

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
        sizes = self.sizes or (1,) * len(self.parts)
        unit, rest = divmod(size * math.gcd(*sizes), self.groups * sum(sizes))
        if rest:
            raise ValueError(f"{self} cannot cut {size} rows into {self.groups} x {sizes}")
        number = self._number(key)
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
        _check_pattern("parts", self.parts)
        check_whole(self, "count", least=1)
        check_whole(self, "axis")

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
        _check_pattern("parts", self.parts)
        check_whole(self, "axis")

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


@register
class Only(Adapter):
    """An adapter for the tensors that have a part in their names, while others stay as they are: for steps of a chain.

    Of a fused weight of q, k and v the rotary order of q and k changes, each with its number of heads:

    >>> from torchinit.checkpoints.adapters import Chain, RopeOrder
    >>> order = Only("q", RopeOrder(32)), Only("k", RopeOrder(8))
    >>> Chain((*order, Fuse("qkv", ("q", "k", "v")))).makes([(64, 9), (16, 9), (16, 9)], "h.0.qkv.weight")
    (96, 9)
    """

    part: str
    adapter: Adapter

    @property
    def promise(self) -> Promise | None:
        return self.adapter.promise

    @property
    def goes_by_slices(self) -> bool:
        return self.adapter.goes_by_slices

    def placed(self, site: Site, around: Surroundings, shapes: Sequence[Size]) -> Adapter:
        return replace(self, adapter=self.adapter.placed(site, around, shapes)) if self._is_for(site.name) else self

    def _is_for(self, key: str) -> bool:
        return find_parts(key, self.part) is not None

    def together(self, key: str) -> tuple[str, ...]:
        return self.adapter.together(key) if self._is_for(key) else ()

    def wants(self, key: str) -> tuple[str, ...]:
        return self.adapter.wants(key) if self._is_for(key) else (key,)

    def makes(self, shapes: Sequence[Size], key: str) -> Size | None:
        return self.adapter.makes(shapes, key) if self._is_for(key) else shapes[0]

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        if self._is_for(key):
            self.adapter.check(shapes, shape, key)
        else:
            Adapter.check(self, shapes, shape, key)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return self.adapter.adapt(tensors, shape, key) if self._is_for(key) else tensors[0]

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if self._is_for(key):
            return self.adapter.read_plan(shapes, shape, box, key)
        return ReadPlan((box,), lambda tensors: tensors[0])


def _check_arguments(adapter: Fuse | Split) -> None:
    take_lists(adapter, str, "parts")
    if len(adapter.parts) < 2 or len({*adapter.parts}) < len(adapter.parts):
        raise ValueError(f"parts must be two or more different names, but got {adapter.parts!r}")
    check_whole(adapter, "axis")
    check_whole(adapter, "groups", least=1)


def _check_pattern(name: str, pattern: str) -> None:
    if pattern.split(".").count("*") != 1:
        raise ValueError(f"{name} must have one part '*', the number of each, but got {pattern!r}")
