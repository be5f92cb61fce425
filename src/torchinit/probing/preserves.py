"""Preserves: whether a model computes what another one does, by running both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchinit._text import abbreviate, with_article
from torchinit.errors import ProbeError
from torchinit.probing.inputs import Inputs, check_place, forward, inputs_of
from torchinit.probing.moments import parts_of
from torchinit.probing.passes import kept
from torchinit.serialization.schema import check_number


@dataclass(frozen=True, slots=True)
class OutputDistance:
    """An output of two models: the root mean square of the old one, and how far apart the two are, in units of it.

    >>> OutputDistance("logits", rms=2.0, apart=0.5).apart
    0.5
    """

    name: str
    rms: float
    apart: float


@dataclass(frozen=True, slots=True)
class Preservation:
    """What :func:`torchinit.preserves` finds; true where all outputs that both have are within ``atol``.

    ``outputs`` are those that can be compared, ``others`` the names of those whose shapes differ, ``inputs`` tells what
    the models were run on.

    >>> bool(Preservation((OutputDistance("logits", 2.0, 1e-7),), atol=1e-5))
    True
    """

    outputs: tuple[OutputDistance, ...]
    atol: float
    inputs: str = ""
    others: tuple[str, ...] = ()

    @property
    def apart(self) -> float:
        """The largest distance."""
        return max(each.apart for each in self.outputs)

    def __bool__(self) -> bool:
        return all(each.apart <= self.atol for each in self.outputs)

    def __str__(self) -> str:
        verdict = "the same function" if self else "another function"
        lines = [f"{each.name}: {each.apart:.2g} of a root mean square of {each.rms:.4g}" for each in self.outputs]
        lines += [f"not compared, for other shapes: {abbreviate(self.others)}"] if self.others else []
        return "\n  ".join([f"{verdict} within {self.atol:g}, on {self.inputs}", *lines])

    def to_dict(self) -> dict[str, object]:
        """The same as plain data."""
        outputs = [
            {**asdict(each), "apart": each.apart if math.isfinite(each.apart) else None} for each in self.outputs
        ]
        return {**asdict(self), "preserved": bool(self), "outputs": outputs}


def preserves(old: nn.Module, new: nn.Module, batch: Any = None, *, atol: float = 1e-5) -> Preservation:
    """Whether a model computes what another one does, on a batch: true where all outputs are alike.

    For a model made of another (``layers=``, adapters): the proof of what it promises. The largest difference of an
    output, in units of the root mean square of the old one's, must not be above ``atol``. ``batch`` is as for
    :func:`torchinit.probe`; without it one is made for the old model. Both are run in evaluation, under the same seed,
    and left as they were. Outputs whose shapes differ, as the hidden values of a wider model, are named and left out.

    Raises ProbeError for a model that raises, and where no output can be compared; TypeError for anything but models;
    ValueError for an ``atol`` below 0.

    >>> old = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> new = nn.Sequential(old[0], nn.ReLU(), nn.ReLU())
    >>> bool(preserves(old, new)), bool(preserves(old, old[0]))
    (True, False)
    """
    check_number("atol", atol, least=0)
    for model in (old, new):
        if not isinstance(model, nn.Module):
            raise TypeError(f"preserves takes two models, but got {with_article(type(model).__name__)}")
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise ProbeError(f"{type(model).__name__} is on the meta device, so it computes nothing")
    with kept(old, 0):
        inputs = inputs_of(old.eval(), batch)
    before, after = _outputs(old, inputs), _outputs(new, inputs)
    common = [name for name in before if name in after and before[name].shape == after[name].shape]
    if not any(before[name].numel() for name in common):
        returned = f"{type(old).__name__} returns {_shapes(before)}, {type(new).__name__} {_shapes(after)}"
        raise ProbeError(f"{returned}: nothing to compare. Take models with heads, which give the same shapes")
    distances = tuple(_distance(name, before[name], after[name]) for name in common)
    return Preservation(distances, atol, inputs.text, tuple(name for name in before | after if name not in common))


def _outputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of floats that a model returns, by their names or places."""
    check_place(inputs, model)
    with kept(model, 0), torch.no_grad():
        return dict(_tensors("output", forward(model.eval(), inputs)))


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        yield name, value.detach().clone()
    for key, item in parts_of(value, name):
        yield from _tensors(key, item)


def _distance(name: str, before: Tensor, after: Tensor) -> OutputDistance:
    wide = torch.complex128 if before.is_complex() else torch.float64
    first, second = before.to(wide), after.to(device=before.device, dtype=wide)
    if not first.numel():
        return OutputDistance(name, 0.0, 0.0)
    rms = float(first.abs().square().mean().sqrt())
    same = first == second  # infinities, too: a mask is the same in both
    apart = float((first - second).abs().masked_fill(same, 0.0).max())
    finite = rms if math.isfinite(rms) and rms else 1.0
    return OutputDistance(name, rms, apart / finite if not math.isnan(apart) else math.inf)


def _shapes(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "no tensors"
