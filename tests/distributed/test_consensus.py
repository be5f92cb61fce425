"""Consensus: whatever would make the ranks' models differ is said on all of them, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.processes import on_ranks, results
from tests.ranks import fake_rank
from torchinit import Name, Normal, Pretrained, Rule, RunError, Uniform, initialize, materialize, seeded
from torchinit.distributed import verify_stages
from torchinit.mmengine import Sequential
from torchinit.mmengine import initialize as by_init_cfg
from torchinit.model.dtensor import local_part

ALL = Rule(Name("**"), Normal())
WORLD = 2


def net(mesh: DeviceMesh, *, whole: bool = True, width: int = 8) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, width), nn.Linear(width, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fully_shard(model if whole else model[0], mesh=mesh)
    return model


def placed(mesh: DeviceMesh, *placements: Any) -> nn.Module:
    model = nn.Linear(8, 8, bias=False)
    model.weight = nn.Parameter(distribute_tensor(torch.zeros(8, 8), mesh, placements, src_data_rank=None))
    return model


def tried(model: nn.Module, recipe: Any = ALL, **options: Any) -> tuple[str, bool]:
    """What the error was, and whether nothing was written."""
    try:
        initialize(model, recipe, **{"seed": 0, **options})
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}", not any(local_part(each).any() for each in model.parameters())
    return "nothing", False


def tried_within(model: nn.Module, seed: int) -> tuple[str, bool]:
    """The same without a seed, within ``seeded``."""
    try:
        with seeded(model, seed):
            return tried(model, seed=None)
    except RunError as error:
        return f"RunError: {error}", not any(local_part(each).any() for each in model.parameters())


def on_meta(mesh: DeviceMesh, recipe: Any = ALL, **options: Any) -> tuple[str, bool]:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    fully_shard(model, mesh=mesh)
    try:
        materialize(model, recipe, **{"seed": 0, **options})
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}", all(each.is_meta for each in model.parameters())
    return "nothing", False


def by_mmengine(mesh: DeviceMesh, seed: int, *, of_model: bool) -> tuple[str, bool]:
    config = {"type": "Normal", "layer": "Linear"}
    first = nn.Linear(6, 8)
    nn.init.zeros_(first.weight)
    model = Sequential(first, nn.Linear(8, 4), init_cfg=config)
    fully_shard(model, mesh=mesh)
    before = first.weight
    try:
        model.init_weights(seed=seed) if of_model else by_init_cfg(model, config, seed=seed)
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}", not local_part(before).any()
    return "nothing", False


def fails_on(rank: int) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        if torch.distributed.get_rank() == rank:
            raise ValueError("no luck")
        return nn.init.normal_(tensor)

    return fill


def by_rank(tensor: Tensor) -> Tensor:
    return tensor.fill_(1.0 + torch.distributed.get_rank())


def large(mesh: DeviceMesh, rank: int, folder: Path) -> tuple[str, bool]:
    """Two files of one size under one name, as on two machines: the last rows differ."""
    values = torch.ones(3000, 8)
    values[-50:] += rank
    model = nn.Linear(8, 3000, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    fully_shard(model, mesh=mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / f"machine{rank}")
        torch.save({"weight": values}, "large.pth")
        return tried(model, Rule(Name("**"), Pretrained("large.pth")))


def scenarios(rank: int, folder: str) -> dict[str, tuple[str, bool]]:
    (Path(folder) / f"machine{rank}").mkdir()
    small = Pretrained({"weight": torch.ones(8, 8) + rank})
    line = init_device_mesh("cpu", (WORLD,))
    other = init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("a", "b"))
    return {
        "alike": tried(net(line)),
        "alike, by a seed around it": tried_within(net(line), 5),
        "seed": tried(net(line), seed=rank),
        "a seed around it": tried_within(net(line), rank),
    "no seed on one": tried(net(line), seed=None if rank else 0),
        "recipe": tried(net(line), Rule(Name("**"), Uniform()) if rank else ALL),
        "a rule more": tried(net(line), ALL if rank else [ALL, Rule(Name("1.bias"), Normal(std=2.0))]),
        "recipe that one cannot read": tried(net(line), ALL if rank else {"rules": [{"type": "Nrmal"}]}),
        "plan that fails on one": tried(net(line), [ALL, Rule(Name("2.**"), Normal())] if rank else ALL, strict=True),
        "shape": tried(net(line, width=8 + rank)),
        "dtype": tried(net(line).to(torch.float64 if rank else torch.float32)),
        "layout": tried(placed(line, Shard(rank))),
        "replicated on one": tried(placed(line, Replicate() if rank else Shard(0))),
        "fewer DTensors": tried(net(line, whole=rank == 0)),
        "mesh": tried(placed(other, Replicate(), Shard(0)) if rank else placed(line, Shard(0))),
        "options": tried(net(line), verify=rank == 0, fingerprint=rank == 1),
        "trainable": tried(net(line).requires_grad_(rank == 0), trainable=True),
        "values of a small file": tried(placed(line, Shard(0)), Rule(Name("**"), small)),
        "values of a large file": large(line, rank, Path(folder)),
        "function that fails": tried(placed(line, Shard(0)), Rule(Name("**"), fails_on(1))),
        "replicas": tried(placed(line, Replicate()), Rule(Name("**"), by_rank)),
        "replicas, not verified": tried(placed(line, Replicate()), Rule(Name("**"), by_rank), verify=False),
        "own plain tensors": tried(nn.ModuleDict({"shared": net(line), f"expert{rank}": nn.Linear(2, 2)})),
        "MMEngine": by_mmengine(line, 3, of_model=True),
        "MMEngine's init_weights": by_mmengine(line, rank, of_model=True),
        "MMEngine's init_cfg": by_mmengine(line, rank, of_model=False),
        "meta, options": on_meta(line, verify=rank == 0),
        "meta, complete": on_meta(line, complete=rank == 0),
        "meta, values": on_meta(line, [ALL, Rule(Name("1.weight"), Pretrained({"1.weight": torch.ones(4, 8) + rank}))]),
    }  # fmt: skip


ALIKE = "RunError: the ranks do not start alike; nothing was written"
EXPECTED = {
    "seed": f"{ALIKE}\n  the seed is 0 on rank 0, 1 on rank 1",
    "MMEngine's init_weights": f"{ALIKE}\n  the seed is 0 on rank 0, 1 on rank 1",
    "MMEngine's init_cfg": f"{ALIKE}\n  the seed is 0 on rank 0, 1 on rank 1",
    "a seed around it": f"{ALIKE}\n  the seed is 0 on rank 0, 1 on rank 1",
    "no seed on one": f"{ALIKE}\n  the seed is 0 on rank 0, none on rank 1",
    "recipe": f"{ALIKE}\n  0.weight: Normal(mean=0.0, std=1.0) in [8, 6] torch.float32 on rank 0, Uniform(a=0.0, b=1.0) in",  # noqa: E501
    "a rule more": f"{ALIKE}\n  1.bias: Normal(mean=0.0, std=2.0) in [4] torch.float32 on rank 0, Normal(mean=0.0, std=1.0) in",  # noqa: E501
    "shape": f"{ALIKE}\n  0.weight: Normal(mean=0.0, std=1.0) in [8, 6] torch.float32 on rank 0, Normal(mean=0.0, std=1.0) in [9",  # noqa: E501
    "dtype": f"{ALIKE}\n  0.weight: Normal(mean=0.0, std=1.0) in [8, 6] torch.float32 on rank 0, Normal(mean=0.0, std=1.0) in [8",  # noqa: E501
    "layout": f"{ALIKE}\n  weight is held: as float32 [8, 8], (Shard(dim=0),) on a mesh of shape (2,) on rank 0, as float32",  # noqa: E501
    "replicated on one": f"{ALIKE}\n  weight is held: as float32 [8, 8], (Shard(dim=0),) on a mesh of shape (2,) on rank 0,",  # noqa: E501
    "fewer DTensors": f"{ALIKE}\n  1.weight is held: as float32 [4, 8], (Shard(dim=0),) on a mesh of shape (2,) on rank 0, as",  # noqa: E501
    "options": f"{ALIKE}\n  fingerprint is False on rank 0, True on rank 1\n  verify is True on rank 0, False on rank 1",  # noqa: E501
    "values of a small file": f"{ALIKE}\n  weight: Loaded('dict in memory', ('weight',)) (values ",
    "values of a large file": f"{ALIKE}\n  weight: Loaded('large.pth', ('weight',)) (values ",
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, bool]]]:
    folder = tmp_path_factory.mktemp("files")
    return results(on_ranks(WORLD, scenarios, tmp_path_factory.mktemp("consensus"), str(folder)))


@pytest.mark.parametrize("what", EXPECTED)
def test_ranks_that_would_differ_hear_of_it_and_write_nothing(ranks: list[dict[str, Any]], what: str) -> None:
    texts = {each[what][0] for each in ranks}
    assert len(texts) == 1
    assert min(texts).startswith(EXPECTED[what]), texts
    assert all(each[what][1] for each in ranks)


@pytest.mark.parametrize(
    "what", ["alike", "alike, by a seed around it", "replicas, not verified", "own plain tensors", "MMEngine"]
)
def test_ranks_that_agree(ranks: list[dict[str, Any]], what: str) -> None:
    assert [each[what][0] for each in ranks] == ["nothing"] * WORLD


@pytest.mark.parametrize(
    ("what", "failed", "own"),
    [
        ("recipe that one cannot read", 0, "ConfigError: 2 mistakes in recipe"),
        ("plan that fails on one", 1, "PlanError: 1 problem in the plan"),
        ("trainable", 1, "PlanError: 1 problem in the plan; nothing was written\n  trainable=True leaves frozen"),
    ],
)
def test_a_plan_that_fails_on_one_rank_is_an_error_on_all(ranks: Any, what: str, failed: int, own: str) -> None:
    assert ranks[failed][what][0].startswith(own)
    assert ranks[1 - failed][what][0].startswith(f"RunError: the plan failed on 1 rank\n  rank {failed}: {own}")
    assert all(each[what][1] for each in ranks)


def test_a_function_that_fails_on_one_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = (each["function that fails"][0] for each in ranks)
    assert second.startswith("RunError: weight: code: ")
    assert second.endswith("raised ValueError: no luck; nothing of it was written")
    assert first.startswith("RunError: the initialization failed on 1 rank\n  rank 1: RunError: weight: code: ")


def test_meshes_that_one_rank_lacks(ranks: list[dict[str, Any]]) -> None:
    """Of one size, over the same ranks: each waits for nobody in the other's."""
    for text in (each["mesh"][0] for each in ranks):
        assert text.startswith(("RunError: the ranks' models lie on other meshes", ALIKE)), text


