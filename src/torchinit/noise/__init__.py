"""Noise: random numbers from torch's generator, or addressed by seed, name and position."""

from __future__ import annotations

from torchinit.noise.keyed import STREAM, Keyed
from torchinit.noise.sequential import Global, seeded_generators
from torchinit.noise.streams import Distribution, Job, Noise

__all__ = ["STREAM", "Distribution", "Global", "Job", "Keyed", "Noise", "seeded_generators"]
