"""Noise: random numbers from torch's generator, or addressed by seed, name and position."""

from __future__ import annotations

from torchinit.noise.base import Distribution as Distribution
from torchinit.noise.base import DrawRequest as DrawRequest
from torchinit.noise.base import Noise
from torchinit.noise.keyed import STREAM, Keyed
from torchinit.noise.torch_generator import Global
from torchinit.noise.torch_generator import seeded_generators as seeded_generators

__all__ = ["Global", "Keyed", "Noise", "STREAM"]
