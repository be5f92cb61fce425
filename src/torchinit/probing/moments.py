"""Moments: the numbers of tensors from a sample of them: of activations, of gradients, of what parameters hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike, fspath
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchinit._folding import Column, Row, RowGroup, fold
from torchinit._text import count, dtype_name, shape_text
from torchinit.errors import RunError
from torchinit.initializers.statistics import Moments, truncated
from torchinit.model.dtensor import local_part
from torchinit.model.names import normalize
from torchinit.plans.fingerprint import fingerprint
from torchinit.plans.report import Record, Report

_MOST: Final = 1 << 15
"""The elements of a sample. Two thousand of them miss the spread of images by a factor of four."""

_TOKENS: Final = 128


class BatchMoments(NamedTuple):
    """The moments of a tensor whose first dimension counts the samples; those that it has not are NaN.

    ``rms`` over all elements; ``signal``, the part that differs between samples: the RMS over the units of the standard
    deviation over the batch; ``spread``, one minus the mean cosine between samples, and ``token_spread``, the same
    between the tokens of a sample; ``top``, the largest absolute value, which is not finite where an element is not.
    """

    rms: float
    signal: float
    spread: float
    token_spread: float
    top: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.top)


def moments(tensor: Tensor, size: int) -> Tensor:
    """The moments of a tensor of so many samples, as a tensor on its device: nothing waits for the host.

    >>> BatchMoments(*moments(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), 2).tolist())
    BatchMoments(rms=3.53..., signal=5.0, spread=2.0, token_spread=nan, top=4.0)
    """
    # A sum of squares leaves float32 where a net explodes or vanishes, and float64 is not everywhere, so all numbers
    # are relative to the largest value. A spread is computed from the distances to the mean direction, not from
    # cosines: those lose what is below 1e-7.
    values = by_sample(tensor.detach(), size)
    top = torch.stack(values.aminmax()).abs().amax().float()  # NaN and infinity reach it
    scale = torch.where(top > 0, top, 1.0)
    rows = _sample(values) / scale
    if len(rows) > 1:
        signal = ((rows - rows.mean(0)).square().sum(0).mean() / (len(rows) - 1)).sqrt() * scale  # var(0) takes thrice
        spread = _spread(rows)
    else:
        signal = spread = torch.full_like(top, torch.nan)
    tokens = torch.full_like(top, torch.nan)
    if values.dim() == 3 and values.shape[1] > 1:
        few = values[:2, :: max(1, values.shape[1] // _TOKENS)].float() / scale
        tokens = torch.stack([_spread(each) for each in few]).mean()
    return torch.stack([rows.square().mean().sqrt() * scale, signal, spread, tokens, top])


def rms(tensor: Tensor) -> float:
    """The RMS of a tensor, of whatever size its numbers are."""
    if not tensor.numel():
        return 0.0
    values = tensor.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    top = float(values.abs().max())
    if not 1e-12 < top < 1e12:
        return top * float((values.double() / top).square().mean().sqrt()) if 0 < top < math.inf else top
    wide = torch.promote_types(values.dtype, torch.float32)
    return float(torch.linalg.vector_norm(values, dtype=wide)) / math.sqrt(values.numel())


def by_sample(tensor: Tensor, size: int) -> Tensor:
    """The tensor with the samples in its first dimension: of windows a sample has several; else it is one row."""
    # Sizes alone tell which dimension counts the samples: the first; the second, as in recurrent layers with the steps
    # in front; a multiple in the first, as of windows, or of heads folded into the batch. It can fail where there are
    # as many steps as samples: then steps are taken for samples.
    if tensor.dim() and tensor.shape[0] == size:
        return tensor if tensor.dim() > 1 else tensor[:, None]
    if tensor.dim() > 1 and tensor.shape[1] == size:
        return tensor.transpose(0, 1)
    if tensor.dim() and tensor.shape[0] % size == 0:
        return tensor.reshape(size, -1)
    return tensor.reshape(1, -1)


def _sample(values: Tensor) -> Tensor:
    """At most some thousand elements of all rows, in float32."""
    # The stride is odd: an even one goes along with the width of images, and sees the same few columns of each.
    flat = values.reshape(len(values), -1)
    return flat[:, :: flat.numel() // _MOST | 1].float()


def _spread(rows: Tensor) -> Tensor:
    """One minus the mean cosine of two different rows."""
    # For unit vectors d of mean m the average of |d - m|² is 1 - |m|², and |m|² is the mean cosine of all pairs, those
    # of a row with itself among them; n / (n - 1) takes these out. A row of zeros has no direction and stays zero: it
    # makes the rows seem less apart than the others are.
    directions = torch.nn.functional.normalize(rows, dim=1)
    apart = (directions - directions.mean(0)).square().sum(1).mean()
    return apart * len(rows) / (len(rows) - 1)


def first_floating(output: object, depth: int = 4) -> Tensor | None:
    """The first tensor of numbers in an output: itself, or in tuples, mappings and dataclasses; None if there is none.

    >>> first_floating((None, {"ids": torch.tensor([1]), "hidden": torch.zeros(2)}))
    tensor([0., 0.])
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.numel() else None
    if not depth:
        return None
    items = (first_floating(item, depth - 1) for _, item in parts_of(output))
    return next((item for item in items if item is not None), None)


