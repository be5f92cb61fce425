"""Heads: a classifier for other classes than the file's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size, check_same, computed, take_lists
from torchinit.checkpoints.adapters.moves import moved
from torchinit.core.arguments import choice, is_whole
from torchinit.core.shards import Box
from torchinit.errors import did_you_mean

Missing: TypeAlias = Literal["error", "mean", "zero"]


@final
@dataclass(frozen=True, slots=True)
class Drop(Adapter):
    """Nothing of the file: the site stays with its other rules, and the account calls it declined.

    >>> Drop().wants("head.weight")
    ()
    """

    def wants(self, key: str) -> tuple[str, ...]:
        return ()

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        raise ValueError(f"{self} makes nothing, so not {key!r}")


@final
@dataclass(frozen=True, slots=True)
class Rows(Adapter):
    """Some rows of the file's: those of ``indices`` in this order, by default the first ones.

    For a classifier whose classes are some of the file's, weight and bias alike. ``axis`` is the dimension
    that is cut.

    >>> import torch
    >>> Rows((2, 0)).adapt([torch.arange(4)], (2,), "head.bias")
    tensor([2, 0])
    """

    indices: tuple[int, ...] | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.axis, 0):
            raise ValueError(f"axis must be a whole number from 0, but got {self.axis!r}")
        if self.indices is not None:
            take_lists(self, int, "indices")
            if not all(is_whole(index, 0) for index in self.indices):
                raise ValueError(f"indices must be whole numbers from 0, but got {self.indices!r}")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        check_same(self, seen, shape, free={self.axis})
        have, want = seen[self.axis], shape[self.axis]
        if self.indices is not None and len(self.indices) != want:
            raise ValueError(f"{self} has {len(self.indices)} indices for the {want} rows of {list(shape)}")
        most = max(self.indices, default=0) + 1 if self.indices is not None else want
        if most > have:
            raise ValueError(f"{self} needs at least {most} rows for a site of {list(shape)}, but got {list(seen)}")

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return self.indices is not None or shapes[0] != shape

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (tensor,) = tensors
        if self.indices is None:
            return tensor.narrow(self.axis, 0, shape[self.axis])
        return tensor.index_select(self.axis, torch.tensor(self.indices, dtype=torch.int64, device=tensor.device))

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        return moved(self, self.axis, shapes, shape, box, key)


@final
@dataclass(frozen=True, slots=True)
class Labels(Adapter):
    """The rows of a classifier by the names of their classes: those of the file, and those of the site, in order.

    What the file has no row for is an error, or with ``missing="mean"`` the mean of all of its rows, with
    ``missing="zero"`` zeros. Whatever is not named in ``site`` is left out.

    >>> import torch
    >>> cats_and_dogs = Labels(file=("cat", "cow", "dog"), site=("dog", "cat"))
    >>> cats_and_dogs.adapt([torch.tensor([1.0, 2.0, 3.0])], (2,), "head.bias")
    tensor([3., 1.])
    """

    file: tuple[str, ...]
    site: tuple[str, ...]
    missing: Missing = "error"

    def __post_init__(self) -> None:
        choice("missing", self.missing, Missing)
        take_lists(self, str, "file", "site")
        for name in ("file", "site"):
            labels = getattr(self, name)
            if len(set(labels)) < len(labels):
                raise ValueError(f"{name} names {next(label for label in labels if labels.count(label) > 1)!r} twice")
        lacking = [label for label in self.site if label not in self.file]
        if lacking and self.missing == "error":
            told = "; ".join(f"{label!r}{did_you_mean(label, self.file)}" for label in lacking)
            raise ValueError(f"the file has no label {told}: missing='mean' or 'zero' fills them in")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        check_same(self, seen, shape, free={0})
        for what, labels, size in (("file", self.file, seen), ("site", self.site, shape)):
            if size[0] != len(labels):
                raise ValueError(f"Labels has {len(labels)} labels for the {what}, whose shape is {list(size)}")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (tensor,) = tensors
        places = {label: place for place, label in enumerate(self.file)}
        other = len(self.file)  # the row below all others, for labels that the file does not have
        chosen = torch.tensor([places.get(label, other) for label in self.site], device=tensor.device)
        if set(self.site) <= places.keys():
            return tensor.index_select(0, chosen)
        rows = computed(tensor)
        extra = rows.mean(0, keepdim=True) if self.missing == "mean" else torch.zeros_like(rows[:1])
        return torch.cat([rows, extra]).index_select(0, chosen)

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        if set(self.site) <= set(self.file):
            return moved(self, 0, shapes, shape, box, key)
        return Adapter.part(self, shapes, shape, box, key)
