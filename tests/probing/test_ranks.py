"""The probe and LSUV on two ranks that share a model: what they measure, and that they agree."""

from __future__ import annotations

import math
from itertools import chain, count, repeat
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.probing.nets import Wired, mlp
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
    (line,) = result.measurement.chains
    kept = all(map(torch.equal, before, (local_part(each.detach()) for each in model.parameters())))
    kept &= all(each.grad is None for each in model.parameters())
    return line.signal, line.gradient, list(result.measurement.losses), kept


def scaled(rank: int) -> tuple[list[float], list[Tensor]]:
    model = sharded()
    result = lsuv(model, batch_of(rank))
    values = [each.full_tensor() for each in model.parameters() if isinstance(each, DTensor)]
    return [each.gain for each in result.layers], [each.detach() for each in values]


def test_a_sharded_model_is_probed_as_a_whole_one(tmp_path: Path) -> None:
    whole = probe(mlp(0, depth=4), (batch_of(0), torch.arange(64) % 10), optimizer=torch.optim.SGD, lr=0.1, steps=2)
    (line,) = whole.measurement.chains
    for signal, gradient, losses, kept in results(on_ranks(WORLD, probed, tmp_path)):
        assert signal == pytest.approx(line.signal, abs=1e-4)
        assert gradient == pytest.approx(line.gradient, abs=1e-4)
        assert losses == pytest.approx(whole.measurement.losses, rel=1e-4)
        assert kept


def test_ranks_agree_on_what_they_measure(tmp_path: Path) -> None:
    (gains, values), (others, same) = results(on_ranks(WORLD, scaled, tmp_path))
    assert gains == others
    assert all(map(torch.equal, values, same))
    alone = lsuv(mlp(0, depth=4), torch.cat([batch_of(rank) for rank in range(WORLD)]))
    assert gains == pytest.approx([each.gain for each in alone.layers], rel=0.01)
    assert not any(math.isnan(each.std) for each in alone.layers)


# --- one decision for all ---------------------------------------------------------------------------------------------


def headless() -> nn.Module:
    """A sharded model whose zero head makes the probe look at a few steps more."""
    model = sharded()
    nn.init.zeros_(model.get_parameter(f"{len(list(model.children())) - 1}.weight"))
    return model


def late_on_one(rank: int, wrap: str) -> tuple[int, int, bool]:
    """The clock of one rank is beyond all limits, that of the other stands still."""
    model = headless() if wrap == "FSDP" else DistributedDataParallel(mlp(0, depth=4))
    clock = SimpleNamespace(monotonic=lambda: math.inf if rank == 0 else 0.0)
    with patch("torchinit.probing.measure.time", clock):
        result = probe(model, batch_of(0), lr=0.1, steps=3)
    return len(result.measurement.losses), result.measurement.asleep, "after 60 seconds" in str(result)


def near_on_one(rank: int) -> int:
    with patch("torchinit.probing.probe.near_bounds", lambda _: ("TI801",) if rank == 0 else ()):
        return len(probe(sharded(), batch_of(rank)).runs)


def slow_on_one(rank: int) -> tuple[int, str]:
    """A batch is made, whose pass takes long on one rank."""
    ticks = count(0.0, 1000.0 if rank == 0 else 0.0)
    with (
        patch("torchinit.probing.inputs.time", SimpleNamespace(monotonic=lambda: next(ticks))),
        patch("torchinit.probing.inputs._SMALL", 0.0),
    ):
        measured = probe(sharded(), limit=60).measurement
    return measured.samples, measured.inputs


def half_used(rank: int) -> list[str]:
    """Half of a weight has no gradient for good: all of the part that one rank holds, and not all of the weight."""
    torch.manual_seed(0)
    model = Wired(lambda self, x: self.head(self.wide(x)[:, :8]), wide=nn.Linear(64, 16), head=nn.Linear(8, 4))
    fully_shard(model.get_submodule("wide"), mesh=init_device_mesh("cpu", (WORLD,)))
    return list(probe(model, batch_of(0)).findings.codes)


def lsuv_late_on_one(rank: int) -> int:
    """The first look at the clock is when lsuv begins."""
    times = chain([0.0], repeat(math.inf if rank == 0 else 0.0))
    with patch("torchinit.probing.lsuv.time", SimpleNamespace(monotonic=lambda: next(times))):
        return lsuv(sharded(), batch_of(0), tolerance=1e-12).passes


@pytest.mark.parametrize("wrap", ["FSDP", "DDP"])
def test_the_limit_of_time_is_one_decision(wrap: str, tmp_path: Path) -> None:
    assert results(on_ranks(WORLD, late_on_one, tmp_path, wrap)) == [(0, 0, True)] * 2


def test_so_is_whether_to_measure_again(tmp_path: Path) -> None:
    assert results(on_ranks(WORLD, near_on_one, tmp_path)) == [3, 3]


def test_so_is_the_size_of_a_made_batch(tmp_path: Path) -> None:
    (samples, text), other = results(on_ranks(WORLD, slow_on_one, tmp_path))
    assert (samples, text) == other
    assert samples == 2
    assert text.endswith("64 would take more than 60 seconds")


def test_so_is_whether_a_weight_is_stuck(tmp_path: Path) -> None:
    assert results(on_ranks(WORLD, half_used, tmp_path)) == [[], []]


def test_so_is_the_end_of_lsuv(tmp_path: Path) -> None:
    assert results(on_ranks(WORLD, lsuv_late_on_one, tmp_path)) == [1, 1]
