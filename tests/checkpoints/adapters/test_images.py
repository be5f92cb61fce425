"""Images: other channels, patches and frames; embeddings and biases for another grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.checkpoints.adapters.resampling import bicubic_matrix, resized
from torchinit.checkpoints.adapters import Inflate, InputChannels, ResizePatches, ResizePositions, ResizeRelativeBias


def answer(weight: torch.Tensor, grey: torch.Tensor) -> torch.Tensor:
    """What a convolution makes of an image whose channels are all alike."""
    return torch.conv2d(grey.expand(-1, weight.shape[1], -1, -1), weight)


@pytest.mark.parametrize("channels", [1, 3, 6, 12])
def test_grey_images_look_as_before(channels: int) -> None:
    layer, grey = nn.Conv2d(3, 8, 3), torch.randn(2, 1, 9, 9)
    made = InputChannels().adapt([layer.weight.detach()], (8, channels, 3, 3), "conv1.weight")
    assert made.shape == (8, channels, 3, 3)
    torch.testing.assert_close(answer(made, grey), answer(layer.weight.detach(), grey))


def test_channels_in_turn() -> None:
    weight = torch.arange(6.0).view(2, 3, 1, 1)
    adapted = InputChannels().adapt([weight], (2, 4, 1, 1), "w").view(2, 4)
    assert adapted.tolist() == [[0.0, 0.75, 1.5, 0.0], [2.25, 3.0, 3.75, 2.25]]
    repeated = InputChannels("repeat").adapt([weight], (2, 5, 1, 1), "w").view(2, 5)
    assert repeated.tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]
    assert InputChannels("repeat").adapt([weight], (2, 1, 1, 1), "w").flatten().tolist() == [0, 3]


def test_transposed_convolution_has_them_first() -> None:
    weight = torch.randn(3, 5, 2, 2)
    made = InputChannels(axis=0).adapt([weight], (1, 5, 2, 2), "w")
    torch.testing.assert_close(made, weight.sum(0, keepdim=True))


def test_sums_are_not_rounded_twice() -> None:
    weight = torch.full((1, 3, 1, 1), 1 / 3, dtype=torch.bfloat16)
    made = InputChannels().adapt([weight], (1, 1, 1, 1), "w")
    assert made.dtype == torch.float32
    assert made.item() == pytest.approx(3 * weight[0, 0].item(), rel=1e-6)


def test_the_same_number_stays() -> None:
    weight = torch.randn(2, 3, 1, 1, dtype=torch.float16)
    assert InputChannels().adapt([weight], (2, 3, 1, 1), "w") is weight


@pytest.mark.parametrize(
    ("seen", "shape", "text"),
    [
        (
            (32, 3, 7, 7),
            (64, 1, 7, 7),
            r"needs \[64, \*, 7, 7\] for a site of \[64, 1, 7, 7\], but got \[32, 3, 7, 7\]",
        ),
        ((64, 3, 7, 7), (64, 1, 7), r"needs \[64, \*, 7\] for a site of \[64, 1, 7\], but got \[64, 3, 7, 7\]"),
        ((64,), (64,), r"needs a site of at least 2 dimensions, but it has \[64\]"),
        ((64, 0, 7), (64, 1, 7), r"can make nothing of \[64, 0, 7\], which is empty"),
    ],
)
def test_shapes_that_do_not_fit(seen: tuple[int, ...], shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=rf"^InputChannels\(\) {text}$"):
        InputChannels().check([seen], shape, "conv1.weight")


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"^how must be one of sum, repeat, but got 'mean'$"):
        InputChannels("mean")  # type: ignore[arg-type]  # this is the mistake
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        InputChannels(axis=-1)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((4, 4), (7, 5)), ((8, 8), (4, 4)), ((6, 4), (4, 6))])
def test_patches_by_least_squares(old: tuple[int, int], new: tuple[int, int], antialias: bool) -> None:
    weight = torch.randn(5, 3, *old)
    made = ResizePatches(antialias).adapt([weight], (5, 3, *new), "proj.weight")
    resize = np.kron(*(bicubic_matrix(o, n, antialias) for o, n in zip(old, new, strict=True)))
    # The answer of least norm to: as near as can be, <resized patch, new weight> is <patch, weight>.
    expected, *_ = np.linalg.lstsq(resize.T, weight.double().view(15, -1).T.numpy(), rcond=None)
    np.testing.assert_allclose(made.view(15, -1), expected.T, atol=1e-4)


@pytest.mark.parametrize("new", [(8, 8), (5, 7)])
def test_enlarged_patches_are_embedded_as_before(new: tuple[int, int]) -> None:
    weight, patches = torch.randn(5, 3, 4, 4), torch.randn(6, 3, 4, 4)
    made = ResizePatches().adapt([weight], (5, 3, *new), "proj.weight")
    enlarged = F.interpolate(patches, new, mode="bicubic", antialias=True)
    torch.testing.assert_close(F.conv2d(enlarged, made), F.conv2d(patches, weight), atol=1e-4, rtol=1e-4)


def test_the_same_patches_stay() -> None:
    weight = torch.randn(5, 3, 4, 4)
    assert ResizePatches().adapt([weight], (5, 3, 4, 4), "proj.weight") is weight


@pytest.mark.parametrize(
    ("seen", "shape", "text"),
    [
        ((5, 3, 4, 4), (5, 1, 8, 8), r"needs \[5, 1, \*, \*\] for a site of \[5, 1, 8, 8\], but got \[5, 3, 4, 4\]"),
        ((5, 3), (5, 3), r"needs a site of at least 3 dimensions, but it has \[5, 3\]"),
    ],
)
def test_patches_that_cannot_be(seen: tuple[int, ...], shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=rf"^ResizePatches\(\) {text}$"):
        ResizePatches().check([seen], shape, "proj.weight")


@pytest.mark.parametrize("how", ["repeat", "centre"])
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_video_that_stands_still(how: str, frames: int) -> None:
    weight, image = torch.randn(5, 3, 3, 3), torch.randn(2, 3, 8, 8)
    adapter = Inflate("repeat" if how == "repeat" else "centre")
    made = adapter.adapt([weight], (5, 3, frames, 3, 3), "conv1.weight")
    video = image[:, :, None].expand(-1, -1, 6, -1, -1)
    for frame in F.conv3d(video, made).unbind(2):
        torch.testing.assert_close(frame, F.conv2d(image, weight), atol=1e-4, rtol=1e-4)


def test_the_middle_frame() -> None:
    weight = torch.randn(5, 3, 3, 3)
    made = Inflate("centre").adapt([weight], (5, 3, 3, 3, 3), "w")
    assert torch.equal(made[:, :, 1], weight)
    assert made[:, :, ::2].count_nonzero() == 0


def test_time_elsewhere() -> None:
    weight = torch.randn(4, 2)
    assert torch.equal(Inflate(axis=0).adapt([weight], (2, 4, 2), "w"), torch.stack([weight / 2] * 2))


def test_inflation_that_cannot_be() -> None:
    Inflate().check([(5, 3, 7, 7)], (5, 3, 4, 7, 7), "w")
    text = r"^Inflate\(\) needs the site's shape without dimension 2, but got \[5, 3, 7\] for a site of \[5, 1, 4, 7\]$"
    with pytest.raises(ValueError, match=text):
        Inflate().check([(5, 3, 7)], (5, 1, 4, 7), "w")
    with pytest.raises(ValueError, match=r"for a site of \[5, 3\]$"):
        Inflate().check([(5, 3)], (5, 3), "w")
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        Inflate(axis=-1)
    with pytest.raises(ValueError, match=r"^how must be one of repeat, centre, but got 'center'$"):
        Inflate("center")  # type: ignore[arg-type]  # this is the mistake


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
            r"33 tokens with prefix=1 are not a square grid; with prefix=8 they are 5x5, else",
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
        (
            ResizeRelativeBias(),
            (49, 2),
            (172, 2),
            r"172 rows with extra=0 are not a square window; give site=\(h, w\) or",
        ),
        (
            ResizeRelativeBias(),
            (16, 2),
            (169, 2),
            r"16 rows with extra=0 are not a square window; give file=\(h, w\) or",
        ),
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


def test_arguments_of_grids() -> None:
    with pytest.raises(ValueError, match=r"^prefix must be a whole number from 0, but got -1$"):
        ResizePositions(-1)
    with pytest.raises(ValueError, match=r"^extra must be a whole number from 0, but got -1$"):
        ResizeRelativeBias(-1)
    with pytest.raises(ValueError, match=r"^site must be \(height, width\) in whole numbers from 1, but got \(0, 4\)$"):
        ResizePositions(site=(0, 4))
    with pytest.raises(ValueError, match=r"^file must be \(height, width\) in whole numbers from 1, but got 4$"):
        ResizeRelativeBias(file=4)  # type: ignore[arg-type]  # this is the mistake


@given(st.integers(0, 4), st.integers(0, 4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_other_special_tokens_leave_the_patches_bit_for_bit(had: int, wanted: int, dtype: torch.dtype) -> None:
    table, shape = torch.randn(1, had + 9, 4).to(dtype), (1, wanted + 9, 4)
    adapter = ResizePositions(had, site_prefix=wanted)
    adapter.check([tuple(table.shape)], shape, "pos_embed")
    made, kept = adapter.adapt([table], shape, "pos_embed"), min(had, wanted)
    assert made.dtype == dtype
    assert made.shape == shape
    assert torch.equal(made[:, wanted:], table[:, had:])
    assert torch.equal(made[:, :kept], table[:, :kept])
    assert not made[:, kept:wanted].any()
    assert adapter.changes([tuple(table.shape)], shape) == (had != wanted)


def test_other_special_tokens_and_another_grid() -> None:
    table = torch.randn(1, 1 + 16, 6)
    made = ResizePositions(1, site_prefix=5).adapt([table], (1, 5 + 36, 6), "pos_embed")
    expected = ResizePositions(1).adapt([table], (1, 1 + 36, 6), "pos_embed")
    assert torch.equal(made[:, 5:], expected[:, 1:])
    assert torch.equal(made[:, :1], expected[:, :1])
    assert not made[:, 1:5].any()
    with pytest.raises(ValueError, match=r"41 tokens .* give site=\(h, w\); site_prefix=5 is for the site alone"):
        ResizePositions(1).check([(1, 17, 6)], (1, 41, 6), "pos_embed")
    with pytest.raises(ValueError, match=r"^site_prefix must be a whole number from 0, but got -1$"):
        ResizePositions(site_prefix=-1)
