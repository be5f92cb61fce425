"""Rows and axes: a classifier for other classes than the file's, other tokens; dimensions in another order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, plan
from torchinit.checkpoints.adapters import Drop, Labels, ResizeVocabulary, Rows, Transpose
from torchinit.model import Shard
from torchinit.noise import Keyed


def answers(adapter: Rows | Labels, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a classifier of five classes answers, and what it does once it was adapted."""
    head, features = nn.Linear(8, 5), torch.randn(3, 8)
    made = nn.Linear(8, classes)
    for name, tensor in head.state_dict().items():
        shape = tuple(made.state_dict()[name].shape)
        adapter.check([tuple(tensor.shape)], shape, f"head.{name}")
        made.state_dict()[name].copy_(adapter.adapt([tensor], shape, f"head.{name}"))
    return head(features).detach(), made(features).detach()


def test_first_classes() -> None:
    before, after = answers(Rows(), 3)
    torch.testing.assert_close(after, before[:, :3])


def test_chosen_classes() -> None:
    before, after = answers(Rows((4, 0, 2)), 3)
    torch.testing.assert_close(after, before[:, [4, 0, 2]])


def test_columns() -> None:
    assert Rows((2,), axis=1).adapt([torch.arange(6).view(2, 3)], (2, 1), "w").tolist() == [[2], [5]]


@pytest.mark.parametrize(
    ("adapter", "seen", "shape", "text"),
    [
        (Rows(), (5, 8), (6, 8), r"Rows\(\) needs at least 6 rows for a site of \[6, 8\], but got \[5, 8\]"),
        (
            Rows((5, 1)),
            (5, 8),
            (2, 8),
            r"Rows\(indices=\(5, 1\)\) needs at least 6 rows for .* \[2, 8\], but got \[5, 8\]",
        ),
        (Rows((1, 2)), (5, 8), (3, 8), r"Rows\(indices=\(1, 2\)\) has 2 indices for the 3 rows of \[3, 8\]"),
        (Rows(), (5, 9), (3, 8), r"Rows\(\) needs \[\*, 8\] for a site of \[3, 8\], but got \[5, 9\]"),
    ],
)
def test_rows_that_are_not_there(adapter: Rows, seen: tuple[int, ...], shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        adapter.check([seen], shape, "head.weight")


def test_arguments_of_rows() -> None:
    with pytest.raises(ValueError, match=r"^indices must be whole numbers from 0, but got \(-1,\)$"):
        Rows((-1,))
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        Rows(axis=-1)


FILE = ("ant", "bee", "cat", "dog", "elk")


def test_labels_by_name() -> None:
    before, after = answers(Labels(FILE, ("dog", "ant")), 2)
    torch.testing.assert_close(after, before[:, [3, 0]])


def test_a_label_that_the_file_lacks_gets_the_mean_answer() -> None:
    before, after = answers(Labels(FILE, ("dog", "fox"), missing="mean"), 2)
    torch.testing.assert_close(after, torch.stack([before[:, 3], before.mean(1)], 1))


def test_a_label_that_the_file_lacks_gets_no_answer() -> None:
    before, after = answers(Labels(FILE, ("fox", "dog"), missing="zero"), 2)
    torch.testing.assert_close(after, torch.stack([torch.zeros(3), before[:, 3]], 1))


def test_all_labels_that_the_file_lacks_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"^the file has no label 'catt'; did you mean 'cat'\?; 'fox': missing='mean' or"
    ):
        Labels(FILE, ("catt", "dog", "fox"))


def test_labels_twice() -> None:
    with pytest.raises(ValueError, match=r"^site names 'cat' twice$"):
        Labels(FILE, ("cat", "dog", "cat"))
    with pytest.raises(ValueError, match=r"^missing must be one of error, mean, zero, but got 'drop'$"):
        Labels(FILE, FILE, "drop")  # type: ignore[arg-type]  # this is the mistake


