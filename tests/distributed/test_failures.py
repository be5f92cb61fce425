"""Failures: what is wrong on one rank is an error on every rank, named, with nothing left behind; nobody hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.processes import on_ranks, results
from torchinit import Name, Normal, Pretrained, Report, Rule, Uniform, initialize, materialize
from torchinit.model.dtensor import local_part
from torchinit.plans import run

WORLD = 3
ALL = Rule(Name("**"), Normal())


def model(mesh: DeviceMesh | None, width: int = 7) -> nn.Module:
    with torch.device("meta"):
        made = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width))
    if mesh is not None:
        fully_shard(made, mesh=mesh)
    return made


def tried(made: nn.Module, recipe: Any = ALL, seed: int = 0, **options: Any) -> tuple[str, bool]:
    """What the error was, and whether the model has no memory again."""
    try:
        materialize(made, recipe, seed=seed, **options)
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}", all(each.is_meta for each in made.parameters())
    return "nothing", False


def forgetful(mesh: DeviceMesh) -> nn.Module:
    """One rank alone has a buffer that nobody makes."""
    made = model(mesh)
    if dist.get_rank() == 1:
        made.register_buffer("scale", torch.empty(2, device="meta"))
    return made


def behind_the_back(made: nn.Module, change: Callable[[Any], None]) -> tuple[str, bool]:
    """A run after which something changes the shards."""

    def corrupted(*args: Any, **kwargs: Any) -> Report:
        report = run(*args, **kwargs)
        change(args[1])
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchinit.distributed.materialize.run", corrupted)
        return tried(made)


def flipped(shards: Any) -> None:
    if dist.get_rank() == 2:
        shards["1.weight"][0].local.view(torch.int32)[0] ^= 1


def opaque(shards: Any) -> None:
    if dist.get_rank() == 0:
        shards["0.weight"][0].local[1].fill_(torch.nan)


def scenarios(rank: int) -> dict[str, tuple[str, bool]]:
    mesh = init_device_mesh("cpu", (WORLD,))
    alone = [dist.new_group([each]) for each in range(WORLD)]
    return {
        "recipe": tried(model(mesh), [ALL, Rule(Name("0.bias"), Uniform())] if rank == 1 else ALL),
        "seed": tried(model(mesh), seed=7 if rank == 2 else 0),
        "model": tried(model(None, width=8 if rank == 0 else 7)),
        "rank 1 cannot read": tried(model(mesh), {"rules": [{"type": "Nrmal"}]} if rank == 1 else ALL),
        "rank 0 has memory": tried(nn.Sequential(nn.Linear(5, 7)) if rank == 0 else model(None)),
        "device": tried(model(mesh), device="cuda" if rank == 2 else "cpu"),
        "forgotten": tried(forgetful(mesh)),
        "flipped": behind_the_back(model(None), flipped),
        "unwritten": behind_the_back(model(mesh), opaque),
        "NaN in one part": partly_nan(model(mesh)),
        "in a group of its own": tried(model(None), seed=rank, group=alone[rank]),
    }


def partly_nan(made: nn.Module) -> tuple[str, bool]:
    """A checkpoint of which the part of the last rank is not finite, loaded into memory that is there."""
    state = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in made.state_dict().items()}
    state["0.weight"][-1] = state["1.weight"][:] = torch.nan
    made.to_empty(device="cpu")
    for tensor in (*made.parameters(), *made.buffers()):
        local_part(tensor).zero_()
    try:
        initialize(made, Rule(Name("**"), Pretrained(state)), seed=0)
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}", not any(local_part(each).any() for each in made.parameters())
    return "nothing", False


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, bool]]]:
    return results(on_ranks(WORLD, scenarios, tmp_path_factory.mktemp("failures")))


ALIKE = "RunError: the ranks do not start alike; nothing was written. Give each its own group= if that is meant\n  "
EXPECTED = {
    "recipe": ALIKE + "0.bias: Normal(mean=0.0, std=1.0) in [7] torch.float32 on ranks 0, 2,"
    " Uniform(a=0.0, b=1.0) in [7] torch.float32 on rank 1",
    "seed": ALIKE + "the seed is 0 on ranks 0, 1, 7 on rank 2",
    "model": ALIKE + "0.weight: Normal(mean=0.0, std=1.0) in [8, 5] torch.float32 on rank 0,",
    "rank 1 cannot read": "RunError: the plan failed on 1 rank\n  rank 1: ConfigError: 2 mistakes in recipe",
    "rank 0 has memory": "RunError: the plan failed on 1 rank\n  rank 0: RunError: the model is not on the meta device",
    "device": "RunError: the plan failed on 1 rank\n  rank 2: RunError: device 'cuda' is not there",
    "forgotten": "RunError: the initialization failed on 1 rank\n  rank 1: RunError: 1 tensor left unwritten\n  scale",
    "flipped": "ReportError: 1 site not the same on all replicas\n  1.weight: rank 2 holds other bits than ranks 0, 1",
    "NaN in one part": "RunError: 2 sites cannot be written; nothing was\n  rank",
    "unwritten": "RunError: the initialization failed on 1 rank\n  rank 0: RunError: 1 tensor left unwritten\n  0.",
}


@pytest.mark.parametrize("what", EXPECTED)
def test_what_is_wrong_is_named_on_every_rank_and_undone(ranks: list[dict[str, Any]], what: str) -> None:
    for rank, each in enumerate(ranks):
        text, undone = each[what]
        assert text.startswith(EXPECTED[what]), text
        assert undone or (what, rank) == ("rank 0 has memory", 0)


def test_what_each_rank_finds_in_its_part_of_a_file_is_told_with_the_rank(ranks: list[dict[str, Any]]) -> None:
    said = {each["NaN in one part"][0] for each in ranks}
    assert len(said) == 1
    assert "\n  rank 2: 0.weight: 0.weight holds NaN" in min(said)
    assert "\n  ranks 0, 1, 2: 1.weight: 1.weight holds NaN" in min(said)


def test_ranks_in_groups_of_their_own_need_not_agree(ranks: list[dict[str, Any]]) -> None:
    assert [each["in a group of its own"][0] for each in ranks] == ["nothing"] * WORLD


# -- a rank that dies -----------------------------------------------------------------------------


def lost(rank: int, how: str) -> tuple[str, bool]:
    """Rank 1 dies, or hangs for longer than the others wait, while the weights are written."""
    made = model(init_device_mesh("cpu", (WORLD,)))

    def progress(_: object) -> None:
        if rank == 1 and how == "dies":
            os._exit(9)
        if rank == 1:
            time.sleep(1.2 * PATIENCE)

    return tried(made, progress=progress)


PATIENCE = 5


@pytest.mark.slow("waits until collectives give a lost rank up")
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_the_others_end_when_a_rank_is_lost(how: str, tmp_path: Any) -> None:
    """Those who wait for ever would be killed, with an answer that says so."""
    first, second, third = on_ranks(WORLD, lost, tmp_path, how, timeout=PATIENCE)
    assert isinstance(second, ChildProcessError) == (how == "dies")
    for text, undone in (first, third):
        assert text.startswith("RunError: no word from the other ranks: "), text
        assert undone
