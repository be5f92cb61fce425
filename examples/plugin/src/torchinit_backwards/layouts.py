"""The layout of the layers: which axis counts inputs, and which outputs."""

from __future__ import annotations

from torch import nn

from torchinit.model import Layout


def backwards(module: nn.Module, leaf: str) -> Layout | None:
    """The kernel is (inputs, outputs); the other parameter multiplies nothing."""
    return Layout(in_axes=(0,), out_axes=(1,)) if leaf == "kernel" else None
