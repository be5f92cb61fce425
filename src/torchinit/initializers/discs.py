"""Discs: complex numbers that are uniform in a disc around 0, or normal and cut to one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.initializers.moments import Moments
from torchinit.model.shards import Box, Shard
from torchinit.noise import Noise


class Disc(NamedTuple):
    r"""A disc of complex numbers: its ``radius``, and E|z|² = ``sigma``² of the normal that is cut (inf: uniform).

    Both are turned around 0 by a uniform angle. The square of the distance has the distribution function

    .. math:: P(|z|^2 \le t) = t / R^2 \quad\text{or}\quad (1 - e^{-t/\sigma^2}) / (1 - e^{-R^2/\sigma^2})

    >>> Disc(2.0).parts().std
    1.0
    """

    radius: float
    sigma: float = math.inf

    def write(self, shard: Shard, noise: Noise) -> None:
        """Draw a complex shard: of each number the first word tells the distance, the second the angle."""
        local, axes = shard.local, (2,)
        wide = torch.float64 if noise.is_stateful and local.dtype == torch.complex128 else torch.float32
        uniform = torch.empty((*local.shape, *axes), dtype=wide, device=local.device)
        matrix = shard.matrix and Box((*shard.matrix.start, 0), (*shard.matrix.shape, *axes))
        pairs = replace(shard, local=uniform, shape=(*shard.shape, *axes), start=(*shard.start, 0), matrix=matrix)
        noise.fill(pairs, "uniform", (0.0, 1.0))
        distance, angle = uniform.double().cpu().unbind(-1)
        distance, angle = self._squares(distance).sqrt_(), angle * (2 * math.pi)
        real, imaginary = (distance * turned for turned in (angle.cos(), angle.sin()))
        part = local.dtype.to_real()
        if part != torch.float64:  # rounded once, by float32, as all values of the stream
            real, imaginary = real.float(), imaginary.float()
        local.copy_(torch.complex(real, imaginary))

    def _squares(self, share: Tensor) -> Tensor:
        """The squares of the distances within which lie these shares of the numbers."""
        if math.isinf(self.sigma):
            return share * self.radius**2
        return torch.log1p(share * math.expm1(-((self.radius / self.sigma) ** 2))) * -(self.sigma**2)

    def parts(self) -> Moments:
        """The moments of the real and of the imaginary part."""
        square, fourth = self._means()
        low, high = (-self.radius, self.radius) if math.isfinite(self.radius) else (None, None)
        return Moments(0.0, math.sqrt(square / 2), low, high, 1.5 * fourth / square**2 if square else 3.0)

    def _means(self) -> tuple[float, float]:
        """The means of |z|² and |z|⁴; close to uniform, where the closed forms lose their digits, those of uniform."""
        ratio = (self.radius / self.sigma) ** 2
        if ratio < 1e-5:
            return self.radius**2 / 2, self.radius**4 / 3
        tail = math.exp(-ratio) / -math.expm1(-ratio)
        square = 1 - (ratio * tail if tail else 0.0)
        return self.sigma**2 * square, self.sigma**4 * (2 * square - (ratio**2 * tail if tail else 0.0))


def disc_std(bound: float) -> float:
    """The standard deviation of complex normal numbers with E|z|² = 1 that are cut at the distance ``bound``.

    >>> round(disc_std(2.0), 6)
    0.961962
    """
    return math.sqrt(Disc(bound, 1.0)._means()[0])
