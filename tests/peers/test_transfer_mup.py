"""Parameter by parameter against `mup` 1.0.0: std, learning rate and weight decay, on the shapes of its examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from torchinit.transfer import Transfer

mup = pytest.importorskip("mup")


class MLP(nn.Module):
    """The shapes of mup's MLP example."""

    def __init__(self, width: int, head: Callable[..., nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(3072, width, bias=False)
        self.fc_2 = nn.Linear(width, width, bias=False)
        self.fc_3 = head(width, 10, bias=False)


class Block(nn.Module):
    def __init__(self, wide: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(nn.Conv2d(wide, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """The shapes of mup's ResNet example, with a depthwise convolution besides."""

    def __init__(self, width: int, head: Callable[..., nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for at in range(4):
            wide, here = sizes[at], sizes[at + 1]
            self.add_module(f"layer{at + 1}", nn.Sequential(Block(wide, here, 1 + (at > 0)), Block(here, here, 1)))
        self.linear = head(8 * width, 10)


class Layer(nn.Module):
    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out_proj": nn.Linear(width, width)})
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)


class Language(nn.Module):
    """The shapes of mup's transformer example; d_ff grows otherwise than the width."""

    def __init__(self, width: int, head: Callable[..., nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.encoder = nn.Embedding(100, width)
        self.layers = nn.ModuleList(Layer(width, 2 * width + 64) for _ in range(2))
        self.decoder = head(width, 100)


CASES: list[tuple[Any, int, int]] = [(MLP, 64, 256), (MLP, 256, 64), (ResNet, 16, 64), (Language, 64, 256)]


def stds_of_mup(make: Any, base: int, width: int) -> tuple[nn.Module, dict[str, float]]:
    """The model with mup's shapes set, and by how much it changed the std of each parameter."""
    torch.manual_seed(0)
    model = make(width, mup.MuReadout)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    mup.set_base_shapes(model, make(base, mup.MuReadout), delta=make(2 * base, mup.MuReadout))
    return model, {
        name: float(each.detach().norm() / before[name].norm()) if before[name].any() else 1.0
        for name, each in model.named_parameters()
    }


def torch_std(model: nn.Module, name: str) -> float:
    """The std that torch's constructors give a parameter of this model: 1/sqrt(3 fan_in) for matrices and biases."""
    owner = model.get_submodule(name.rpartition(".")[0])
    weight = owner.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(owner, nn.Embedding):
        return 1.0
    if weight.dim() < 2:
        return 0.0
    return 1 / math.sqrt(3 * weight[0].numel())


def torch_start(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()


@pytest.mark.parametrize(("make", "base", "width"), CASES)
def test_stds(make: Any, base: int, width: int) -> None:
    peer, changed = stds_of_mup(make, base, width)
    transfer = Transfer(make(width), make(base), start=torch_start)
    plan = torchinit.plan(make(width), transfer.recipe, complete=True)
    for name, each in peer.named_parameters():
        moments = plan[name].fill.moments(tuple(each.shape))
        assert moments is not None
        assert moments.std == pytest.approx(torch_std(peer, name) * changed[name], rel=1e-5), name


@pytest.mark.parametrize(("make", "base", "width"), CASES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rates_and_decay(make: Any, base: int, width: int, optimizer: str) -> None:
    peer, _ = stds_of_mup(make, base, width)
    names = {id(each): name for name, each in peer.named_parameters()}
    their = {"adamw": mup.MuAdamW, "sgd": mup.MuSGD}[optimizer](peer.parameters(), lr=0.01, weight_decay=0.1)
    ours = {
        name: group
        for group in Transfer(make(width), make(base), optimizer=optimizer).groups(lr=0.01, weight_decay=0.1)
        for name in group.names
    }
    for group in their.param_groups:
        for each in group["params"]:
            name = names[id(each)]
            assert ours[name].lr == pytest.approx(group["lr"]), name
            assert ours[name].weight_decay == pytest.approx(group["weight_decay"]), name
    assert ours.keys() == {*names.values()}


@pytest.mark.parametrize("bias", [True, False])
def test_the_readout(bias: bool) -> None:
    torch.manual_seed(0)
    peer = mup.MuReadout(256, 10, bias=bias)
    root, base, delta = (
        nn.Sequential(nn.Linear(8, n), h(n, 10, bias=bias))
        for n, h in ((256, nn.Linear), *[(64, mup.MuReadout), (128, mup.MuReadout)])
    )
    whole = nn.Sequential(nn.Linear(8, 256), peer)
    mup.set_base_shapes(whole, base, delta=delta)
    root.load_state_dict(whole.state_dict())
    x = torch.randn(4, 8)
    with Transfer(root, nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 10, bias=bias))).apply():
        torch.testing.assert_close(root(x), whole(x))
    assert not torch.allclose(root(x), whole(x))


def test_a_shared_embedding_keeps_its_std_here() -> None:
    # mup multiplies the one table that both use by sqrt(r), so that the embedding starts too large.
    def tied(width: int) -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(50, width), "lm_head": nn.Linear(width, 50, bias=False)})
        model["lm_head"].weight = model["embed"].weight
        return model

    row = Transfer(tied(256), tied(64))["lm_head.weight"]
    assert row.kind == "tied" and row.factors.std == 1 and row.factors.lr == 1
    assert row.factors.eps == 0.25
