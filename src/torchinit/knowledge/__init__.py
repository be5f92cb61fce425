"""Knowledge of layers: the values at which norms do nothing, the nonlinearities that follow, and their gains."""

from __future__ import annotations

from torchinit.knowledge.gains import Profile, gain, profile

__all__ = ["Profile", "gain", "profile"]
