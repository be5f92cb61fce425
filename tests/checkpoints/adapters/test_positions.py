"""Positions: resampled as the definition of bicubic interpolation says, and left alone where nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.checkpoints.adapters.resampling import resized
from torchinit.checkpoints.adapters import ResizePositions, ResizeRelativeBias

Grid = tuple[int, int]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((7, 7), (3, 3)), ((4, 6), (5, 3)), ((6, 6), (4, 9))])
def test_positions_by_definition(old: Grid, new: Grid, antialias: bool) -> None:
    table = torch.randn(1, 2 + old[0] * old[1], 5)
    adapter = ResizePositions(2, old, new, antialias)
    shape = (1, 2 + new[0] * new[1], 5)
    adapter.check([tuple(table.shape)], shape, "pos_embed")
    made = adapter.adapt([table], shape, "pos_embed")
    assert torch.equal(made[:, :2], table[:, :2])
    np.testing.assert_allclose(made[0, 2:], resized(table[0, 2:], old, new, antialias), atol=1e-5)


def test_square_grids_need_no_telling() -> None:
    table = torch.randn(1 + 16, 5)
    made = ResizePositions().adapt([table], (1 + 36, 5), "pos_embed")
    assert torch.equal(made, ResizePositions(1, (4, 4), (6, 6)).adapt([table], (1 + 36, 5), "pos_embed"))


def test_a_plane_stays_a_plane_inside() -> None:
    """Embeddings that are a linear function of the place are so on the finer grid, away from its edge."""
    places = torch.arange(8.0)
    table = (2 * places[:, None] + 3 * places[None]).reshape(1, 64, 1)
    made = ResizePositions(0).adapt([table], (1, 256, 1), "pos_embed").view(16, 16)
    fine = (torch.arange(16.0) + 0.5) / 2 - 0.5
    expected = 2 * fine[:, None] + 3 * fine[None]
    torch.testing.assert_close(made[4:-4, 4:-4], expected[4:-4, 4:-4])


def test_the_same_grid_stays() -> None:
    table = torch.randn(1, 17, 5, dtype=torch.float16)
    assert ResizePositions().adapt([table], (1, 17, 5), "pos_embed") is table


def test_the_same_number_of_tokens_may_be_another_grid() -> None:
    table = torch.randn(1, 36, 2)
    made = ResizePositions(0, (6, 6), (4, 9)).adapt([table], (1, 36, 2), "pos_embed")
    assert not torch.equal(made, table)


def test_half_precision_is_computed_in_float32() -> None:
    table = torch.randn(1, 17, 5).bfloat16()
    made = ResizePositions().adapt([table], (1, 26, 5), "pos_embed")
    assert made.dtype == torch.float32
    assert torch.equal(made, ResizePositions().adapt([table.float()], (1, 26, 5), "pos_embed"))


@pytest.mark.parametrize(
    ("adapter", "seen", "shape", "text"),
    [
        (
            ResizePositions(),
            (1, 17, 5),
            (1, 26, 6),
            r"needs \[1, \*, 6\] for a site of \[1, 26, 6\], but got \[1, 17, 5\]",
        ),
        (ResizePositions(), (17,), (26,), r"needs a site of at least 2 dimensions, but it has \[26\]"),
        (
            ResizePositions(),
            (1, 18, 5),
            (1, 26, 5),
            r"18 tokens with prefix=1 .* with prefix=2 they are 4x4, else give f",
        ),
        (
            ResizePositions(),
            (1, 17, 5),
            (1, 25, 5),
            r"25 tokens .* with prefix=0 they are 5x5, else give site=\(h, w\)",
        ),
        (
            ResizePositions(),
            (1, 33, 5),
            (1, 26, 5),
            r"33 tokens with prefix=1 are no .*; with prefix=8 they are 5x5, else",
        ),
        (ResizePositions(), (1, 1, 5), (1, 26, 5), r"1 tokens with prefix=1 .* with prefix=0 they are 1x1"),
        (
            ResizePositions(file=(4, 5)),
            (1, 17, 5),
            (1, 26, 5),
            r"file=\(4, 5\) has 20 places, but there are 16 tokens besides the prefix",
        ),
    ],
)
def test_positions_that_cannot_be(
    adapter: ResizePositions, seen: tuple[int, ...], shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        adapter.check([seen], shape, "pos_embed")


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(("old", "new"), [((3, 3), (5, 5)), ((4, 4), (2, 2)), ((2, 4), (3, 3))])
def test_relative_biases_by_definition(old: Grid, new: Grid, extra: int) -> None:
    had, has = [(2 * h - 1, 2 * w - 1) for h, w in (old, new)]
    table, shape = torch.randn(had[0] * had[1] + extra, 4), (has[0] * has[1] + extra, 4)
    adapter = ResizeRelativeBias(extra, old, new)
    adapter.check([tuple(table.shape)], shape, "bias")
    made = adapter.adapt([table], shape, "bias")
    inner = has[0] * has[1]
    assert torch.equal(made[inner:], table[had[0] * had[1] :])
    np.testing.assert_allclose(made[:inner], resized(table[: had[0] * had[1]], had, has, antialias=False), atol=1e-5)


def test_the_middle_of_a_window_keeps_its_bias() -> None:
    """Where the query is the key the difference is 0, in the middle of any table."""
    table = torch.randn(49, 2)
    made = ResizeRelativeBias().adapt([table], (169, 2), "bias")
    torch.testing.assert_close(made[84], table[24])


def test_the_same_window_stays() -> None:
    table = torch.randn(25 + 3, 2)
    assert ResizeRelativeBias(3).adapt([table], (28, 2), "bias") is table


@pytest.mark.parametrize(
    ("adapter", "seen", "shape", "text"),
    [
        (ResizeRelativeBias(), (49, 2), (172, 2), r"172 rows with extra=0 are no square window; give site=\(h, w\) or"),
        (ResizeRelativeBias(), (16, 2), (169, 2), r"16 rows with extra=0 are no square window; give file=\(h, w\) or"),
        (
            ResizeRelativeBias(3, file=(4, 4)),
            (49, 2),
            (172, 2),
            r"file=\(4, 4\) makes 49 biases, but there are 46 besides",
        ),
        (ResizeRelativeBias(), (49, 2, 1), (169, 2, 1), r"needs a site of 2 dimensions, but it has \[169, 2, 1\]"),
        (ResizeRelativeBias(), (49, 2), (169, 4), r"needs \[\*, 4\] for a site of \[169, 4\], but got \[49, 2\]"),
    ],
)
def test_biases_that_cannot_be(
    adapter: ResizeRelativeBias, seen: tuple[int, ...], shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        adapter.check([seen], shape, "bias")


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"^prefix must be a whole number from 0, but got -1$"):
        ResizePositions(-1)
    with pytest.raises(ValueError, match=r"^extra must be a whole number from 0, but got -1$"):
        ResizeRelativeBias(-1)
    with pytest.raises(ValueError, match=r"^site must be \(height, width\) in whole numbers from 1, but got \(0, 4\)$"):
        ResizePositions(site=(0, 4))
    with pytest.raises(ValueError, match=r"^file must be \(height, width\) in whole numbers from 1, but got 4$"):
        ResizeRelativeBias(file=4)  # type: ignore[arg-type]  # this is the mistake
