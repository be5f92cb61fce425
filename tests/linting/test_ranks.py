"""Lint across ranks: equal parts, replicas that differ, fans of a part, seeds; nobody waits for a rank that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from tests.processes import on_ranks, results
from torchinit import Kaiming, Layer, Leaf, Normal, Rule, initialize, lint, materialize
from torchinit.distributed import materialize as materializing
from torchinit.model.dtensor import local_part
from torchinit.plans import run

WORLD = 2


def sharded(mesh: DeviceMesh, width: int = 64) -> nn.Module:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, width), nn.LayerNorm(width), nn.Linear(width, 64))
    fully_shard(model, mesh=mesh)
    return model


def own_start(mesh: DeviceMesh, seed: int) -> nn.Module:
    """FSDP2 as torch starts it: memory, and then each layer's own code on the parts that are here."""
    model = sharded(mesh).to_empty(device="cpu")
    torch.manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            nn.init.uniform_(local_part(parameter), -0.1, 0.1)
    return model


def torchs_start(mesh: DeviceMesh) -> nn.Module:
    torch.manual_seed(0)
    model = sharded(mesh).to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()
    return model


def of_a_part(mesh: DeviceMesh, *, uniform: bool) -> nn.Module:
    """A weight cut along its inputs, drawn by the fan of each part from a seed of each rank."""
    layer = nn.Linear(1024, 96, bias=False)
    torch.manual_seed(dist.get_rank())
    part = torch.empty(96, 1024 // WORLD)
    (nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_)(part)
    layer.weight = nn.Parameter(DTensor.from_local(part, mesh, [Shard(1)], run_check=False))
    return layer


def told(model: nn.Module, **options: Any) -> Any:
    try:
        return [(one.code, one.severity, one.site, one.message) for one in lint(model, **options)]
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}"


def scenarios(rank: int) -> dict[str, Any]:
    mesh, everyone = init_device_mesh("cpu", (WORLD,)), dist.group.WORLD
    options: dict[str, Any] = {"group": everyone, "select": ["TI9"]}
    plain = nn.Linear(8, 8)
    torch.manual_seed(rank)
    nn.init.normal_(plain.weight)
    nn.init.zeros_(plain.bias)
    found = {
        "equal": told(own_start(mesh, 0), **options),
        "torch's own": told(torchs_start(mesh), **options),
        "unequal": told(own_start(mesh, rank), **options),
        "replicas": told(plain, **options),
        "uniform fan": told(of_a_part(mesh, uniform=True), **options),
        "normal fan": told(of_a_part(mesh, uniform=False), **options),
        "alone": told(plain, select=["TI9"]),
        "one is wrong": told(plain, group=everyone, select=["TI9"] if rank else ["TI9", "no-such-check"]),
        "other tensors": told(sharded(mesh, 64 if rank else 32).to_empty(device="cpu"), **options),
        "no memory": told(sharded(mesh) if rank else torchs_start(mesh), **options),
    }
    torch.manual_seed(0)
    clean = sharded(mesh)
    materialize(clean, Rule(Layer("Linear") & Leaf("weight"), Kaiming()), seed=0)
    found["clean"] = told(clean, **options)
    fans = of_a_part(mesh, uniform=True)
    initialize(fans, Rule(Leaf("weight"), Kaiming()), seed=0)
    found["fans of the whole"] = told(fans, **options)
    found["verify"] = spoiled(sharded(mesh))
    return found


def spoiled(model: nn.Module) -> str:
    """The error of `materialize` where the parts come out equal."""

    def same(*args: Any, **kwargs: Any) -> Any:
        report = run(*args, **kwargs)
        torch.manual_seed(0)
        for parts in args[1].values():
            for part in parts:
                part.local.normal_()
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(materializing, "run", same)
        try:
            materialize(model, Rule(Leaf("weight"), Normal()), seed=0)
        except Exception as error:  # noqa: BLE001  # its kind is what is looked at
            return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found = results(on_ranks(WORLD, scenarios, tmp_path_factory.mktemp("lint")))
    assert found[0].keys() == found[1].keys()
    return found


@pytest.mark.parametrize("case", ["equal", "torch's own"])
def test_equal_halves_are_named_on_every_rank(ranks: list[dict[str, Any]], case: str) -> None:
    for each in ranks:
        parts = {site: text for code, severity, site, text in each[case] if (code, severity) == ("TI901", "error")}
        assert {"0.weight", "2.weight", "0.bias", "2.bias"} <= parts.keys()
        assert parts["0.weight"] == "ranks 0, 1 hold the same drawn values as different parts of it"


def test_what_is_right_is_not_named(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        assert each["unequal"] == []
        assert each["clean"] == []
        assert each["fans of the whole"] == []
        assert each["alone"] == []


def test_replicas_that_differ_and_the_seeds_behind_them(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        error, note = each["replicas"]
        assert error == ("TI902", "error", "weight", "rank 1 holds other bits than rank 0")
        assert note == ("TI904", "note", "", "torch was seeded with 0 on rank 0, 1 on rank 1")


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_fans_of_a_part(ranks: list[dict[str, Any]], kind: str) -> None:
    for each in ranks:
        ((code, severity, site, text),) = each[f"{kind} fan"]
        assert (code, severity, site) == ("TI903", "warning", "weight")
        assert text.startswith(f"fits Kaiming, {kind}, with fan_in 512 and fan_out 96 of the part that is here")


def test_nobody_waits_for_a_rank_that_fails_or_holds_others(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["one is wrong"].startswith("ConfigError: a check goes by its code")
    assert ranks[1]["one is wrong"].startswith(
        "RunError: lint failed on 1 rank\n  rank 0: ConfigError: a check goes by"
    )
    for each in ranks:
        assert isinstance(each["other tensors"], list)
        assert "rank 1: RunError: 6 sites without elements to look at" in each["no memory"]


def test_materialize_verifies_that_parts_are_not_equal(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        assert each["verify"].startswith("ReportError: 3 tensors with equal drawn values in different parts")
        assert "0.weight: the same on ranks 0, 1" in each["verify"]
