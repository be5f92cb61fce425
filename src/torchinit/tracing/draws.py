"""Draws: what torch's operations draw, done from keyed noise under a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from torchinit.model.dtensor import shards_of
from torchinit.model.shards import Box, Shard
from torchinit.noise import Distribution, Noise
from torchinit.noise.base import DrawRequest

_WORD: Final = 1 << 24
_HALF_CELL: Final = 2.0**-25


@dataclass(frozen=True, slots=True)
class DrawTarget:
    """A tensor to draw: under which name, with which draw index, from which noise.

    ``whole`` is set for a plain tensor that is the local part of a distributed one: where it begins in the whole, and
    the whole's shape.
    """

    noise: Noise
    name: str
    index: int
    tensor: Tensor
    whole: Box | None = None

    def shards(self, like: Tensor) -> tuple[Shard, ...]:
        """The local shards of a tensor that lies as the target does."""
        if self.whole is not None:
            return (Shard(self.name, like, self.whole.shape, self.whole.start),)
        return shards_of(self.name, like)

    def fill(self, distribution: Distribution, *params: float, like: Tensor | None = None, offset: int = 0) -> Tensor:
        """Draw the target, or a tensor that lies as it does."""
        tensor = self.tensor.detach() if like is None else like
        shards = [shard for shard in self.shards(tensor) if shard.local.numel()]
        self.noise.fill_many(DrawRequest(shard, distribution, params, self.index + offset) for shard in shards)
        return tensor

    def draw(self, distribution: Distribution, *params: float, offset: int = 0) -> Tensor:
        """New numbers in double precision, in the shape and the placement of the target."""
        like = torch.empty_like(self.tensor.detach(), dtype=torch.float64)
        return self.fill(distribution, *params, like=like, offset=offset)


def _bernoulli(target: DrawTarget, p: Tensor | float) -> None:
    if isinstance(p, Tensor):
        target.tensor.copy_(target.draw("uniform", 0.0, 1.0) < p)
    elif target.tensor.dtype.is_floating_point:
        target.fill("bernoulli", p)
    else:
        target.tensor.copy_(target.draw("bernoulli", p))


def _random(target: DrawTarget, **bounds: int | None) -> None:
    low, end = _bounds(target.tensor.dtype, **bounds)
    if end - low <= _WORD:
        values = target.draw("integer", 0.0, float(end - low)).long()
    else:
        first, second, third = (target.draw("integer", 0.0, float(_WORD), offset=n) for n in range(3))
        # No shifts: those of a DTensor give other numbers. No division of integers: older torch has none of DTensors.
        low_bits = third.div(1 << 9).floor().long()
        values = (first.long() * (1 << 39) + second.long() * (1 << 15) + low_bits) % (end - low)
    target.tensor.copy_(values + low)


def _bounds(dtype: torch.dtype, **given: int | None) -> tuple[int, int]:
    """The integers that ``random_`` draws from: the least, and the one after the greatest."""
    low, high = given.get("from") or 0, given.get("to")
    if high is not None:
        return low, high
    if dtype.is_floating_point:  # all up to the first that has no neighbour
        return low, round(2 / torch.finfo(dtype).eps) + 1
    top = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    return low, min(top, (1 << 63) - 2) + 1


def _log_uniform(target: DrawTarget) -> Tensor:
    """The logarithm of uniform numbers in (0, 1]."""
    return torch.log1p(-target.draw("uniform", 0.0, 1.0))


def _geometric(target: DrawTarget, p: float) -> None:
    target.tensor.copy_(_log_uniform(target).div(math.log1p(-p) if p < 1 else -math.inf).floor() + 1)


def _cauchy(target: DrawTarget, median: float, sigma: float) -> None:
    middle = target.draw("uniform", 0.0, 1.0) + _HALF_CELL - 0.5
    target.tensor.copy_(torch.tan(math.pi * middle) * sigma + median)


IN_PLACE_DRAWS: Final[Mapping[str, Callable[..., object]]] = {
    "normal_": lambda target, mean, std: target.fill("normal", mean, std),
    "uniform_": lambda target, **ends: target.fill("uniform", ends["from"], ends["to"]),
    "bernoulli_": _bernoulli,
    "random_": _random,
    "exponential_": lambda target, lambd: target.tensor.copy_(_log_uniform(target) / -lambd),
    "geometric_": _geometric,
    "cauchy_": _cauchy,
    "log_normal_": lambda target, mean, std: target.tensor.copy_(target.draw("normal", mean, std).exp()),
}
"""The draw of each of torch's in-place operations, given its arguments by name."""

MOST_INDICES: Final = 3
"""The draw indices that ``random_`` may use; all others use one."""


def _normal(target: DrawTarget, mean: Any = 0.0, std: Any = 1.0) -> Tensor:
    """A normal whose mean and standard deviation may be tensors."""
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        return target.tensor.copy_(target.draw("normal", 0.0, 1.0) * std + mean)
    return target.fill("normal", mean, std)


NEW_DRAWS: Final[Mapping[str, Callable[..., object]]] = {
    **dict.fromkeys(("rand", "rand_like"), lambda target: target.fill("uniform", 0.0, 1.0)),
    "randn": _normal,
    "randn_like": _normal,
    "normal": _normal,
}
"""The draw of each of torch's operations that return a new tensor."""
