"""Models too large for one machine, to be built on the meta device: what a plan of them costs on thousands of ranks.

    torchinit plan examples/large.py:llama_405b examples/large.toml --mesh 512x8 --parallel fsdp,tp
    torchinit plan examples/large.py:moe_1t examples/large.toml --mesh 512x8 --parallel fsdp,ep \
        --place 'fsdp:**.experts.*=1'

Parameters only: nothing here is ever run.
"""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
    """Grouped-query attention's projections."""

    def __init__(self, width: int, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.wq = nn.Linear(width, heads * size, bias=False)
        self.wk = nn.Linear(width, groups * size, bias=False)
        self.wv = nn.Linear(width, groups * size, bias=False)
        self.wo = nn.Linear(heads * size, width, bias=False)


class FeedForward(nn.Module):
    """A gated feed-forward layer's projections."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)


class Experts(nn.Module):
    """Gated feed-forward layers, stacked: a matrix an expert."""

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(count, hidden, width))
        self.w3 = nn.Parameter(torch.empty(count, hidden, width))
        self.w2 = nn.Parameter(torch.empty(count, width, hidden))


class Mixture(nn.Module):
    """A router, the experts that it chooses from, and one that everybody sees."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(experts, width, hidden)
        self.shared = FeedForward(width, hidden)


class Block(nn.Module):
    """Attention and whatever is in the place of the feed-forward layer, each behind a norm."""

    def __init__(self, attention: Attention, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = attention
        self.ffn_norm = nn.RMSNorm(width)
        self.feed_forward = inner


class Decoder(nn.Module):
    """Embedding, blocks, norm, and a head of its own."""

    def __init__(self, vocabulary: int, width: int, blocks: list[Block]) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)


def llama_405b(depth: int = 126) -> Decoder:
    """Llama 3.1 405B in bfloat16, by the numbers of https://arxiv.org/abs/2407.21783: 405,853,388,800 parameters."""
    width = 16384
    blocks = [Block(Attention(width, 128, 8, 128), FeedForward(width, 53248), width) for _ in range(depth)]
    return Decoder(128256, width, blocks).to(torch.bfloat16)


def moe_1t(depth: int = 61, experts: int = 384) -> Decoder:
    """A mixture of about 1.04e12 parameters in bfloat16: 384 experts a layer, after one dense layer."""
    width = 7168
    inner = [FeedForward(width, 18432), *(Mixture(experts, width, 2048) for _ in range(depth - 1))]
    return Decoder(163840, width, [Block(Attention(width, 64, 8, 128), each, width) for each in inner]).to(
        torch.bfloat16
    )
