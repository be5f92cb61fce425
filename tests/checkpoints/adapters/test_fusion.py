"""Fusion: several weights as one and one as several, stacks of experts among them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit.checkpoints.adapters import Fuse, Split, Stack, Unstack

QKV = ("q_proj", "k_proj", "v_proj")


def test_attention_from_separate_projections() -> None:
    apart = {name: nn.Linear(16, 16) for name in QKV}
    attention, tokens = nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 5, 16)
    for leaf in ("weight", "bias"):
        adapter = Fuse(f"in_proj_{leaf}", tuple(f"{name}.{leaf}" for name in QKV))
        assert adapter.wants(f"attn.in_proj_{leaf}") == tuple(f"attn.{name}.{leaf}" for name in QKV)
        tensors = [layer.get_parameter(leaf) for layer in apart.values()]
        site = attention.get_parameter(f"in_proj_{leaf}")
        adapter.check([tuple(tensor.shape) for tensor in tensors], tuple(site.shape), f"attn.in_proj_{leaf}")
        site.data = adapter.adapt(tensors, tuple(site.shape), f"attn.in_proj_{leaf}").detach()
    q, k, v = (layer(tokens).unflatten(2, (4, 4)).transpose(1, 2) for layer in apart.values())
    expected = attention.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(tokens, tokens, tokens)[0], expected)


def test_heads_of_gpt_neox() -> None:
    """Its fused output is read as (heads, 3, size): each head has its query, key and value side by side."""
    weights, tokens = [torch.randn(12, 8) for _ in QKV], torch.randn(5, 8)
    made = Fuse("query_key_value", QKV, groups=4).adapt(weights, (36, 8), "query_key_value.weight")
    parts = (tokens @ made.T).view(5, 4, 9).chunk(3, dim=-1)
    for part, weight in zip(parts, weights, strict=True):
        torch.testing.assert_close(part, (tokens @ weight.T).view(5, 4, 3))


def test_shared_keys_of_falcon() -> None:
    """Its fused output is read as (key heads, queries of each + 2, size)."""
    q, k, v, tokens = torch.randn(24, 8), torch.randn(6, 8), torch.randn(6, 8), torch.randn(5, 8)
    made = Fuse("qkv", QKV, groups=2).adapt([q, k, v], (36, 8), "qkv.weight")
    heads = (tokens @ made.T).view(5, 2, 6, 3)
    torch.testing.assert_close(heads[:, :, :4].reshape(5, 24), tokens @ q.T)
    torch.testing.assert_close(heads[:, :, 4].reshape(5, 6), tokens @ k.T)
    torch.testing.assert_close(heads[:, :, 5].reshape(5, 6), tokens @ v.T)


def test_gate_and_up() -> None:
    gate, up, tokens = torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 4)
    made = Fuse("gate_up_proj", ("gate_proj", "up_proj")).adapt([gate, up], (12, 4), "mlp.gate_up_proj.weight")
    left, right = (tokens @ made.T).chunk(2, -1)
    torch.testing.assert_close(F.silu(left) * right, F.silu(tokens @ gate.T) * (tokens @ up.T))


@given(
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    groups=st.integers(1, 3),
    axis=st.integers(0, 1),
)
def test_split_undoes_fuse(sizes: list[int], groups: int, axis: int) -> None:
    names = tuple(f"part{number}" for number in range(len(sizes)))
    parts = [torch.randn(size * groups, 2) if axis == 0 else torch.randn(2, size * groups) for size in sizes]
    fuse = Fuse("all", names, axis, groups)
    shape = fuse.makes([tuple(part.shape) for part in parts], "a.all.weight")
    whole = fuse.adapt(parts, shape, "a.all.weight")
    assert tuple(whole.shape) == shape
    split = Split("all", names, tuple(sizes), axis, groups)
    for name, part in zip(names, parts, strict=True):
        key = f"a.{name}.weight"
        assert split.wants(key) == ("a.all.weight",)
        split.check([shape], tuple(part.shape), key)
        assert torch.equal(split.adapt([whole], tuple(part.shape), key), part)


def test_sizes_are_proportions() -> None:
    whole = torch.randn(12, 2)
    for sizes in ((4, 1, 1), (8, 2, 2)):
        split = Split("qkv", QKV, sizes)
        assert torch.equal(split.adapt([whole], (2, 2), "k_proj.weight"), whole[8:10])


def test_the_part_is_the_last_in_the_key() -> None:
    split = Split("qkv", ("k", "v"))
    assert split.wants("k.0.v.weight") == ("k.0.qkv.weight",)
    assert torch.equal(split.adapt([torch.arange(4)], (2,), "k.0.v.weight"), torch.tensor([2, 3]))


@pytest.mark.parametrize(
    ("shapes", "shape", "text"),
    [
        ([(4, 8), (4, 8)], (9, 8), r"makes \[8, 8\] of \[4, 8\], \[4, 8\], but the site has \[9, 8\]$"),
        ([(4, 8), (4, 9)], (8, 8), r"needs parts that differ in dimension 0 alone, but got \[4, 8\], \[4, 9\]$"),
        ([(4, 8), (3, 8)], (7, 8), r"needs 'b' in 2 equal groups, but got \[3, 8\]$"),
        ([(), ()], (8,), r"needs parts that differ in dimension 0 alone, but got \[\], \[\]$"),
    ],
)
def test_parts_that_do_not_fit(shapes: list[tuple[int, ...]], shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=rf"^Fuse\('ab', \('a', 'b'\), groups=2\) {text}"):
        Fuse("ab", ("a", "b"), groups=2).check(shapes, shape, "ab")


@pytest.mark.parametrize(
    ("seen", "shape", "text"),
    [
        ((9, 4), (3, 4), r"makes \[2, 4\] of \[9, 4\], but the site has \[3, 4\]$"),
        ((10, 4), (3, 4), r"cannot cut 10 rows into 1 x \(2, 5, 2\)$"),
        ((), (3, 4), r"needs at least 1 dimensions, but got \[\]$"),
    ],
)
def test_a_whole_that_does_not_fit(seen: tuple[int, ...], shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Split("qkv", QKV, (2, 5, 2)).check([seen], shape, "v_proj.weight")


def test_keys_that_are_not_meant() -> None:
    with pytest.raises(ValueError, match=r"^'head.weight' has no part 'qkv'$"):
        Fuse("qkv", QKV).wants("head.weight")
    with pytest.raises(ValueError, match=r"^'head.weight' has none of the parts 'q_proj', 'k_proj', 'v_proj'$"):
        Split("qkv", QKV).wants("head.weight")


def test_keys_that_are_nearly_meant() -> None:
    with pytest.raises(ValueError, match=r"^'h.qkv_proj.weight' has no part 'qkvproj'; did you mean 'qkv_proj'\?$"):
        Fuse("qkvproj", QKV).wants("h.qkv_proj.weight")
    with pytest.raises(ValueError, match=r" none of the parts 'q_porj', 'k_porj'; did you mean 'k_proj'\?$"):
        Split("qkv", ("q_porj", "k_porj")).wants("h.k_proj.weight")


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"^parts must be two or more different names, but got \('a', 'a'\)$"):
        Fuse("ab", ("a", "a"))
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        Split("ab", ("a", "b"), axis=-1)
    with pytest.raises(ValueError, match=r"^groups must be a whole number from 1, but got 0$"):
        Fuse("ab", ("a", "b"), groups=0)
    with pytest.raises(
        ValueError, match=r"^sizes must be a whole number from 1 for each of \('a', 'b'\), but got \(1,\)$"
    ):
        Split("ab", ("a", "b"), sizes=(1,))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stack_and_its_experts(axis: int) -> None:
    experts, tokens = [nn.Linear(4, 6, bias=False) for _ in range(3)], torch.randn(3, 5, 4)
    stack = Stack("w1", "*.w1.weight", 3, axis)
    weights = [expert.weight.detach() for expert in experts]
    shape = stack.makes([(6, 4)] * 3, "moe.w1")
    made = stack.adapt(weights, shape, "moe.w1")
    assert tuple(made.shape) == shape
    together = torch.einsum("eti,eoi->eto", tokens, made.movedim(axis, 0))
    torch.testing.assert_close(together, torch.stack([f(x) for f, x in zip(experts, tokens, strict=True)]))
    one = Unstack("w1", "*.w1.weight", axis)
    for number, weight in enumerate(weights):
        key = f"moe.{number}.w1.weight"
        assert one.wants(key) == ("moe.w1",)
        one.check([shape], (6, 4), key)
        assert torch.equal(one.adapt([made], (6, 4), key), weight)


def test_keys() -> None:
    assert Stack("experts.up", "experts.*.up.weight", 11).wants("h.7.experts.up")[10] == "h.7.experts.10.up.weight"
    assert Unstack("experts.up", "experts.*.up.weight").wants("h.7.experts.10.up.weight") == ("h.7.experts.up",)
    with pytest.raises(ValueError, match=r"^'h.7.up' has no part 'experts.\*.up'$"):
        Unstack("experts.up", "experts.*.up").wants("h.7.up")
    with pytest.raises(ValueError, match=r"^'h.7.experts.one.up' has no part 'experts.\*.up'$"):
        Unstack("experts.up", "experts.*.up").wants("h.7.experts.one.up")


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"needs tensors of one shape, to be stacked at 0, but got \[6, 4\], \[6, 5\]$"
    ):
        Stack("w", "*.w", 2).check([(6, 4), (6, 5)], (2, 6, 4), "w")
    with pytest.raises(ValueError, match=r"needs tensors of one shape, to be stacked at 2, but got \[6\]$"):
        Stack("w", "*.w", 2, axis=2).check([(6,), (6,)], (2, 6), "w")
    with pytest.raises(ValueError, match=r"makes \[2, 6\] of \[6\], \[6\], but the site has \[3, 6\]$"):
        Stack("w", "*.w", 2).check([(6,), (6,)], (3, 6), "w")
    with pytest.raises(ValueError, match=r"needs more than 5 along dimension 0, but got \[5, 6\]$"):
        Unstack("w", "*.w").check([(5, 6)], (6,), "5.w")


def test_arguments_of_stacks() -> None:
    with pytest.raises(ValueError, match=r"^parts must have one part '\*', the number of each, but got 'experts.w'$"):
        Stack("w", "experts.w", 2)
    with pytest.raises(ValueError, match=r"^count must be a whole number from 1, but got 0$"):
        Stack("w", "*.w", 0)
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        Stack("w", "*.w", 2, -1)
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        Unstack("w", "*.w", -1)
