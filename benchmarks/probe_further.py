"""Networks written after all checks were: what is wrong with each was put down before the probe saw it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.probe_nets import Net, filled, kaiming, mlp, normal, xavier


class Tied(nn.Module):
    """A table, two blocks of attention, and a head that is the table."""

    def __init__(self, std: float, width: int = 256, words: int = 300) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True,
                                                               norm_first=True) for _ in range(3))  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, ids: Tensor) -> Any:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Chained(nn.Module):
    """Convolutions in residual blocks, with or without a norm before each."""

    def __init__(self, norm: bool, depth: int = 24, width: int = 32) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, width) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(depth)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def encoder(first: bool, depth: int = 24, width: int = 64) -> nn.Module:
    """Blocks of attention as torch starts them, with their norms before or after."""
    layers = (
        nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=first) for _ in range(depth)
    )
    return nn.Sequential(nn.Linear(32, width), *layers, nn.LayerNorm(width), nn.Linear(width, 10))


def sharp(factor: float) -> nn.Module:
    """The same with larger queries and keys."""
    model = encoder(True, 6)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("in_proj_weight"):
                weight[:128] *= factor
    return model


def grouped(true: bool, depth: int = 14, width: int = 64, groups: int = 16) -> nn.Module:
    """Grouped convolutions by Kaiming's rule, with the outputs that a unit has, or those that its shape shows."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU()]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.get_parameter("weight"), mode="fan_in" if true else "fan_out")
        nn.init.zeros_(layer.get_parameter("bias"))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Memory(nn.Module):
    """A recurrent net that is read at its last step."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = cell(16, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.cell(x)[0][:, -1])


def further() -> Iterator[Net]:
    """The networks, good and bad."""
    ids, tokens = (lambda: torch.randint(0, 300, (8, 32))), partial(torch.randn, 16, 24, 32)
    yield Net("MLP 40 SiLU, Xavier", lambda: filled(mlp(40, nn.SiLU), xavier), "TI801 TI803", "0")
    yield Net("MLP 12 ReLU, biases -4", lambda: filled(mlp(12), kaiming, -4.0), "TI806 TI801", "")
    yield Net("pre-LN 6, queries and keys times 8", lambda: sharp(8.0), "TI808", "", tokens)
    yield Net("residual convolutions 24, no norm, Kaiming", lambda: filled(Chained(False), kaiming), "TI802 TI804")
    yield Net("residual convolutions 24, norms before, Kaiming", lambda: filled(Chained(True), kaiming))
    yield Net("pre-LN 24, torch's own", lambda: encoder(True), batch=tokens)
    yield Net("GRU, last of 100 steps", lambda: Memory(nn.GRU), "TI809", "cell", partial(torch.randn, 16, 100, 16))
    yield Net("LSTM, last of 12 steps", lambda: Memory(nn.LSTM), batch=partial(torch.randn, 16, 12, 16))
    yield Net("tied table of N(0, 1)", lambda: Tied(1.0), "TI810", "", ids)
    yield Net("tied table of N(0, 0.02)", lambda: Tied(0.02), batch=ids)
    yield Net("grouped convolutions 14, fan_in", lambda: grouped(True), batch=partial(torch.randn, 16, 3, 16, 16))
    yield Net(
        "grouped convolutions 14, fan_out by their shape", lambda: grouped(False), "TI801 TI803", "",
        partial(torch.randn, 16, 3, 16, 16),
    )  # fmt: skip
    yield Net(
        "MLP 8 in float16, N(0, 0.5)", lambda: filled(mlp(8), normal(0.5)).half(), "TI815 TI817", "",
        lambda: torch.randn(64, 64).half() * 10,
    )  # fmt: skip
