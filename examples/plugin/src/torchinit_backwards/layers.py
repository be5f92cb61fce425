"""The layers: they know nothing of torchinit."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Backwards(nn.Module):
    """A linear layer with its weight as (inputs, outputs), and a number that lets through a part of what comes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(inputs, outputs))
        self.openness = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.kernel) * self.openness.sigmoid()


class Net(nn.Sequential):
    """Two of them."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(Backwards(16, width), nn.Tanh(), Backwards(width, 4))
