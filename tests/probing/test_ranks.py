"""The probe and LSUV on two ranks that share a model: what they measure, and that they agree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.probing.nets import mlp
from tests.processes import on_ranks, results
from torchinit import lsuv, probe
from torchinit.model.dtensor import local_part

WORLD = 2


def sharded() -> nn.Module:
    mesh = init_device_mesh("cpu", (WORLD,))
    model = mlp(0, depth=4)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batch_of(rank: int) -> Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(rank))


def probed(rank: int) -> tuple[float, float, list[float], bool]:
    model = sharded()
    before = [local_part(each.detach()).clone() for each in model.parameters()]
    result = probe(model, (batch_of(0), torch.arange(64) % 10), optimizer=torch.optim.SGD, lr=0.1, steps=2)
    (chain,) = result.measurement.chains
    kept = all(map(torch.equal, before, (local_part(each.detach()) for each in model.parameters())))
    kept &= all(each.grad is None for each in model.parameters())
    return chain.signal, chain.gradient, list(result.measurement.losses), kept


def scaled(rank: int) -> tuple[list[float], list[Tensor]]:
    model = sharded()
    result = lsuv(model, batch_of(rank))
    values = [each.full_tensor() for each in model.parameters() if isinstance(each, DTensor)]
    return [each.gain for each in result.layers], [each.detach() for each in values]


def test_a_sharded_model_is_probed_as_a_whole_one(tmp_path: Path) -> None:
    whole = probe(mlp(0, depth=4), (batch_of(0), torch.arange(64) % 10), optimizer=torch.optim.SGD, lr=0.1, steps=2)
    (chain,) = whole.measurement.chains
    for signal, gradient, losses, kept in results(on_ranks(WORLD, probed, tmp_path)):
        assert signal == pytest.approx(chain.signal, abs=1e-4)
        assert gradient == pytest.approx(chain.gradient, abs=1e-4)
        assert losses == pytest.approx(whole.measurement.losses, rel=1e-4)
        assert kept


def test_ranks_agree_on_what_they_measure(tmp_path: Path) -> None:
    (gains, values), (others, same) = results(on_ranks(WORLD, scaled, tmp_path))
    assert gains == others
    assert all(map(torch.equal, values, same))
    alone = lsuv(mlp(0, depth=4), torch.cat([batch_of(rank) for rank in range(WORLD)]))
    assert gains == pytest.approx([each.gain for each in alone.layers], rel=0.01)
    assert not any(math.isnan(each.std) for each in alone.layers)
