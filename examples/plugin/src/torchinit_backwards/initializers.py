"""An initializer, which reads a site and gives a fill; and a fill, which writes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from torchinit import Normal
from torchinit.initializers import Fill, Moments
from torchinit.model import Shard, Site
from torchinit.noise import Noise


@dataclass(frozen=True)
class InverseWidth:
    """The normal distribution with the standard deviation scale / fan_in."""

    scale: float = 1.0

    def resolve(self, site: Site) -> Normal:
        return Normal(std=self.scale / site.fans("true")[0])


@dataclass(frozen=True)
class Triangular(Fill):
    """The sum of two uniform numbers: between -width and width, most of them around 0."""

    width: float = 1.0
    elementwise = True

    def write(self, shard: Shard, noise: Noise) -> None:
        other = replace(shard, local=torch.empty_like(shard.local))
        for index, part in enumerate((shard, other)):
            noise.fill(part, "uniform", (-self.width / 2, self.width / 2), index)
        shard.local.add_(other.local)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return Moments(0.0, self.width / 6**0.5, -self.width, self.width, kurtosis=2.4)
