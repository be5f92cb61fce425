"""Attention: whose heads are how large, by attributes of the modules around, and what is not one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchinit.api import sites
from torchinit.knowledge.attention import around, head_sizes, with_attention
from torchinit.knowledge.role_rules import with_roles


class SelfAttention(nn.Module):
    def __init__(self, width: int = 8, **told: int) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        for name, number in told.items():
            setattr(self, name, number)


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"head_dim": 2}, 2),
        ({"qk_head_dim": 6, "num_heads": 4}, 6),
        ({"num_heads": 4}, 2),
        ({"nh": 2, "hidden_size": 16}, 8),
        ({}, None),
    ],
)
def test_the_size_of_heads(told: dict[str, int], size: int | None) -> None:
    model = nn.ModuleDict({"attn": SelfAttention(**told), "norm": nn.LayerNorm(8)})
    assert head_sizes(model) == ({} if size is None else {"attn": size})
    found = {site.name: site.attention for site in with_attention(model, with_roles(model, sites(model)))}
    expected = None if size is None else ("SelfAttention", size)
    assert found["attn.q_proj.weight"] == found["attn.o_proj.bias"] == expected
    assert found["norm.weight"] is None


def test_a_tied_weight_and_wrappers() -> None:
    model = nn.ModuleDict({"attn": SelfAttention(num_heads=2), "module": SelfAttention(num_heads=4)})
    model["module"].q_proj.weight = model["attn"].q_proj.weight  # type: ignore[union-attr]
    (tied,) = (site for site in with_attention(model, with_roles(model, sites(model))) if site.aliases)
    assert {view.attention for view in tied.views} == {("SelfAttention", 4), ("SelfAttention", 2)}
    assert {*head_sizes(nn.ModuleDict({"module": nn.TransformerEncoderLayer(8, 2)}))} == {"self_attn"}


def test_the_nearest_around() -> None:
    assert around("h.0.attn.q", {"h": 1, "h.0.attn": 2}) == "h.0.attn"
    assert around("h.1.attn.q", {"h.0": 1}) is None
    assert around("q", {"": torch.nan}) == ""