@pytest.mark.parametrize(
    ("seen", "shape", "text"),
    [
        ((6, 8), (2, 8), r"^Labels has 5 labels for the file, whose shape is \[6, 8\]$"),
        ((5, 8), (3, 8), r"^Labels has 2 labels for the site, whose shape is \[3, 8\]$"),
        ((5, 7), (2, 8), r"needs \[\*, 8\] for a site of \[2, 8\], but got \[5, 7\]$"),
    ],
)
def test_labels_for_other_shapes(seen: tuple[int, ...], shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Labels(FILE, ("dog", "ant")).check([seen], shape, "head.weight")


def test_nothing_is_wanted_of_what_is_dropped() -> None:
    assert Drop().wants("head.weight") == ()
    with pytest.raises(ValueError, match=r"^Drop\(\) makes nothing, so not 'head.weight'$"):
        Drop().adapt([], (1,), "head.weight")


def test_linear_from_weights_kept_as_inputs_by_outputs() -> None:
    weight, images = torch.randn(5, 7), torch.randn(3, 5)
    layer = nn.Linear(5, 7, bias=False)
    layer.weight.data = Transpose().adapt([weight], (7, 5), "c_fc.weight")
    torch.testing.assert_close(layer(images), images @ weight)


def test_convolution_of_tensorflow() -> None:
    kernel = torch.randn(3, 2, 4, 6)  # height, width, in, out
    made = Transpose((3, 2, 0, 1)).adapt([kernel], (6, 4, 3, 2), "conv.weight")
    image = torch.randn(1, 4, 3, 2)
    expected = torch.tensordot(image[0].permute(1, 2, 0), kernel, dims=([0, 1, 2], [0, 1, 2]))
    torch.testing.assert_close(torch.conv2d(image, made).flatten(), expected)


def test_shape() -> None:
    Transpose((0, 2, 1)).check([(4, 2, 3)], (4, 3, 2), "experts")
    with pytest.raises(ValueError, match=r"^Transpose\(\) makes \[3, 2\] of \[2, 3\], but the site has \[2, 3\]$"):
        Transpose().check([(2, 3)], (2, 3), "a")
    with pytest.raises(ValueError, match=r"^Transpose\(\) needs 2 dimensions, but got \[3\]$"):
        Transpose().check([(3,)], (3,), "a")


@pytest.mark.parametrize("axes", [(0, 2), (1, 1), (1, 2)])
def test_axes_are_an_order(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^axes must be 0, 1, \.\.\. in some order, but got "):
        Transpose(axes)


# --- vocabularies ----------------------------------------------------------------------------------------------------


def grown(table: torch.Tensor, tokens: int, key: str = "wte.weight", **arguments: Any) -> torch.Tensor:
    adapter = ResizeVocabulary(**arguments)
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
    monkeypatch.setattr("torchinit.checkpoints.adapters.rows_and_axes._MOST_DRAWS", 20)
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


@given(st.data())
def test_new_tokens_are_the_means_of_those_that_they_are_like(data: st.DataObject) -> None:
    """NumPy's means of rows, in double precision; a copy has the bits of its row."""
    have, new = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    trained = data.draw(st.integers(1, have))
    ids = st.lists(st.integers(0, trained - 1), min_size=1, max_size=5)
    like = {trained + at: data.draw(ids) for at in range(new)}
    table = torch.randn(have, 3)
    made = grown(table, max(have, trained + new) + 1, spread=0, trained=trained, like=like)
    rows = table.double().numpy()
    assert torch.equal(made[:trained], table[:trained])
    for token, old in like.items():
        np.testing.assert_allclose(made[token], rows[old].mean(0), atol=1e-6)
        if len(old) == 1:
            assert torch.equal(made[token], table[old[0]])
    np.testing.assert_allclose(
        made[trained + new :], rows[None, :trained].mean(1).repeat(len(made) - trained - new, 0), atol=1e-6
    )


def test_a_padded_table_of_the_same_size() -> None:
    """Rows that were never trained are nobody's: neither for the mean nor in the model."""
    table = torch.randn(16, 4)
    table[10:] = 1e6
    adapter = ResizeVocabulary(spread=0, trained=10)
    assert adapter.changes([(16, 4)], (16, 4))
    assert not ResizeVocabulary(trained=16).changes([(16, 4)], (16, 4))
    made = grown(table, 16, spread=0, trained=10)
    np.testing.assert_allclose(made[10:], np.broadcast_to(table[:10].numpy().mean(0), (6, 4)), atol=1e-6)
    assert torch.equal(grown(table, 8, trained=10), table[:8])


def test_likes_have_noise_of_the_same_covariance_around_them() -> None:
    table = torch.randn(9, 4)
    plain, near = grown(table, 12, spread=0.5), grown(table, 12, spread=0.5, like={10: 2})
    torch.testing.assert_close(near[10] - table[2], plain[10] - table.mean(0))
    assert torch.equal(near[[9, 11]], plain[[9, 11]])


def test_embedding_head_and_bias_together() -> None:
    class Model(nn.Module):
        def __init__(self, tokens: int) -> None:
            super().__init__()
            self.wte, self.head = nn.Embedding(tokens, 4), nn.Linear(4, tokens)

    old, new = Model(10), Model(12)
    adapt = {"**": ResizeVocabulary(spread=0, like={10: 3, 11: (1, 2)})}
    initialize(new, Rule(Name("**"), Pretrained(old, adapt=adapt)))
    hidden = old.wte(torch.tensor([3, 1, 2]))
    torch.testing.assert_close(new.wte(torch.tensor([10, 11])), torch.stack([hidden[0], hidden[1:].mean(0)]))
    before, after = old.head(hidden), new.head(hidden)
    torch.testing.assert_close(after[:, :10], before)
    torch.testing.assert_close(after[:, 10], before[:, 3])
    torch.testing.assert_close(after[:, 11], before[:, 1:3].mean(1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"like": {9: 1}}, r"gives a start to 9, but new tokens are 10 to 11$"),
        ({"like": {12: 1}}, r"gives a start to 12, but new tokens are 10 to 11$"),
        ({"like": {11: (3, 10)}}, r"makes 11 of 10, but the file's tokens are 0 to 9$"),
        ({"like": {9: 7}, "trained": 7}, r"makes 9 of 7, but the file's tokens are 0 to 6$"),
        ({"trained": 11}, r"has 11 tokens trained, but the file 10 in all$"),
    ],
)
def test_tokens_that_are_not_there(arguments: Mapping[str, Any], text: str) -> None:
    """Refused from the header, before anything is written."""
    model = nn.Embedding(12, 4)
    rule = Rule(Name("**"), Pretrained({"weight": torch.ones(10, 4)}, adapt={"**": ResizeVocabulary(**arguments)}))
    with pytest.raises(CheckpointError, match=text):
        plan(model, rule)


def test_arguments_of_likes() -> None:
    assert ResizeVocabulary(like={"7": [1]}) == ResizeVocabulary(like={7: 1})  # type: ignore[dict-item]  # a list, too
    with pytest.raises(
        TypeError, match=r"^like gives old tokens to each new one, \{50257: \(11, 25\)\}, but got \[\]$"
    ):
        ResizeVocabulary(like=[])  # type: ignore[arg-type]
    for like in ({"a": 1}, {5: ()}, {5: -1}, {5: (1, 2.0)}):
        with pytest.raises(ValueError, match=r"^like must give a new token's number one or more old ones, but got '"):
            ResizeVocabulary(like=like)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^trained must be a whole number from 1, but got 0$"):
        ResizeVocabulary(trained=0)
