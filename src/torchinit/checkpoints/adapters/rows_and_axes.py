"""Rows and axes: some rows of a tensor, those of other classes or tokens, none; dimensions in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor

from torchinit._text import did_you_mean
from torchinit.checkpoints.adapters.base import Adapter, Promise, ReadPlan, register
from torchinit.checkpoints.adapters.tensors import Size, check_same, normal, upcast
from torchinit.model.shards import Box
from torchinit.serialization.json import FrozenDict
from torchinit.serialization.schema import is_integer

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

    For a classifier whose classes are some of the file's, weight and bias alike. ``axis`` is the dimension that is cut.

    >>> Rows((2, 0)).adapt([torch.arange(4)], (2,), "head.bias")
    tensor([2, 0])
    """

    indices: tuple[int, ...] | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        if not all(is_integer(index, 0) for index in self.indices or ()):
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

    >>> cats_and_dogs = Labels(file=("cat", "cow", "dog"), site=("dog", "cat"))
    >>> cats_and_dogs.adapt([torch.tensor([1.0, 2.0, 3.0])], (2,), "head.bias")
    tensor([3., 1.])
    """

    file: tuple[str, ...]
    site: tuple[str, ...]
    missing: Missing = "error"

    def __post_init__(self) -> None:
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


_MOST_DRAWS: Final = 1 << 24  # so many random numbers are kept at a time


@register
class ResizeVocabulary(Adapter):
    r"""An embedding or output layer, ``[tokens, width]`` or ``[tokens]``, for more tokens or fewer.

    The first rows stay. New ones are drawn from the normal distribution of the old (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html), with μ their mean and Σ their covariance:

    .. math:: N(\mu, \mathrm{spread} \cdot \Sigma)

    so that they change the probabilities of the old tokens little. ``spread=0`` makes all of them the mean. The draws
    are those of ``seed`` and the site's key, a row's own: a larger vocabulary begins with the rows of a smaller one.

    ``trained`` is the number of the file's tokens where its table is padded: the rows behind them were never trained,
    so they are new in the site. ``like`` gives new tokens, by their numbers, old ones to begin with: one, whose row is
    copied, or several, whose mean it is; with the same spread around it. Give it to the output layer, too.

    >>> table = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> ResizeVocabulary(spread=0).adapt([table], (3, 2), "wte.weight")[2]
    tensor([2., 0.])
    >>> ResizeVocabulary(spread=0, like={3: 1, 4: (0, 0, 1)}).adapt([table], (5, 2), "wte.weight")[3:]
    tensor([[3.0000, 0.0000],
            [1.6667, 0.0000]])
    """

    promise: ClassVar[Promise] = "function"  # of the tokens that the file has
    only_resizes: ClassVar[bool] = True
    spread: float = 1e-5
    seed: int = 0
    trained: int | None = None
    like: Mapping[Any, int | tuple[int, ...]] = FrozenDict()

    def __post_init__(self) -> None:
        if not isinstance(self.like, Mapping):
            raise TypeError(f"like gives old tokens to each new one, {{50257: (11, 25)}}, but got {self.like!r}")
        items = {str(new): tuple(old) if isinstance(old, (list, tuple)) else (old,) for new, old in self.like.items()}
        for new, old in items.items():
            if not (new.isdecimal() and old and all(is_integer(token, 0) for token in old)):
                wanted = "must give a new token's number one or more old ones"
                raise ValueError(f"like {wanted}, but got {new!r}: {self.like.get(new, old)!r}")
        object.__setattr__(self, "like", FrozenDict(items))

    def _old(self, stored: Size) -> int:
        """The number of old tokens."""
        return stored[0] if self.trained is None else self.trained

    def _likes(self) -> dict[int, tuple[int, ...]]:
        return {int(new): old for new, old in self.like.items() if isinstance(old, tuple)}

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {0}, most=2)
        old = self._old(stored)
        if old > stored[0]:
            raise ValueError(f"{self} has {old} tokens trained, but the file {stored[0]} in all")
        for new, likes in self._likes().items():
            if not old <= new < shape[0]:
                raise ValueError(f"{self} gives a start to {new}, but new tokens are {old} to {shape[0] - 1}")
            if max(likes) >= old:
                raise ValueError(f"{self} makes {new} of {max(likes)}, but the file's tokens are 0 to {old - 1}")

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return shapes[0] != shape or self._old(shapes[0]) < shape[0]

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        have, want = self._old(tuple(tensors[0].shape)), shape[0]
        table = tensors[0][:have]
        if want <= have:
            return table[:want]
        larger = upcast(table).new_empty(shape)
        larger[:have] = table
        mean = larger[:have].mean(0, dtype=torch.float64)
        larger[have:] = mean
        for new, likes in self._likes().items():
            larger[new] = larger[list(likes)].mean(0, dtype=torch.float64)
        if self.spread:
            centred = (larger[:have] - mean).to(larger.dtype)
            rows = max(1, _MOST_DRAWS // have)
            for first in range(have, want, rows):
                box = Box((first, 0), (min(rows, want - first), have))
                draws = normal(self.seed, key, box, (want, have), larger)
                # A sum of the old rows with normal weights has their covariance. A Cholesky factor of the covariance
                # would do as well, and fails where a table has fewer rows than columns or two columns alike.
                larger[first : first + len(draws)] += (draws @ centred) * (self.spread / have) ** 0.5
        return larger

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if box.start[0] + box.shape[0] <= self._old(shapes[0]):
            return ReadPlan((box,), lambda tensors: tensors[0])
        return Adapter.read_plan(self, shapes, shape, box, key)
