"""Rows and axes: a classifier for other classes than the file's; dimensions in another order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchinit.checkpoints.adapters import Drop, Labels, Rows, Transpose


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
