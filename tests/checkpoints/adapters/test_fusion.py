"""Fusion: several weights as one and one as several, stacks of experts among them; heads in another order, or fewer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit.checkpoints.adapters import Chain, Fuse, PoolHeads, Rearrange, RopeOrder, Split, Stack, Unstack

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


# --- heads -----------------------------------------------------------------------------------------------------------


HEADS, SIZE, WIDTH = 3, 8, 10


def angles(rotary: int) -> torch.Tensor:
    return torch.outer(torch.arange(6.0), 10.0 ** -torch.arange(0, 1, 2 / rotary))


def turned_in_pairs(heads: torch.Tensor, rotary: int) -> torch.Tensor:
    """Meta's way: two numbers that follow each other are one complex number."""
    numbers = torch.view_as_complex(heads[..., :rotary].unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones(6, rotary // 2), angles(rotary))[:, None]
    return torch.cat([torch.view_as_real(numbers * turn).flatten(-2), heads[..., rotary:]], -1)


def turned_in_halves(heads: torch.Tensor, rotary: int) -> torch.Tensor:
    """The way of transformers: x cos + rotate_half(x) sin."""
    turn = torch.cat([angles(rotary)] * 2, -1)[:, None]
    first, second = heads[..., :rotary].chunk(2, -1)
    halves = heads[..., :rotary] * turn.cos() + torch.cat([-second, first], -1) * turn.sin()
    return torch.cat([halves, heads[..., rotary:]], -1)


@pytest.mark.parametrize("rotary", [None, 4])
def test_scores_of_rotated_heads(rotary: int | None) -> None:
    query, key, tokens = torch.randn(HEADS * SIZE, WIDTH), torch.randn(HEADS * SIZE, WIDTH), torch.randn(6, WIDTH)
    shape, count = tuple(query.shape), rotary or SIZE
    adapter = RopeOrder(HEADS, "half", rotary)
    adapter.check([shape], shape, "q_proj.weight")
    scores = []
    for turned, q, k in (
        (turned_in_pairs, query, key),
        (turned_in_halves, adapter.adapt([query], shape, "q"), adapter.adapt([key], shape, "k")),
    ):
        rows, columns = (turned((tokens @ weight.T).view(6, HEADS, SIZE), count) for weight in (q, k))
        scores.append(torch.einsum("ihd,jhd->hij", rows, columns))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rotary", [None, 4])
def test_there_and_back(rotary: int | None) -> None:
    bias = torch.randn(HEADS * SIZE)
    there = RopeOrder(HEADS, "half", rotary).adapt([bias], (24,), "q.bias")
    back = RopeOrder(HEADS, "interleaved", rotary).adapt([there], (24,), "q.bias")
    assert torch.equal(back, bias)
    assert not torch.equal(there, bias)


def test_rows_that_cannot_be_turned() -> None:
    with pytest.raises(ValueError, match=r"^RopeOrder\(5\) needs rows for 5 heads, but got \[24, 8\]$"):
        RopeOrder(5).check([(24, 8)], (24, 8), "q")
    with pytest.raises(ValueError, match=r"cannot turn 3 of the 3 rows of each head of \[24, 8\]$"):
        RopeOrder(8).check([(24, 8)], (24, 8), "q")
    with pytest.raises(ValueError, match=r"cannot turn 10 of the 8 rows of each head of \[24, 8\]$"):
        RopeOrder(3, rotary=10).check([(24, 8)], (24, 8), "q")
    with pytest.raises(ValueError, match=r"makes \[24, 8\] of \[24, 8\], but the site has \[24, 9\]$"):
        RopeOrder(3).check([(24, 8)], (24, 9), "q")


def test_groups_of_like_heads_attend_as_before() -> None:
    tokens, query = torch.randn(1, 5, WIDTH), torch.randn(4 * SIZE, WIDTH)
    like = [torch.randn(2, 1, SIZE, WIDTH).expand(2, 2, SIZE, WIDTH).reshape(4 * SIZE, WIDTH) for _ in "kv"]
    pooled = [PoolHeads(4).adapt([weight], (2 * SIZE, WIDTH), "k_proj.weight") for weight in like]

    def attend(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = ((tokens @ w.T).unflatten(2, (-1, SIZE)).transpose(1, 2) for w in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    torch.testing.assert_close(attend(*pooled), attend(*like))


@pytest.mark.parametrize("left", [1, 2, 3, 6])
def test_means_of_neighbours(left: int) -> None:
    weight = torch.randn(6 * 4, 3)
    made = PoolHeads(6).adapt([weight], (left * 4, 3), "k_proj.weight")
    heads = weight.double().numpy().reshape(6, 4, 3)
    expected = [part.mean(0) for part in np.split(heads, left)]
    np.testing.assert_allclose(made, np.concatenate(expected), atol=1e-6)


def test_heads_that_cannot_be_pooled() -> None:
    PoolHeads(6).check([(24, 3)], (12, 3), "k")
    for seen, shape in (
        ((24, 3), (16, 3)),
        ((24, 3), (10, 3)),
        ((24, 3), (0, 3)),
        ((25, 3), (5, 3)),
        ((24, 3), (48, 3)),
    ):
        with pytest.raises(
            ValueError, match=r"^PoolHeads\(6\) cannot pool 6 heads of \[2\d, 3\] in equal groups for a site"
        ):
            PoolHeads(6).check([seen], shape, "k")
    with pytest.raises(ValueError, match=r"needs \[\*, 3\] for a site of \[12, 3\], but got \[24, 4\]$"):
        PoolHeads(6).check([(24, 4)], (12, 3), "k")


def test_heads_that_are_chosen() -> None:
    weight = torch.randn(24, 3, dtype=torch.float64).to(torch.bfloat16)
    adapter = PoolHeads(6, choose=(4, 1))
    adapter.check([(24, 3)], (8, 3), "k_proj.weight")
    assert torch.equal(adapter.adapt([weight], (8, 3), "k_proj.weight"), torch.cat([weight[16:20], weight[4:8]]))
    with pytest.raises(ValueError, match=r"chooses 2 heads, but the site has 3$"):
        adapter.check([(24, 3)], (12, 3), "k_proj.weight")
    with pytest.raises(ValueError, match=r"^choose names head 6, but the file has heads 0 to 5$"):
        PoolHeads(6, choose=(0, 6))


def test_queries_that_share_a_key_side_by_side_or_every_so_many() -> None:
    """The same attention, whether query h has key h // r or h mod kv, once the queries change places."""
    kv, r, tokens = 2, 3, torch.randn(5, WIDTH)
    query, out = torch.randn(kv * r * SIZE, WIDTH), torch.randn(WIDTH, kv * r * SIZE)
    key, value = torch.randn(kv * SIZE, WIDTH), torch.randn(kv * SIZE, WIDTH)
    made = Rearrange((kv, r, -1), (1, 0, 2)).adapt([query], tuple(query.shape), "q_proj.weight")
    read = Rearrange((kv, r, -1), (1, 0, 2), axis=1).adapt([out], tuple(out.shape), "o_proj.weight")

    def attend(query: torch.Tensor, out: torch.Tensor, pattern: str) -> torch.Tensor:
        sizes = (kv, r, SIZE) if pattern == "ikrd" else (r, kv, SIZE)
        q = (tokens @ query.T).view(5, *sizes)
        k, v = ((tokens @ weight.T).view(5, kv, SIZE) for weight in (key, value))
        scores = torch.einsum(f"{pattern},jkd->{pattern[1:3]}ij", q, k).softmax(-1)
        mixed = torch.einsum(f"{pattern[1:3]}ij,jkd->{pattern}", scores, v)
        return mixed.reshape(5, -1) @ out.T

    torch.testing.assert_close(attend(made, read, "irkd"), attend(query, out, "ikrd"))
    assert not torch.equal(made, query)


def test_rearranged_as_einops_would() -> None:
    """Rows as numbers, in the order that a loop over the counters gives."""
    rows = torch.arange(4 * 3 * 5)
    made = Rearrange((4, 3, -1), (1, 0, 2)).adapt([rows], (60,), "qkv.bias")
    assert made.tolist() == [(head * 3 + part) * 5 + row for part in range(3) for head in range(4) for row in range(5)]
    back = Rearrange((3, 4, 5), (1, 0, 2)).adapt([made], (60,), "qkv.bias")
    assert torch.equal(back, rows)


def test_rows_that_cannot_be_rearranged() -> None:
    for sizes, stored in (((4, 3, -1), (50, 2)), ((4, 3), (24, 2)), ((2, -1), ())):
        order = tuple(range(len(sizes)))
        with pytest.raises(ValueError, match=r"cannot divide dimension 0 of \[.*\] into \("):
            Rearrange(sizes, order).check([stored], stored, "q")
    with pytest.raises(
        ValueError, match=r"^sizes must be whole numbers from 1, one of them -1 at most, but got \(-1, -1"
    ):
        Rearrange((-1, -1), (0, 1))
    with pytest.raises(ValueError, match=r"^order must be 0 to 1 in some order, but got \(0, 2\)$"):
        Rearrange((2, -1), (0, 2))


def test_the_rotary_order_within_a_fused_weight() -> None:
    """Queries and keys turn, each with its number of heads; values stay."""
    parts = [torch.randn(rows, WIDTH) for rows in (4 * SIZE, 2 * SIZE, 2 * SIZE)]
    shapes = [tuple(part.shape) for part in parts]
    order = RopeOrder({"wq": 4, "wk": 2})
    chain = Chain((order, Fuse("qkv", ("wq", "wk", "wv"))))
    assert chain.wants("h.0.qkv.weight") == ("h.0.wq.weight", "h.0.wk.weight", "h.0.wv.weight")
    chain.check(shapes, (8 * SIZE, WIDTH), "h.0.qkv.weight")
    made = chain.adapt(parts, (8 * SIZE, WIDTH), "h.0.qkv.weight")
    turned = [RopeOrder(n).adapt([part], tuple(part.shape), "q") for n, part in zip((4, 2), parts[:2], strict=True)]
    assert torch.equal(made, torch.cat([*turned, parts[2]]))
    with pytest.raises(ValueError, match=r"needs rows for 4 heads, but got \[9, 2\]$"):
        order.check([(9, 2)], (9, 2), "h.wq.weight")
    order.check([(9, 2)], (9, 2), "h.wv.weight")
    assert order == RopeOrder({"wq": 4, "wk": 2})
    for heads in ({}, {"wq": 0}):
        with pytest.raises(ValueError, match=r"^heads must give whole numbers from 1 to parts of names, but got {"):
            RopeOrder(heads)


def test_arguments_of_heads() -> None:
    for adapter in (RopeOrder, PoolHeads):
        with pytest.raises(ValueError, match=r"^heads must be a whole number from 1, but got 0$"):
            adapter(0)
    with pytest.raises(ValueError, match=r"^rotary must be an even whole number from 2, but got 3$"):
        RopeOrder(1, rotary=3)
    with pytest.raises(ValueError, match=r"^to must be one of half, interleaved, but got 'meta'$"):
        RopeOrder(1, "meta")  # type: ignore[arg-type]  # this is the mistake
