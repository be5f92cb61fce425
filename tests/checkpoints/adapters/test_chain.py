"""Chains: adapters one after the other, with keys from the site back to the file."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torchinit.checkpoints.adapters import Adapter, Chain, Drop, Fuse, InputChannels, Rows, Split, Stack, Transpose


def test_one_of_three_from_gpt2() -> None:
    """c_attn keeps (inputs, 3 x outputs); here its key projection is a Linear of its own."""
    fused, tokens = torch.randn(4, 12), torch.randn(5, 4)
    chain = Chain((Transpose(), Split("c_attn", ("q", "k", "v"))))
    assert chain.wants("h.0.attn.k.weight") == ("h.0.attn.c_attn.weight",)
    chain.check([(4, 12)], (4, 4), "h.0.attn.k.weight")
    made = chain.adapt([fused], (4, 4), "h.0.attn.k.weight")
    torch.testing.assert_close(tokens @ made.T, (tokens @ fused)[:, 4:8])


def test_experts_that_are_fused_and_stacked() -> None:
    gates, ups = ([torch.randn(6, 4) for _ in range(3)] for _ in "gu")
    chain = Chain((Fuse("gate_up", ("gate", "up")), Stack("gate_up", "*.gate_up.weight", 3)))
    assert chain.wants("experts.gate_up")[2:4] == ("experts.1.gate.weight", "experts.1.up.weight")
    tensors = [tensor for pair in zip(gates, ups, strict=True) for tensor in pair]
    chain.check([(6, 4)] * 6, (3, 12, 4), "experts.gate_up")
    made = chain.adapt(tensors, (3, 12, 4), "experts.gate_up")
    tokens = torch.randn(5, 4)
    for expert, gate, up in zip(made, gates, ups, strict=True):
        left, right = F.linear(tokens, expert).chunk(2, -1)
        torch.testing.assert_close(left * right, (tokens @ gate.T) * (tokens @ up.T))


def test_the_last_step_gives_what_the_site_asks_for() -> None:
    chain = Chain((Transpose(), Rows()))
    assert chain.makes([(4, 6)], "w") is None
    chain.check([(4, 6)], (2, 4), "w")
    weight = torch.randn(4, 6)
    assert torch.equal(chain.adapt([weight], (2, 4), "w"), weight.T[:2])
    with pytest.raises(ValueError, match=r"^Rows\(\) needs at least 7 rows for a site of \[7, 4\], but got \[6, 4\]$"):
        chain.check([(4, 6)], (7, 4), "w")


def test_drop_in_a_chain_declines() -> None:
    assert Chain((Drop(), Transpose())).wants("w") == ()


def test_a_step_without_a_shape_of_its_own_comes_last() -> None:
    text = r"^InputChannels\(\) makes whatever shape is asked for, so it must be the last of Chain\(\(Input"
    with pytest.raises(ValueError, match=text):
        Chain((InputChannels(), Transpose())).check([(4, 3)], (1, 4), "w")


@pytest.mark.parametrize(
    ("steps", "text"),
    [((), "^a chain needs at least one step$"), ((Chain((Transpose(),)),), "^a chain holds no other chain; write its")],
)
def test_arguments(steps: tuple[Adapter, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Chain(steps)
