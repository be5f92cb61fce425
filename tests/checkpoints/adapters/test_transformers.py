"""Transformers: rotary orders, pooled heads, vocabularies of another size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchinit.checkpoints.adapters import PoolHeads, ResizeVocabulary, RopeOrder
from torchinit.model import Shard
from torchinit.noise import Keyed

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


def test_arguments() -> None:
    for adapter in (RopeOrder, PoolHeads):
        with pytest.raises(ValueError, match=r"^heads must be a whole number from 1, but got 0$"):
            adapter(0)
    with pytest.raises(ValueError, match=r"^rotary must be an even whole number from 2, but got 3$"):
        RopeOrder(1, rotary=3)
    with pytest.raises(ValueError, match=r"^to must be one of half, interleaved, but got 'meta'$"):
        RopeOrder(1, "meta")  # type: ignore[arg-type]  # this is the mistake


def grown(table: torch.Tensor, tokens: int, key: str = "wte.weight", **arguments: float) -> torch.Tensor:
    adapter = ResizeVocabulary(**arguments)  # type: ignore[arg-type]  # seeds are whole where they are given
    shape = (tokens, *table.shape[1:])
    adapter.check([tuple(table.shape)], shape, key)
    return adapter.adapt([table], shape, key)


def test_old_tokens_answer_as_before_and_new_ones_as_the_mean() -> None:
    head, wider, hidden = nn.Linear(8, 20), nn.Linear(8, 23), torch.randn(4, 8)
    for name, tensor in head.state_dict().items():
        wider.state_dict()[name].copy_(grown(tensor, 23, f"lm_head.{name}", spread=0))
    before, after = head(hidden), wider(hidden)
    torch.testing.assert_close(after[:, :20], before)
    torch.testing.assert_close(after[:, 20:], before.mean(1, keepdim=True).expand(-1, 3))
    # The bound of Hewitt (2021): the old tokens' log probabilities fall by no more than log(1 + new / old).
    fall = (before.log_softmax(1) - after.log_softmax(1)[:, :20]).max()
    assert 0 < fall <= math.log(1 + 3 / 20) + 1e-6


def test_fewer_tokens() -> None:
    table = torch.randn(20, 8)
    assert torch.equal(grown(table, 5), table[:5])


def test_mean_and_covariance_of_the_new_rows() -> None:
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.1]])
    table = torch.randn(50, 3) @ mixing.T + torch.tensor([3.0, 0.0, -1.0])
    new = 20_000
    made = grown(table, 50 + new, spread=0.25)
    assert torch.equal(made[:50], table)
    rows, wanted = made[50:].double(), 0.25 * torch.cov(table.double().T, correction=0)
    # The standard error of a mean is sqrt(var / n), of a covariance at most sqrt(2 var var / n); six of them.
    deviations = wanted.diagonal().sqrt()
    assert ((rows.mean(0) - table.double().mean(0)).abs() <= 6 * deviations / math.sqrt(new)).all()
    tolerance = 6 * math.sqrt(2 / new) * deviations[:, None] * deviations[None]
    assert ((torch.cov(rows.T) - wanted).abs() <= tolerance).all()


def test_a_row_is_a_function_of_seed_key_and_place() -> None:
    table = torch.randn(9, 4)
    made = grown(table, 15)
    torch.testing.assert_close(grown(table, 12), made[:12])
    torch.testing.assert_close(grown(table.double(), 15).float(), made)
    assert torch.equal(grown(table, 15), made)
    for other in (grown(table, 15, seed=1), grown(table, 15, "lm_head.weight")):
        assert not torch.equal(other[9:], made[9:])


def test_new_rows_by_hand() -> None:
    """Row i is the mean and a sum of the old rows, with the numbers that stand in row i under the site's key."""
    table, numbers = torch.randn(9, 4), torch.empty(15, 9)
    Keyed(3).fill(Shard.whole("wte.weight", numbers), "normal", (0.0, 1.0))
    centred = table - table.mean(0)
    expected = table.mean(0) + math.sqrt(0.5 / 9) * numbers[9:] @ centred
    torch.testing.assert_close(grown(table, 15, spread=0.5, seed=3)[9:], expected)


def test_many_rows_are_drawn_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(9, 4)
    made = grown(table, 30)
    monkeypatch.setattr("torchinit.checkpoints.adapters.transformers._MOST_DRAWS", 20)
    torch.testing.assert_close(grown(table, 30), made)


def test_torchs_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    grown(torch.ones(3, 2), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"needs \[\*, 8\] for a site of \[23, 8\], but got \[20, 9\]$"):
        ResizeVocabulary().check([(20, 9)], (23, 8), "w")
    with pytest.raises(ValueError, match=r"needs a site of 1 or 2 dimensions, but it has \[23, 8, 1\]$"):
        ResizeVocabulary().check([(20, 8, 1)], (23, 8, 1), "w")
    with pytest.raises(ValueError, match=r"^spread must be at least 0, but got -1$"):
        ResizeVocabulary(-1)
    with pytest.raises(ValueError, match=r"^a seed is at least 0 and below 2\*\*64, got -1$"):
        ResizeVocabulary(seed=-1)
