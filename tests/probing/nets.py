"""Models for the tests of the probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def mlp(std: float | None = None, depth: int = 30, width: int = 64, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation each; of std 0 by He et al., None as torch starts them."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), act())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model if std is not None else ():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std or (2 / width) ** 0.5)
            nn.init.zeros_(layer.bias)
    return model


class Wired(nn.Module):
    """A module whose forward is a function of the module and its inputs."""

    def __init__(self, forward: Callable[..., object], **children: nn.Module) -> None:
        super().__init__()
        self.code = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> object:
        return self.code(self, x)


class Everything(nn.Module):
    """A model with all that a run could leave behind: statistics, noise, attributes, in-place changes."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("last", torch.zeros(2))
        self.calls: list[int] = []
        self.cache: object = None
        self.fails: type[BaseException] | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.seen += 1
        self.last = torch.ones(2)
        self.calls.append(1)
        self.cache = x = self.stem(x)
        x += torch.rand(())
        x = self.act(self.norm(x))
        if self.fails is not None:
            raise self.fails("on purpose")
        return {"logits": self.head(self.drop(x.mean((2, 3))))}


@dataclass
class Answer:
    """An output as a dataclass."""

    number: int
    hidden: Tensor


class Checkpointed(nn.Module):
    """Blocks that are computed again during the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(32, 10)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        y: Tensor = self.head(x)
        return y
