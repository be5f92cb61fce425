"""Factories: functions and classes that make a model, as the command line takes them.

    torchinit plan examples/models.py:Transformer gpt2
    torchinit apply examples/models.py:mlp examples/mlp.toml --arg depth=8 -o mlp.safetensors

They take keyword arguments (``--arg depth=8``) and need nothing from torchinit.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(width: int = 64, depth: int = 3, inputs: int = 8, outputs: int = 2) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Attention(nn.Module):
    """Causal self-attention with one fused projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``(batch, length, width)``."""
        batch, length, width = x.shape
        split = self.c_attn(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each in a residual branch of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``(batch, length, width)``."""
        x = x + self.attn(self.ln_1(x))
        inner = nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)))
        out: Tensor = x + self.mlp["c_proj"](inner)
        return out


class Transformer(nn.Module):
    """A small language model in the shape of GPT-2; its head shares the weight of the embedding."""

    def __init__(
        self, vocabulary: int = 256, length: int = 64, width: int = 64, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(length, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """From ``(batch, length)`` token numbers to ``(batch, length, vocabulary)`` logits."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits


class Bottleneck(nn.Module):
    """Three convolutions in a residual branch, the middle one spatial."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, inputs, height, width)`` to four times ``width`` channels."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        result: Tensor = (self.bn3(self.conv3(out)) + self.downsample(x)).relu()
        return result


class ResNet(nn.Module):
    """A network in the shape of ResNet-50, which starts as most code of its kind does."""

    def __init__(self, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels, stages = width, []
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(Bottleneck(channels, width << stage, 2 if stage and not index else 1))
                channels = 4 * width << stage
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)

    def init_weights(self) -> None:
        """Kaiming for the convolutions, ones and zeros for the norms."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From images to ``(batch, classes)`` logits."""
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        logits: Tensor = self.fc(self.layers(x).mean((2, 3)))
        return logits
