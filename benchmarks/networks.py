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


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        if inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def resnet18() -> nn.Module:
    """ResNet-18, 12 million parameters, on meta."""
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
        for inputs, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
            layers += [BasicBlock(inputs, width, 1 + (inputs != width)), BasicBlock(width, width, 1)]
        return nn.Sequential(*layers, nn.Linear(512, 1000))


class VitBlock(nn.Module):
    """A block of a vision transformer, with the names that timm uses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})


def vit_tiny(width: int = 192, depth: int = 12) -> nn.Module:
    """ViT-tiny, 6 million parameters, on meta."""
    with torch.device("meta"):
        blocks = nn.ModuleList(VitBlock(width) for _ in range(depth))
        return nn.ModuleDict({"blocks": blocks, "norm": nn.LayerNorm(width), "head": nn.Linear(width, 1000)})


def mlp() -> nn.Module:
    """A toy of two layers, on meta."""
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))


def mixture(layers: int = 64, experts: int = 100, width: int = 16) -> nn.Module:
    """As many tensors as a mixture of experts has, 19,649 of them, each of them tiny; on meta."""
    with torch.device("meta"):

        def block() -> nn.Module:
            attention = [nn.Linear(width, width, bias=False) for _ in range(4)]
            each = [[nn.Linear(width, width, bias=False) for _ in range(3)] for _ in range(experts)]
            mixed = nn.ModuleList(nn.ModuleList(three) for three in each)
            norms = [nn.LayerNorm(width, bias=False) for _ in range(2)]
            gate = nn.Linear(width, experts, bias=False)
            return nn.ModuleDict(
                {"attn": nn.ModuleList(attention), "experts": mixed, "gate": gate, "norms": nn.ModuleList(norms)}
            )

        return nn.Sequential(nn.Embedding(100, width), *(block() for _ in range(layers)))


def init_transformer(model: nn.Module) -> None:
    """What trainers of transformers do."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