def test_replicas_are_compared_afterwards(ranks: list[dict[str, Any]]) -> None:
    expected = "ReportError: 1 site not the same on all replicas\n  weight: rank 1 holds other bits than rank 0"
    assert [each["replicas"][0] for each in ranks] == [expected] * WORLD


@pytest.mark.parametrize(
    ("what", "text"),
    [("options", "verify is True"), ("complete", "complete is True"), ("values", "1.weight: Loaded('dict in memory'")],
)
def test_a_model_on_meta(ranks: list[dict[str, Any]], what: str, text: str) -> None:
    for said, undone in (each[f"meta, {what}"] for each in ranks):
        assert said.startswith(f"{ALIKE}. Give each its own group= if that is meant\n  {text}"), said
        assert undone


def test_a_dry_run_on_one_process_waits_for_nobody() -> None:
    """The fake process group has no other ranks."""
    with fake_rank(0, 4):
        model = net(init_device_mesh("cpu", (4,), mesh_dim_names=("dry",)))
        assert len(initialize(model, ALL, seed=0)) == 4


# --- stages and parts that should differ -----------------------------------------------------------------------


def forwarded(mesh: DeviceMesh) -> nn.Module:
    """FSDP2 keeps the outermost layers whole after a forward pass."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    initialize(model, ALL, seed=0)
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(torch.ones(1, 8))
    return model


def on_a_mesh_of_its_own() -> nn.Module:
    """Two stages, each sharded over its own ranks."""
    model = nn.Sequential(nn.Linear(8, 8))
    initialize(model, ALL, seed=0)
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("stage", "data"))["data"])
    return model


def staged(rank: int) -> dict[str, str]:
    mesh = init_device_mesh("cpu", (WORLD,))

    def said(model: nn.Module, **options: Any) -> str:
        try:
            verify_stages(model, **options)
        except Exception as error:  # noqa: BLE001  # its kind is what is looked at
            return f"{type(error).__name__}: {error}"
        return "nothing"

    def stage(name: str, seed: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8))
        named = nn.ModuleDict({name: model}) if name else model
        initialize(named, ALL, seed=seed)
        return named

    def under(name: str) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8))
        initialize(model, ALL, seed=0, under=name)
        return model

    def local(seed: int) -> nn.Module:
        part = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        model = nn.Linear(8, 8, bias=False)
        model.weight = nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False))
        return model

    own = DTensor.from_local(torch.zeros(4, 8), mesh, [Shard(0)], run_check=False)
    zero = nn.ParameterDict({"w": nn.Parameter(own), "b": nn.Parameter(torch.zeros(64))})
    alone = [torch.distributed.new_group([each]) for each in range(WORLD)]
    torch.manual_seed(3)
    return {
        "one name": said(stage("", 0)),
        "names from the root of the whole": said(under(f"layers.{rank}")),
        "one on meta": said(stage("", 0).to("meta" if rank else "cpu")),
        "names of the whole": said(stage(f"layers{rank}", 0)),
        "seeds": said(stage("", rank)),
        "one generator": said(nn.ModuleDict({f"layers{rank}": nn.Linear(8, 8)})),
        "parts": said(local(0)),
        "parts of their own": said(local(rank)),
        "sharded": said(net(mesh)),
        "replicated": said(placed(mesh, Replicate())),
        "zeros": said(zero),
        "gathered for a forward pass": said(forwarded(mesh)),
        "one name, each on a mesh": said(on_a_mesh_of_its_own()),
        "groups": said(stage("", 0), group=alone[rank]),
    }


SAME = "put each stage under its name in the whole model, or give it a seed of its own"


def test_stages_and_parts_that_hold_the_same_bits(tmp_path: Path) -> None:
    first, second = results(on_ranks(WORLD, staged, tmp_path))
    failed = "the comparison of stages failed on 1 rank\n  rank 1: RunError: the model is on the meta device: "
    assert failed in first.pop("one on meta")
    second.pop("one on meta")
    assert first == second
    told = {name: text for name, text in first.items() if text != "nothing"}
    assert set(told) == {"one name", "one generator", "parts", "one name, each on a mesh"}
    head = f"with the drawn values of another rank's; {SAME}\n  "
    assert told["one name"] == f"ReportError: 1 tensor {head}0.weight: the same on ranks 0, 1"
    assert told["one generator"].endswith("layers0.weight and layers1.weight: the same on ranks 0, 1")
    assert told["parts"] == f"ReportError: 1 tensor {head}weight: the same on ranks 0, 1"


# --- several meshes --------------------------------------------------------------------------------------------


def layers_on(*meshes: DeviceMesh) -> nn.Module:
    return nn.ModuleList(placed(mesh, Shard(0)) for mesh in meshes)


def several(rank: int) -> dict[str, str]:
    plane = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    few, all_of_them = DeviceMesh("cpu", [0, 1]), init_device_mesh("cpu", (4,))
    rows, columns = plane["rows"], plane["columns"]
    return {
        "corners": tried(layers_on(rows, columns))[0],
        "corners, one seed": tried(layers_on(rows, columns), seed=int(rank == 3))[0],
        "another order": tried(layers_on(*((rows, columns) if rank else (columns, rows))))[0],
        "some ranks are on one": tried(layers_on(all_of_them, few))[0],
        "some ranks are on one, seed outside": tried(layers_on(few, all_of_them), seed=int(rank == 2))[0],
        "one lacks a mesh": tried(layers_on(all_of_them, all_of_them if rank == 1 else few))[0],
    }


def test_nobody_waits_for_ranks_on_other_meshes(tmp_path: Path) -> None:
    """Those on the corners of a plane are two steps apart; some ranks have fewer groups than others."""
    first, *others = results(on_ranks(4, several, tmp_path, timeout=30))
    assert others == [first] * 3
    assert first.pop("corners") == first.pop("some ranks are on one") == "nothing"
    assert first.pop("corners, one seed") == f"{ALIKE}\n  the seed is 0 on ranks 0, 1, 2, 1 on rank 3"
    assert first.pop("some ranks are on one, seed outside") == f"{ALIKE}\n  the seed is 0 on ranks 0, 1, 3, 1 on rank 2"
    assert first.pop("another order") == "nothing"
    assert first.popitem()[1] == (
        "RunError: the ranks' models lie on other meshes; nothing was written\n"
        "  rank 1 has no DTensor on the mesh of ranks [0, 1]"
    )


def outside(rank: int) -> tuple[list[str], str, list[str], bool]:
    """Three ranks call `initialize` for a model on the mesh of the first two."""
    lines = list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torchinit").addHandler(handler)
    far = placed(DeviceMesh("cpu", [0, 1]), Shard(0))
    model = nn.ModuleDict({"far": far, "near": nn.Linear(2, 2)})
    report = initialize(model, ALL, seed=0)
    notes = [note for note in report["far.weight"].notes if "mesh" in note]
    return notes, report.summary(), lines, any(bool(local_part(each).any()) for each in far.parameters())


def test_a_rank_outside_of_the_mesh_is_told_that_it_wrote_nothing(tmp_path: Path) -> None:
    *inside, (notes, summary, lines, is_written) = results(on_ranks(3, outside, tmp_path, timeout=30))
    why = "on a device mesh that this rank does not belong to; nothing was written here"
    assert not is_written
    assert [note.startswith(why) for note in notes] == [True]
    assert "\n1 tensor of other ranks: far.weight" in summary
    assert [line.startswith(f"far.weight: {why}") for line in lines] == [True]
    for notes, summary, lines, is_written in inside:
        assert is_written
        assert (notes, "of other ranks" in summary, lines) == ([], False, [])
