"""Fusion: several weights of the file as one, and one as several: q, k, v, gate, up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size, take_lists
from torchinit.checkpoints.adapters.keys import place, swapped
from torchinit.checkpoints.adapters.moves import moved
from torchinit.core.arguments import is_whole
from torchinit.core.shards import Box, replaced
from torchinit.errors import did_you_mean


@final
@dataclass(frozen=True, slots=True)
class Fuse(Adapter):
    """Several weights of the file one after the other: q, k and v as one, gate and up as one.

    A key is the site's own with ``into`` replaced by each of ``parts``, whole dotted parts of a name. They
    follow each other along ``axis``. With ``groups=n`` each is cut into n, and group by group they follow
    each other: ``groups=heads`` is the layout of GPT-NeoX and BLOOM, ``groups=kv_heads`` that of Megatron and
    Falcon where several queries share a key.

    >>> Fuse("qkv", ("q_proj", "k_proj", "v_proj")).wants("layers.0.qkv.weight")
    ('layers.0.q_proj.weight', 'layers.0.k_proj.weight', 'layers.0.v_proj.weight')
    >>> import torch
    >>> first, second = torch.tensor([1, 1, 2, 2]), torch.tensor([3, 4])
    >>> Fuse("up", ("a", "b"), groups=2).adapt([first, second], (6,), "up")
    tensor([1, 1, 3, 2, 2, 4])
    """

    into: str
    parts: tuple[str, ...]
    axis: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        take_lists(self, str, "parts")
        _check_arguments(self.parts, self.axis, self.groups)

    def wants(self, key: str) -> tuple[str, ...]:
        return tuple(swapped(key, self.into, part) for part in self.parts)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        for part, seen in zip(self.parts, shapes, strict=True):
            if len(seen) <= self.axis or replaced(seen, self.axis, 0) != replaced(shapes[0], self.axis, 0):
                raise ValueError(
                    f"{self} needs parts that differ in dimension {self.axis} alone, "
                    f"but got {', '.join(str(list(size)) for size in shapes)}"
                )
            if seen[self.axis] % self.groups:
                raise ValueError(f"{self} needs {part!r} in {self.groups} equal groups, but got {list(seen)}")
        return replaced(shapes[0], self.axis, sum(seen[self.axis] for seen in shapes))

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        axis = self.axis
        grouped = [tensor.unflatten(axis, (self.groups, -1)) for tensor in tensors]
        return torch.cat(grouped, axis + 1).flatten(axis, axis + 1)

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        return moved(self, self.axis, shapes, shape, box, key)


@final
@dataclass(frozen=True, slots=True)
class Split(Adapter):
    """A part of a fused weight of the file: the reverse of :class:`Fuse`.

    The key is the site's own with the one of ``parts`` that it has replaced by ``whole``. The parts have
    equal sizes unless ``sizes`` says in which proportion they stand: ``(4, 1, 1)`` where four queries share a
    key. ``axis`` and ``groups`` are as for :class:`Fuse`.

    >>> thirds = Split("qkv", ("q_proj", "k_proj", "v_proj"))
    >>> thirds.wants("layers.0.k_proj.bias")
    ('layers.0.qkv.bias',)
    >>> import torch
    >>> thirds.adapt([torch.arange(6)], (2,), "layers.0.k_proj.bias")
    tensor([2, 3])
    """

    whole: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    axis: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        take_lists(self, str, "parts")
        _check_arguments(self.parts, self.axis, self.groups)
        if self.sizes is None:
            return
        take_lists(self, int, "sizes")
        if not (len(self.sizes) == len(self.parts) and all(map(is_whole, self.sizes))):
            raise ValueError(f"sizes must be a whole number from 1 for each of {self.parts}, but got {self.sizes!r}")

    def wants(self, key: str) -> tuple[str, ...]:
        return (swapped(key, self.parts[self._number(key)], self.whole),)

    def _number(self, key: str) -> int:
        """Which part the key asks for: the one that stands last in it."""
        places = [-1 if (at := place(key, part)) is None else at for part in self.parts]
        if max(places) < 0:
            near = next(filter(None, (did_you_mean(part, key.split(".")) for part in self.parts)), "")
            raise ValueError(f"{key!r} has none of the parts {', '.join(map(repr, self.parts))}{near}")
        return places.index(max(places))

    def _span(self, size: int, key: str) -> tuple[int, int]:
        """Where in each group the part begins, and how long it is."""
        sizes = self.sizes or (1,) * len(self.parts)
        unit, rest = divmod(size * math.gcd(*sizes), self.groups * sum(sizes))
        if rest:
            raise ValueError(f"{self} cannot cut {size} rows into {self.groups} x {sizes}")
        number = self._number(key)
        scaled = [unit * part // math.gcd(*sizes) for part in sizes]
        return sum(scaled[:number]), scaled[number]

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        (seen,) = shapes
        if len(seen) <= self.axis:
            raise ValueError(f"{self} needs at least {self.axis + 1} dimensions, but got {list(seen)}")
        return replaced(seen, self.axis, self.groups * self._span(seen[self.axis], key)[1])

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (whole,) = tensors
        axis = self.axis
        start, length = self._span(whole.shape[axis], key)
        groups: Tensor = whole.unflatten(axis, (self.groups, -1))
        return groups.narrow(axis + 1, start, length).flatten(axis, axis + 1)

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        return moved(self, self.axis, shapes, shape, box, key)


def _check_arguments(parts: tuple[str, ...], axis: int, groups: int) -> None:
    if len(parts) < 2 or len(set(parts)) < len(parts):
        raise ValueError(f"parts must be two or more different names, but got {parts!r}")
    if not is_whole(axis, 0) or not is_whole(groups):
        raise ValueError(f"axis must be a whole number from 0 and groups one from 1, but got {axis!r} and {groups!r}")
