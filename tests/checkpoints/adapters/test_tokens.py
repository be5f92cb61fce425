"""Tokens: old ones answer as before, new ones come from the distribution of the old."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchinit import Keyed, Shard
from torchinit.checkpoints.adapters import ResizeVocabulary


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
    monkeypatch.setattr("torchinit.checkpoints.adapters.tokens._MOST", 20)
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
