"""Noise: random numbers from torch's generator, or addressed by seed, name and position."""

from __future__ import annotations

from torchinit.noise.base import Distribution, Job, Noise
from torchinit.noise.keyed import STREAM, Keyed
from torchinit.noise.torch_generator import Global, seeded_generators

__all__ = ["STREAM", "Distribution", "Global", "Job", "Keyed", "Noise", "seeded_generators"]
