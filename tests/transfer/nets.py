"""Nets of a width and a depth, for the tests of transfer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(width: int, layers: int = 1) -> nn.Sequential:
    sizes = [(8, width), *[(width, width)] * layers, (width, 4)]
    return nn.Sequential(*[each for a, b in sizes for each in (nn.Linear(a, b), nn.ReLU())][:-1])


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            each(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(nn.functional.gelu(self.up_proj(x)))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Decoder(nn.Module):
    """A pre-norm transformer with the names of Llama's; heads grow with the width unless their number is given."""

    def __init__(self, width: int, depth: int = 2, *, heads: int = 4, tied: bool = False, tokens: int = 32) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, tokens, bias=False)
        for name, each in self.named_parameters():
            if each.dim() > 1:
                nn.init.normal_(each, std=1.0 if "embed" in name else each.shape[1] ** -0.5)
            elif "norm" not in name:
                nn.init.zeros_(each)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.lm_head(self.norm(x))
        return out


def ids() -> Tensor:
    return torch.randint(32, (8, 16), generator=torch.Generator().manual_seed(0))
