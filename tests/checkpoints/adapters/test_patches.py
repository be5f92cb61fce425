"""Patches: enlarged images and videos that stand still are seen as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.checkpoints.adapters.resampling import bicubic_matrix
from torchinit.checkpoints.adapters import Inflate, ResizePatches


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
