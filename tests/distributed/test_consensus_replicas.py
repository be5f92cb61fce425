"""Replicas on four gloo ranks: equal ones pass, one changed bit is found and named on every rank."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.processes import on_ranks, results
from torchinit import ReportError, RunError, TorchinitError, fingerprint, initialize, verify_replicas
from torchinit.distributed import consensus
from torchinit.model.ranks import Spread

WORLD = 4
RULES = {"rules": [{"type": "Normal", "name": "**"}]}


def model() -> nn.Sequential:
    """Sizes that four ranks do not divide; the same values on every rank."""
    made = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 5))
    initialize(made, RULES, seed=0)
    return made


def flip(tensor: torch.Tensor, rank: int) -> None:
    """Changes the lowest bit of the last element that this rank has."""
    if dist.get_rank() == rank:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local.detach().view(-1).view(torch.int32)[-1] ^= 1


def caught(work: Callable[[], object]) -> object:
    try:
        return work()
    except TorchinitError as error:
        return error


def verified(made: nn.Module, flips: dict[str, int]) -> object:
    for name, rank in flips.items():
        flip({**dict(made.named_parameters()), **dict(made.named_buffers())}[name], rank)
    return caught(lambda: verify_replicas(made))


def hsdp() -> nn.Module:
    """Two replicas, ranks 0 and 1, ranks 2 and 3, of two halves each; the buffers are plain."""
    made = model()
    fully_shard(made, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    return made


def parallel() -> nn.Module:
    """Rows of one layer and columns of another, on two ranks each; the norm is plain."""
    made, mesh = model(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(made, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return made


def sharded(mesh: DeviceMesh) -> nn.Module:
    made = model()
    fully_shard(made, mesh=mesh)
    return made


def partial() -> nn.Module:
    made = model()
    if dist.get_rank() == 2:
        mesh = init_device_mesh("cpu", (WORLD,))
        made.register_buffer("sums", DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False))
    else:
        init_device_mesh("cpu", (WORLD,))
    return made


def pipeline() -> nn.Module:
    """Stages on two ranks each, with one layer in common."""
    stage = nn.Linear(2, 2) if dist.get_rank() < 2 else nn.Linear(3, 3)
    made = nn.ModuleDict({"shared": nn.Linear(2, 2), f"stage{dist.get_rank() // 2}": stage})
    initialize(made, RULES, seed=0)
    return made


def scenarios(rank: int) -> dict[str, object]:
    """All in one job, since starting one is what takes the time."""
    mesh = init_device_mesh("cpu", (WORLD,))
    found = {
        "plain": verified(model(), {}),
        "plain, flipped": verified(model(), {"0.weight": 2, "1.running_var": 2, "2.bias": 0}),
        "ddp": verified(DistributedDataParallel(model()), {}),
        "ddp, flipped": verified(DistributedDataParallel(model()), {"module.1.num_batches_tracked": 1}),
        "sharded": verified(sharded(mesh), {"0.weight": 1}),  # a part that only rank 1 has
        "sharded, buffer flipped": verified(sharded(mesh), {"1.running_mean": 3}),
        "hsdp": verified(hsdp(), {}),
        "hsdp, flipped": verified(hsdp(), {"0.weight": 2, "2.weight": 1}),
        "parallel": verified(parallel(), {}),
        "parallel, flipped": verified(parallel(), {"2.weight": 3, "1.weight": 0}),
        "one rank has a sum": verified(partial(), {}),
        "pipeline": verified(pipeline(), {}),
        "pipeline, flipped": verified(pipeline(), {"shared.bias": 3}),
    }
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    other = model()
    flip(other.get_parameter("0.weight"), 0)
    found["in groups"] = caught(lambda: verify_replicas(other, group=pairs[rank // 2]))
    whole = distribute_tensor(torch.arange(30.0).reshape(5, 6), mesh, [Shard(1)])
    found["fingerprints"] = [
        fingerprint(each).persistent.total for each in (model(), sharded(mesh), hsdp(), parallel())
    ]
    found["state dict"] = fingerprint({"whole": whole}).total
    lost = nn.Linear(2, 2, device="meta") if rank == 1 else nn.Linear(2, 2)
    fully_shard(lost, mesh=mesh)
    found["fingerprint of what is not there"] = caught(lambda: fingerprint(lost))
    odd = model() if rank != 2 else nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 5), nn.Linear(5, 5))
    fully_shard(odd, mesh=mesh)
    found["fingerprint of others"] = caught(lambda: fingerprint(odd))
    names = ["a", "b"] if rank % 2 else ["b", "a"]
    mixed = nn.Sequential(OrderedDict({name: nn.Linear(3, 3) for name in names}))
    initialize(mixed, RULES, seed=0)
    before = fingerprint(mixed).total
    fully_shard(mixed, mesh=mesh)
    found["fingerprint in another order"] = fingerprint(mixed).total == before
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results(on_ranks(WORLD, scenarios, tmp_path_factory.mktemp("replicas")))


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize("what", ["plain", "ddp", "sharded", "hsdp", "parallel", "pipeline"])
def test_equal_replicas_pass(ranks: list[dict[str, Any]], what: str) -> None:
    assert [each[what] for each in ranks] == [None] * WORLD


FLIPPED = {
    "plain, flipped": [
        "0.weight: rank 2 holds other bits than ranks 0, 1, 3",
        "1.running_var: rank 2 holds other bits than ranks 0, 1, 3",
        "2.bias: rank 0 holds other bits than ranks 1, 2, 3",
    ],
    "ddp, flipped": ["1.num_batches_tracked: rank 1 holds other bits than ranks 0, 2, 3"],
    "sharded, buffer flipped": ["1.running_mean: rank 3 holds other bits than ranks 0, 1, 2"],
    "hsdp, flipped": [
        "0.weight: rank 2 holds other bits than rank 0",
        "2.weight: rank 3 holds other bits than rank 1",
    ],
    "parallel, flipped": [
        "1.weight: rank 0 holds other bits than ranks 1, 2, 3",
        "2.weight: rank 3 holds other bits than rank 1",
    ],
    "pipeline, flipped": ["shared.bias: rank 3 holds other bits than ranks 0, 1, 2"],
}


@pytest.mark.parametrize("what", FLIPPED)
def test_one_flipped_bit_is_named_on_every_rank(ranks: list[dict[str, Any]], what: str) -> None:
    for each in ranks:
        error = each[what]
        assert isinstance(error, ReportError)
        assert list(error.problems) == FLIPPED[what]


def test_only_the_ranks_of_the_group_are_compared(ranks: list[dict[str, Any]]) -> None:
    texts = [str(each["in groups"]) for each in ranks]
    assert texts[0] == texts[1]
    assert texts[0].endswith("0.weight: rank 1 holds other bits than rank 0")
    assert texts[2:] == ["None", "None"]


def test_an_error_on_one_rank_is_an_error_on_all(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        error = each["one rank has a sum"]
        assert isinstance(error, RunError)
        assert error.headline == "the comparison of replicas failed on 1 rank"
        assert "rank 2: RunError: 1 site without elements to look at\n  sums: is placed as P(sum)" in str(error)


def test_a_fingerprint_shows_no_sharding(ranks: list[dict[str, Any]]) -> None:
    here = [fingerprint(model()).persistent.total] * 4
    assert [each["fingerprints"] for each in ranks] == [here] * WORLD
    whole = fingerprint({"whole": torch.arange(30.0).reshape(5, 6)}).total
    assert [each["state dict"] for each in ranks] == [whole] * WORLD


def test_nobody_waits_for_a_rank_without_elements(ranks: list[dict[str, Any]]) -> None:
    errors = [each["fingerprint of what is not there"] for each in ranks]
    assert all(isinstance(error, RunError) for error in errors)
    assert errors[1].problems == ("weight: is on the meta device", "bias: is on the meta device")
    assert str(errors[0]) == "no fingerprint: rank 1 has sites without elements to look at"


def test_nobody_waits_for_a_rank_with_other_tensors(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        error = each["fingerprint of others"]
        assert isinstance(error, RunError)
        assert error.headline == "no fingerprint: the ranks hold other tensors than each other"
        assert error.problems[0] == "rank 2: 3.bias: torch.float32 (5,) in (Shard(dim=0),) on (4,)"


def test_the_order_of_modules_is_not_a_difference(ranks: list[dict[str, Any]]) -> None:
    assert [each["fingerprint in another order"] for each in ranks] == [True] * WORLD


def test_many_differences_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list ends somewhere; ranks that agree are not all listed, either."""
    digests = {f"layer{i}.weight": "00" for i in range(12)}
    details = {rank: {"": dict(digests)} for rank in range(20)}
    details[7][""] = dict.fromkeys(digests, "11")
    monkeypatch.setattr(consensus, "differing_replicas", lambda *_: list(consensus._differences(details)))
    with pytest.raises(ReportError, match="12 sites not the same on all replicas") as caught:
        consensus.compare_replicas(model(), Spread(lambda value, _: {0: value}))
    first, *_, last = caught.value.problems
    assert first.startswith("layer0.weight: rank 7 holds other bits than ranks 0, 1, 2, 3, 4, 5, 6, 8")
    assert first.endswith("16 and 3 more")
    assert last == "and 2 more sites"


def test_without_a_process_group() -> None:
    with pytest.raises(RunError, match=r"there is no process group: call torch\.distributed\.init_process_group first"):
        verify_replicas(model())