def parts_of(value: object, name: str = "") -> list[tuple[str, object]]:
    """The items of a list, a tuple, a mapping or a dataclass with their names; of anything else none."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"{name}[{place}]", item) for place, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return []


# --- what parameters hold --------------------------------------------------------------------------------------------

_SHAPE: Final = Column("shape")
_SAMPLE: Final = 1 << 14
_COUNTS: Final = 40
_REACH: Final = 4.5
"""The standard deviations from the mean that a histogram shows: outliers do not make it a spike."""


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A tensor of so many ``values`` of which some are NaN or infinite, whether or not a pass met them.

    >>> print(NotFinite("norm.running_var", "buffer", 8, nan=1, infinite=0))
    1 of 8 values are NaN
    """

    name: str
    kind: Literal["parameter", "buffer", "input"]
    values: int
    nan: int
    infinite: int

    @property
    def may_be_meant(self) -> bool:
        """Whether it is a buffer of infinities that does not hold statistics: masks are made of them."""
        return self.kind == "buffer" and not self.nan and not self.name.endswith(("running_mean", "running_var"))

    def __str__(self) -> str:
        number, kind = (self.nan, "NaN") if self.nan else (self.infinite, "infinite")
        share = "all" if number == self.values else f"{number:,} of"
        return f"{share} {count(self.values, 'value')} {'is' if self.values == 1 else 'are'} {kind}"


def not_finite_in(model: nn.Module, inputs: Sequence[Tensor] = ()) -> tuple[NotFinite, ...]:
    """The inputs, the parameters and the buffers of a model that hold NaN or an infinity.

    >>> layer = nn.BatchNorm1d(4)
    >>> _ = layer.running_var[1].fill_(math.nan)
    >>> [f"{each.name}: {each}" for each in not_finite_in(layer)]
    ['running_var: 1 of 4 values are NaN']
    """
    kinds: dict[Literal["parameter", "buffer", "input"], Iterable[tuple[str, Tensor]]] = {
        "input": ((f"input[{place}]", each) for place, each in enumerate(inputs)),
        "parameter": model.named_parameters(),
        "buffer": model.named_buffers(),
    }
    found = (_not_finite(name, kind, each) for kind, held in kinds.items() for name, each in held)
    return tuple(each for each in found if each is not None)


def _not_finite(name: str, kind: Literal["parameter", "buffer", "input"], tensor: Tensor) -> NotFinite | None:
    values = local_part(tensor.detach())
    if values.is_meta or not (values.is_floating_point() or values.is_complex()):
        return None
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.dtype.itemsize == 1:  # eight bits have no arithmetic
        values = values.float()
    # A sum is not finite where an element is not, and reads each once without a mask; it overflows now and then.
    if bool(values.sum().isfinite()):
        return None
    nan, finite = int(values.isnan().sum()), int(values.isfinite().sum())
    infinite = values.numel() - finite - nan
    if not nan and not infinite:
        return None
    return NotFinite(name if kind == "input" else normalize(name), kind, values.numel(), nan, infinite)


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


def planned_curve(record: Record | None, each: LikeValues) -> tuple[float, ...]:
    """The planned density at the middle of each count; empty where the distribution is not a known one."""
    known = re.match(r"(?:-?[\d.e+-]+ \* )?(Normal|Uniform|TruncNormal)\(", record.fill) if record else None
    planned = record.expected if record else None
    if not known or planned is None or planned.mean is None or not planned.std:
        return ()
    wide = (each.high - each.low) / len(each.counts)
    middles = [each.low + (at + 0.5) * wide for at in range(len(each.counts))]
    return tuple(_density(known[1], planned, value) for value in middles)


def _density(kind: str, planned: Moments, value: float) -> float:
    mean, std = planned.mean or 0.0, planned.std or 1.0
    low, high = planned.min, planned.max
    if low is not None and high is not None and not low <= value <= high:
        return 0.0
    if kind == "Uniform":
        return 1 / (std * math.sqrt(12))
    if kind == "Normal" or low is None or high is None:
        return NormalDist(mean, std).pdf(value)
    centre = (low + high) / 2 if abs(low + high) < 1e-9 * (high - low) else mean
    whole = NormalDist(centre, _untruncated(centre, std, low, high))
    return whole.pdf(value) / (whole.cdf(high) - whole.cdf(low))


def _untruncated(mean: float, std: float, low: float, high: float) -> float:
    """The standard deviation of the normal with this mean whose part between two ends has a given one.

    By halving an interval, since the one grows with the other.
    """
    least, most = std, std * 1e4
    # By geometric means, for the answer has no upper end: what is cut narrowly is uniform, whatever the normal. A
    # deviation that only a uniform distribution has there gives `most`, whose curve is as flat. 60 halvings are beyond
    # the digits.
    for _ in range(60):
        sigma = math.sqrt(least * most)
        if truncated((low - mean) / sigma, (high - mean) / sigma)[1] * sigma < std:
            least = sigma
        else:
            most = sigma
    return math.sqrt(least * most)
