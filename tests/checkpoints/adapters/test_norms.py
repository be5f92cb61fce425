"""Norms: a BatchNorm as what it computes; weights that were saved under weight norm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm as older
from torch.nn.utils.parametrizations import weight_norm as newer

from torchinit import CheckpointError, Name, Pretrained, Rule, initialize
from torchinit.checkpoints.adapters import Adapter, BatchNormAffine, FoldBatchNorm, WeightNorm


def trained(norm: nn.Module) -> nn.Module:
    """A norm in evaluation with numbers of its own, as after training."""
    for name, tensor in norm.state_dict().items():
        if name != "num_batches_tracked":
            tensor.copy_(torch.rand_like(tensor) + 0.5 * (name == "running_var"))
    return norm.eval()


def load(adapter: Adapter, site: str, state: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    wanted = [state[key] for key in adapter.wants(site)]
    adapter.check([tuple(tensor.shape) for tensor in wanted], shape, site)
    made = adapter.adapt(wanted, shape, site)
    assert tuple(made.shape) == shape
    return made


def test_affine() -> None:
    norm = trained(nn.BatchNorm2d(5, eps=1e-3))
    state = {f"bn1.{name}": tensor for name, tensor in norm.state_dict().items()}
    weight, bias = (load(BatchNormAffine(eps=1e-3), f"bn1.{leaf}", state, (5,)) for leaf in ("weight", "bias"))
    images = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(images * weight[:, None, None] + bias[:, None, None], norm(images))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("make", "axis", "shape"),
    [
        (lambda bias: nn.Conv2d(3, 5, 3, bias=bias), 0, (2, 3, 6, 6)),
        (lambda bias: nn.Conv1d(4, 5, 3, groups=1, bias=bias), 0, (2, 4, 6)),
        (lambda bias: nn.ConvTranspose2d(3, 5, 2, bias=bias), 1, (2, 3, 6, 6)),
        (lambda bias: nn.Linear(3, 5, bias=bias), 0, (2, 3)),
    ],
)
def test_folded(make: type[nn.Module], axis: int, shape: tuple[int, ...], bias: bool) -> None:
    layer = make(bias)
    norm = trained({2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](5))
    held = nn.ModuleDict({"conv": layer, "norm": norm}).state_dict()
    state = {f"layer1.{name}": tensor for name, tensor in held.items()}
    adapter = FoldBatchNorm("conv", "norm", bias=bias, axis=axis)
    folded, images = make(True), torch.randn(shape)
    for leaf, site in folded.state_dict().items():
        site.copy_(load(adapter, f"layer1.conv.{leaf}", state, tuple(site.shape)))
    torch.testing.assert_close(folded(images), norm(layer(images)), atol=1e-5, rtol=1e-5)


def test_the_norm_may_stand_beside_under_a_number() -> None:
    wants = FoldBatchNorm("0", "1").wants("stages.0.0.weight")
    assert wants == ("stages.0.1.weight", "stages.0.1.running_var", "stages.0.0.weight")


def test_half_precision_is_computed_in_float32() -> None:
    tensors = [torch.rand(3).bfloat16() for _ in range(4)]
    assert BatchNormAffine().adapt(tensors, (3,), "bn.bias").dtype == torch.float32


@pytest.mark.parametrize(
    ("adapter", "site", "shapes", "shape", "text"),
    [
        (
            BatchNormAffine(),
            "bn.weight",
            [(5,), (6,)],
            (5,),
            r"needs numbers for each channel, .* but got \[5\], \[6\]$",
        ),
        (BatchNormAffine(), "bn.weight", [(5,), (5,)], (6,), r"makes \[5\] of \[5\], \[5\], but the site has \[6\]$"),
        (
            FoldBatchNorm("conv", "bn"),
            "conv.weight",
            [(5,), (5,), (6, 3)],
            (6, 3),
            r"needs a weight with 5 channels in dimension 0, but got \[6, 3\]$",
        ),
        (FoldBatchNorm("conv", "bn", axis=2), "conv.weight", [(5,), (5,), (5, 3)], (5, 3), r"in dimension 2, but got"),
    ],
)
def test_shapes_that_do_not_fit(
    adapter: Adapter, site: str, shapes: list[tuple[int, ...]], shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        adapter.check(shapes, shape, site)


def test_arguments_and_keys() -> None:
    with pytest.raises(
        ValueError, match=r"^BatchNormAffine\(\) makes weights and biases, but 'bn.running_mean' is neither$"
    ):
        BatchNormAffine().wants("bn.running_mean")
    with pytest.raises(ValueError, match=r"^'conv2.weight' has no part 'conv1'; did you mean 'conv2'\?$"):
        FoldBatchNorm("conv1", "bn1").wants("conv2.weight")
    with pytest.raises(ValueError, match=r"^eps must be at least 0, but got -1$"):
        BatchNormAffine(-1)
    with pytest.raises(ValueError, match=r"^eps must be at least 0, but got -1$"):
        FoldBatchNorm("conv", "bn", eps=-1)
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        FoldBatchNorm("conv", "bn", axis=-1)


def normed(norm: Callable[..., nn.Module], layer: nn.Module, dim: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older one is told to be old
        made = norm(layer, dim=dim)
    for parameter in made.parameters():
        parameter.detach().uniform_(0.5, 2)
    return made


@pytest.mark.parametrize("norm", [older, newer])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("into", [None, older, newer])
def test_a_layer_computes_the_same(
    norm: Callable[..., nn.Module], dim: int | None, into: Callable[..., nn.Module] | None, tmp_path: Path
) -> None:
    trained = normed(norm, nn.Conv1d(4, 6, 3), dim)
    model = normed(into, nn.Conv1d(4, 6, 3), 2) if into else nn.Conv1d(4, 6, 3)
    torch.save({f"ups.{name}": tensor for name, tensor in trained.state_dict().items()}, tmp_path / "a.pth")
    adapter = WeightNorm(parametrized=norm is newer)
    rule = Pretrained(str(tmp_path / "a.pth"), prefix="ups", adapt={"weight": adapter})
    initialize(model, Rule(Name("**"), rule))
    sounds = torch.randn(2, 4, 9)
    torch.testing.assert_close(model(sounds), trained(sounds))


def test_lengths_that_do_not_fit() -> None:
    held = {"weight_g": torch.ones(5, 1, 1), "weight_v": torch.ones(6, 4, 3), "bias": torch.ones(6)}
    for length in (torch.ones(5, 1, 1), torch.ones(6), torch.ones(6, 4, 1)):
        rule = Pretrained({**held, "weight_g": length}, adapt={"weight": WeightNorm()})
        with pytest.raises(CheckpointError, match=r"needs one length, or one for each channel, of \[6, 4, 3\]"):
            initialize(nn.Conv1d(4, 6, 3), Rule(Name("**"), rule))
