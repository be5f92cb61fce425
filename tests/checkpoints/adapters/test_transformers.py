"""Transformers: rotary orders, pooled, chosen and rearranged heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torchinit.checkpoints.adapters import Chain, Fuse, Only, PoolHeads, Rearrange, RopeOrder

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
    chain = Chain((Only("wq", RopeOrder(4)), Only("wk", RopeOrder(2)), Fuse("qkv", ("wq", "wk", "wv"))))
    assert chain.wants("h.0.qkv.weight") == ("h.0.wq.weight", "h.0.wk.weight", "h.0.wv.weight")
    chain.check(shapes, (8 * SIZE, WIDTH), "h.0.qkv.weight")
    made = chain.adapt(parts, (8 * SIZE, WIDTH), "h.0.qkv.weight")
    turned = [RopeOrder(n).adapt([part], tuple(part.shape), "q") for n, part in zip((4, 2), parts[:2], strict=True)]
    assert torch.equal(made, torch.cat([*turned, parts[2]]))
    alone = Only("q_proj", RopeOrder(2))
    assert torch.equal(alone.adapt([parts[1]], shapes[1], "h.q_proj.weight"), turned[1])
    assert torch.equal(alone.adapt([parts[1]], shapes[1], "h.v_proj.weight"), parts[1])
    alone.check([(9, 2)], (9, 2), "h.v_proj.weight")
    with pytest.raises(ValueError, match="needs rows for 2 heads"):
        alone.check([(9, 2)], (9, 2), "h.q_proj.weight")


def test_arguments() -> None:
    for adapter in (RopeOrder, PoolHeads):
        with pytest.raises(ValueError, match=r"^heads must be a whole number from 1, but got 0$"):
            adapter(0)
    with pytest.raises(ValueError, match=r"^rotary must be an even whole number from 2, but got 3$"):
        RopeOrder(1, rotary=3)
    with pytest.raises(ValueError, match=r"^to must be one of half, interleaved, but got 'meta'$"):
        RopeOrder(1, "meta")  # type: ignore[arg-type]  # this is the mistake
