"""Channels: a first layer answers to grey images as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchinit.checkpoints.adapters import InputChannels


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
