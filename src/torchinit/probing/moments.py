"""Moments: the numbers of one tensor of activations or gradients, from a sample, without a transfer to the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

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
    items = (first_floating(item, depth - 1) for item in parts_of(output))
    return next((item for item in items if item is not None), None)


def parts_of(value: object) -> list[object]:
    """The items of a list, a tuple, a mapping or a dataclass; of anything else none."""
    if isinstance(value, Mapping):
        return [*value.values()]
    if isinstance(value, (list, tuple)):
        return [*value]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    return []
