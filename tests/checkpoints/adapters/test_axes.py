"""Axes: transposed weights compute what they computed before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchinit.checkpoints.adapters import Transpose


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
