"""Rows and axes: some rows of a tensor, those of other classes, none at all; dimensions in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from torchinit._text import did_you_mean
from torchinit.checkpoints.adapters.base import (
    Adapter,
    ReadPlan,
    Size,
    check_same,
    check_whole,
    register,
    take_lists,
    upcast,
)
from torchinit.model.shards import Box
from torchinit.serialization.validation import check_choice, is_integer

Missing: TypeAlias = Literal["error", "mean", "zero"]


@register
class Drop(Adapter):
    """Nothing of the file: the site stays with its other rules, and the account calls it declined.

    >>> Drop().wants("head.weight")
    ()
    """

    def wants(self, key: str) -> tuple[str, ...]:
        return ()

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        raise ValueError(f"{self} makes nothing, so not {key!r}")


@register
class Transpose(Adapter):
    """Dimension i of the site is dimension ``axes[i]`` of the file: GPT-2's ``Conv1D`` and a Linear, either way.

    ``(3, 2, 0, 1)`` makes the convolution of TensorFlow, (h, w, in, out), one of PyTorch; ``(0, 2, 1)``
    transposes each expert of a stack. A square weight fits transposed or not: only its glob tells.

    >>> Transpose().makes([(768, 3072)], "mlp.c_fc.weight")
    (3072, 768)
    """

    axes: tuple[int, ...] = (1, 0)

    def __post_init__(self) -> None:
        take_lists(self, int, "axes")
        if sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(f"axes must be 0, 1, ... in some order, but got {self.axes}")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        if len(shapes[0]) != len(self.axes):
            raise ValueError(f"{self} needs {len(self.axes)} dimensions, but got {list(shapes[0])}")
        return tuple(shapes[0][axis] for axis in self.axes)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return tensors[0].permute(self.axes)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        places = [self.axes.index(axis) for axis in range(len(shape))]
        start, size = (tuple(values[place] for place in places) for values in (box.start, box.shape))
        return ReadPlan((Box(start, size),), lambda tensors: tensors[0].permute(self.axes))


@register
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
        check_whole(self, "axis")
        if self.indices is not None:
            take_lists(self, int, "indices")
            if not all(is_integer(index, 0) for index in self.indices):
                raise ValueError(f"indices must be whole numbers from 0, but got {self.indices!r}")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {self.axis}, least=self.axis + 1)
        rows = shape[self.axis]
        if self.indices is not None and len(self.indices) != rows:
            raise ValueError(f"{self} has {len(self.indices)} indices for the {rows} rows of {list(shape)}")
        least = rows if self.indices is None else max(self.indices, default=-1) + 1
        if least > stored[self.axis]:
            raise ValueError(f"{self} needs at least {least} rows for a site of {list(shape)}, but got {list(stored)}")

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return self.indices is not None or shapes[0] != shape

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        tensor = tensors[0]
        if self.indices is None:
            return tensor.narrow(self.axis, 0, shape[self.axis])
        return tensor.index_select(self.axis, torch.tensor(self.indices, dtype=torch.int64, device=tensor.device))

    def slices_along(self) -> int:
        return self.axis


@register
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
        check_choice("missing", self.missing, Missing)
        take_lists(self, str, "file", "site")
        for name, labels in (("file", self.file), ("site", self.site)):
            if len(set(labels)) < len(labels):
                raise ValueError(f"{name} names {next(label for label in labels if labels.count(label) > 1)!r} twice")
        lacking = [f"{label!r}{did_you_mean(label, self.file)}" for label in self.site if label not in self.file]
        if lacking and self.missing == "error":
            raise ValueError(f"the file has no label {'; '.join(lacking)}: missing='mean' or 'zero' fills them in")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {0})
        for name, labels, size in (("file", self.file, stored), ("site", self.site, shape)):
            if size[0] != len(labels):
                raise ValueError(f"Labels has {len(labels)} labels for the {name}, whose shape is {list(size)}")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        tensor = tensors[0]
        places = {label: place for place, label in enumerate(self.file)}
        other = len(self.file)  # the row below all others, for labels that the file does not have
        chosen = torch.tensor([places.get(label, other) for label in self.site], device=tensor.device)
        if self.slices_along() is not None:
            return tensor.index_select(0, chosen)
        rows = upcast(tensor)
        extra = rows.mean(0, keepdim=True) if self.missing == "mean" else torch.zeros_like(rows[:1])
        return torch.cat([rows, extra]).index_select(0, chosen)

    def slices_along(self) -> int | None:
        return 0 if {*self.site} <= {*self.file} else None
