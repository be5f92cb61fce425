"""Values: what the parameters of a start hold, from a sample of each, and how they came to hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Final

import torch
from torch import Tensor, nn

from torchinit._folding import Column, Row, RowGroup, fold
from torchinit._text import count, dtype_name, shape_text
from torchinit.errors import RunError
from torchinit.model.dtensor import local_part
from torchinit.model.names import normalize
from torchinit.plans.fingerprint import fingerprint
from torchinit.plans.report import Report

_SHAPE: Final = Column("shape")
_SAMPLE: Final = 1 << 14
_COUNTS: Final = 40
_REACH: Final = 4.5
"""The standard deviations from the mean that a histogram shows: outliers do not make it a spike."""


@dataclass(frozen=True, slots=True)
class LikeValues:
    """The values of parameters that are alike: their standard deviations, the least and the largest, and a histogram.

    ``counts`` are those of a sample between ``low`` and ``high``, in parts of equal width; none where all values are
    the same.
    """

    label: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stds: tuple[float, float]
    low: float = 0.0
    high: float = 0.0
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StartValues:
    """A start as it was probed: the ``recipe`` that made it, in words, its ``report``, and what the parameters hold."""

    recipe: str
    seed: int
    elements: int
    dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    fingerprint: str = ""
    report: Report | None = None
    parameters: tuple[LikeValues, ...] = ()


def recipe_text(recipe: object) -> str:
    """A recipe in few words: its file or name, or its number of rules; empty for a model's own start."""
    if recipe is None or isinstance(recipe, (str, PathLike)):
        return "" if recipe is None else fspath(recipe)
    return count(len(recipe), "rule") if isinstance(recipe, (list, tuple)) else "a recipe"


def values_of(model: nn.Module, recipe: object = None, seed: int = 0, report: Report | None = None) -> StartValues:
    """What the parameters of a model hold.

    >>> found = values_of(nn.Linear(64, 64))
    >>> [(each.label, each.shape, len(each.counts)) for each in found.parameters]
    [('weight', (64, 64), 32), ('bias', (64,), 8)]
    """
    parameters = {normalize(name): each for name, each in model.named_parameters()}
    digest = report.fingerprint.total if report and report.fingerprint else ""
    with suppress(RunError):  # of what has no elements to look at
        digest = digest or fingerprint(model).total
    rows = [Row(name, (shape_text(each.shape),)) for name, each in parameters.items()]
    groups = fold(rows, (_SHAPE,), among=parameters)
    return StartValues(
        recipe_text(recipe), seed, sum(each.numel() for each in parameters.values()),
        tuple(sorted({dtype_name(each.dtype) for each in parameters.values()})),
        tuple(sorted({str(each.device) for each in parameters.values()})), digest, report,
        tuple(_alike(group, [parameters[name] for name in group.names]) for group in groups),
    )  # fmt: skip


def _alike(group: RowGroup, tensors: list[Tensor]) -> LikeValues:
    samples = [*_samples(tensors)]
    shape = tuple(tensors[0].shape)
    if not samples:
        return LikeValues(group.label, tuple(group.names), shape, (math.nan, math.nan))
    stds = [float(each.std(correction=0)) for each in samples]
    together = torch.cat(samples)
    mean, std = float(together.mean()), float(together.std(correction=0))
    low = max(float(together.min()), mean - _REACH * std)
    high = min(float(together.max()), mean + _REACH * std)
    counts: tuple[int, ...] = ()
    if low < high and math.isfinite(high - low):
        parts = min(_COUNTS, round(2 * together.numel() ** (1 / 3)))  # Rice's rule
        counts = tuple(map(int, torch.histc(together, parts, low, high).tolist()))
    return LikeValues(group.label, tuple(group.names), shape, (min(stds), max(stds)), low, high, counts)


def _samples(tensors: list[Tensor]) -> Iterator[Tensor]:
    """A sample of each tensor, of all of them together some ten thousand values at least; what is not finite is not."""
    for tensor in tensors:
        values = local_part(tensor.detach())
        flat = (torch.view_as_real(values) if values.is_complex() else values).reshape(-1)
        if flat.numel() and flat.is_floating_point() and not flat.is_meta:
            few = flat[:: flat.numel() // _SAMPLE | 1].double().cpu()
            yield few[few.isfinite()] if bool(few.isfinite().any()) else few[:0].new_zeros(1)
