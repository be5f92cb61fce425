"""Networks: the weights of known models without their computation, each with the torch code that initializes it."""

from __future__ import annotations

import math

import torch
from torch import nn


class LlamaBlock(nn.Module):
    """The matrices of a block with grouped queries and a gated feed-forward layer."""

    def __init__(self, width: int, kv: int, hidden: int) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, kv, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)


def llama(width: int = 2048, blocks: int = 22) -> nn.Module:
    """The matrices of a Llama of 1.1 billion parameters, on meta."""
    with torch.device("meta"):
        layers = [LlamaBlock(width, width // 8, width * 11 // 4) for _ in range(blocks)]
        return nn.Sequential(nn.Embedding(32_000, width), *layers, nn.Linear(width, 32_000, bias=False))


class Gpt2Block(nn.Module):
    """A block of GPT-2, with the names that its papers and ports use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})


def gpt2(width: int = 768, depth: int = 12) -> nn.Module:
    """GPT-2 small, 124 million parameters, on meta."""
    with torch.device("meta"):
        return nn.ModuleDict(
            {
                "wte": nn.Embedding(50_257, width),
                "wpe": nn.Embedding(1024, width),
                "h": nn.ModuleList(Gpt2Block(width) for _ in range(depth)),
                "ln_f": nn.LayerNorm(width),
            }
        )


def init_gpt2(model: nn.Module) -> None:
    """What ports of GPT-2 do."""
    depth = len(list(model.get_submodule("h").children()))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if name.endswith("c_proj") else 0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))


def resnet50() -> nn.Module:
    """ResNet-50, 26 million parameters, on meta."""
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
        inputs = 64
        for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for block in range(depth):
                layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
                inputs = 4 * width
        return nn.Sequential(*layers, nn.Linear(inputs, 1000))


def init_resnet(model: nn.Module) -> None:
    """What trainers of ResNets do."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
