"""A small Llama, and what the training examples have in common: sentences of one rule, and a loop.

The words of a sentence follow from the first one, so a model that learns the rule has no loss left.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Rope(nn.Module):
    """Rotary positions: a table that is no parameter and in no checkpoint, made by ``reset_buffers``."""

    table: Tensor

    def __init__(self, size: int, length: int) -> None:
        super().__init__()
        self.size = size
        self.length = length
        self.register_buffer("table", torch.empty(length, size // 2, 2), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Writes the table."""
        device = self.table.device
        speeds = 10000.0 ** (-torch.arange(0, self.size, 2, device=device) / self.size)
        angles = torch.outer(torch.arange(self.length, device=device), speeds)
        self.table.copy_(torch.stack([angles.cos(), angles.sin()], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``(batch, heads, length, size)``."""
        cos, sin = self.table[: x.shape[-2]].unbind(-1)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Causal attention; how many heads are here follows from the projections, which tensor parallelism may cut."""

    def __init__(self, width: int, size: int, length: int) -> None:
        super().__init__()
        self.size = size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.rope = Rope(size, length)

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``(batch, length, width)``."""
        every = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (one.unflatten(-1, (-1, self.size)).transpose(1, 2) for one in every)
        mixed = nn.functional.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class FeedForward(nn.Module):
    """The gated layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``(batch, length, width)``."""
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention and the gated layer, each behind a norm in a residual branch of its own."""

    def __init__(self, width: int, size: int, length: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, size, length)
        self.ffn_norm = nn.RMSNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``(batch, length, width)``."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Llama(nn.Module):
    """From words ``(batch, length)`` to scores ``(batch, length, words)``."""

    def __init__(self, words: int = 32, width: int = 32, depth: int = 2, size: int = 8, length: int = 16) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Block(width, size, length) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """The scores of the next word at each place."""
        x = self.embed_tokens(words)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.lm_head(self.norm(x))
        return out


def sentences(step: int, part: int, words: int = 32, length: int = 16, batch: int = 16) -> Tensor:
    """Sentences whose words follow from each other, other ones in each step and each part of a batch."""
    generator = torch.Generator().manual_seed(1000 * step + part)
    word = torch.randint(words, (batch,), generator=generator)
    found = [word]
    for _ in range(length):
        word = (5 * word + 3) % words
        found.append(word)
    return torch.stack(found, dim=1)


def train(model: nn.Module, steps: int, part: int = 0) -> list[float]:
    """The losses of the steps, the mean of all ranks; ``part`` is the part of each batch that is this rank's."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        text = sentences(step, part)
        scores = model(text[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / dist.get_world_size())
    return losses
