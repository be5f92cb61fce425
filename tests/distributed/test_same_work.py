"""Same work: ranks that do other things than each other, or fail by themselves, are told of it and do not wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.processes import on_ranks, results
from torchinit import (
    Name,
    Normal,
    Rule,
    fingerprint,
    initialize,
    materialize,
    seeded,
    verify_replicas,
)
from torchinit.distributed import verify_stages
from torchinit.integrations.fsdp import param_init_fn
from torchinit.integrations.torchtitan import param_init
from torchinit.mmengine import WEIGHT_INITIALIZERS, Sequential
from torchinit.mmengine import initialize as by_init_cfg
from torchinit.mmengine import materialize as materialize_by_init_cfg
from torchinit.model import ranks as talk

WORLD = 2
ALL = Rule(Name("**"), Normal())
CONFIG = {"type": "Normal", "layer": "Linear", "std": 0.1}


def net(*, meta: bool = False) -> nn.Sequential:
    with torch.device("meta" if meta else "cpu"):
        return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))


def spread(mesh: DeviceMesh, *, meta: bool = False) -> nn.Module:
    model = net(meta=meta)
    fully_shard(model, mesh=mesh)
    return model


def copied() -> nn.Module:
    return DistributedDataParallel(net())


def drawn(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


def said(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # noqa: BLE001  # its kind is what is looked at
        return f"{type(error).__name__}: {error}"
    return "nothing"


# --- what differs ----------------------------------------------------------------------------------------------------


def seeded_around(model: nn.Module, seed: Any, **options: Any) -> None:
    with seeded(model, seed, **options):
        drawn(model)


def cut_within(mesh: DeviceMesh, seed: int) -> None:
    """The model is cut up when the block has begun."""
    model = net(meta=True)
    with seeded(model, seed):
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        drawn(model)


def by_fsdp1(seed: int, std: float = 1.0, **options: Any) -> None:
    model = net(meta=True)
    function = param_init_fn(model, Rule(Name("**"), Normal(std=std)), seed=seed)
    FullyShardedDataParallel(model, param_init_fn=function, device_id=torch.device("cpu"), **options)


def by_titan(mesh: DeviceMesh, seed: int) -> None:
    model = net()
    for layer in model:
        vars(layer)["_param_init"] = None  # as torchtitan's modules have it
    functions: Any = param_init(model, ALL, seed=seed)
    fully_shard(model, mesh=mesh)
    for layer in functions:
        for leaf, write in layer._param_init.items():
            write(layer._parameters[leaf])


def own_start(mesh: DeviceMesh, std: float) -> None:
    model = Sequential(*net(), init_cfg={**CONFIG, "std": std})
    fully_shard(model, mesh=mesh)
    model.init_weights(seed=0)


def ignoring(rank: int) -> None:
    """A parameter that DistributedDataParallel leaves to each rank."""
    model = net()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.bias"])
    initialize(DistributedDataParallel(model), Rule(Name("0.bias"), lambda bias: bias.fill_(1.0 + rank)), seed=0)


def differing(rank: int) -> dict[str, str]:
    line = init_device_mesh("cpu", (WORLD,))
    other = init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("a", "b"))
    plane = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("copies", "parts"))
    hybrid: dict[str, Any] = {"sharding_strategy": ShardingStrategy.HYBRID_SHARD, "device_mesh": plane}
    scaled = Rule(Name("**"), Normal(std=1.0 + rank))
    return {
        "seeded": said(lambda: seeded_around(spread(line), rank)),
        "seeded, alike": said(lambda: seeded_around(spread(line), 4)),
        "seeded, under": said(lambda: seeded_around(spread(line), 0, under="x" if rank else "")),
        "seeded, copies": said(lambda: seeded_around(copied(), rank)),
        "seeded, cut within": said(lambda: cut_within(line, rank)),
        "seeded, each its own": said(lambda: seeded_around(net(), rank)),
        "copies, seed": said(lambda: initialize(copied(), ALL, seed=rank)),
        "copies, recipe": said(lambda: initialize(copied(), scaled, seed=0)),
        "copies, alike": said(lambda: verify_replicas(initialized(copied()))),
        "copies, no seed": said(lambda: (torch.manual_seed(rank), initialize(copied(), ALL))),
        "copies, function": said(lambda: initialize(copied(), Rule(Name("0.bias"), lambda b: b.fill_(rank)), seed=0)),
        "copies, left to each": said(lambda: ignoring(rank)),
        "fsdp1, seed": said(lambda: by_fsdp1(rank)),
        "fsdp1, recipe": said(lambda: by_fsdp1(0, 1.0 + rank)),
        "fsdp1, copies": said(lambda: by_fsdp1(rank, **hybrid)),
        "fsdp1, alike": said(lambda: by_fsdp1(3)),
        "a function of FSDP2": said(lambda: param_init_fn(model := spread(line), ALL, seed=rank)(model)),
        "torchtitan": said(lambda: by_titan(line, rank)),
        "torchtitan, alike": said(lambda: by_titan(line, 3)),
        "init_cfg": said(lambda: by_init_cfg(spread(line), {**CONFIG, "std": 0.1 + rank}, seed=0)),
        "own init_cfg": said(lambda: own_start(line, 0.1 + rank)),
        "own init_cfg, alike": said(lambda: own_start(line, 0.1)),
        "shapes of meshes": said(lambda: initialize(spread(other if rank else line), ALL, seed=0)),
    }


def initialized(model: nn.Module) -> nn.Module:
    initialize(model, ALL, seed=0)
    return model


ALIKE = "RunError: the ranks do not start alike; nothing was written\n  "
SEED = f"{ALIKE}the seed is 0 on rank 0, 1 on rank 1"
STD = "0.weight: Normal(mean=0.0, std=1.0) in [8, 6] torch.float32 on rank 0, Normal(mean=0.0, std=2.0) in"
NOT_SAME = "not the same on all replicas\n  "
EXPECTED = {
    **dict.fromkeys(("seeded", "seeded, copies", "seeded, cut within", "copies, seed", "fsdp1, seed"), SEED),
    **dict.fromkeys(("fsdp1, copies", "a function of FSDP2", "torchtitan"), SEED),
    "seeded, under": f"{ALIKE}the seed is 0 on rank 0, 0 under 'x' on rank 1",
    "copies, recipe": ALIKE + STD,
    "copies, no seed": f"ReportError: 4 sites {NOT_SAME}0.weight: rank 1 holds other bits than rank 0",
    "copies, function": f"ReportError: 1 site {NOT_SAME}0.bias: rank 1 holds other bits than rank 0",
    "fsdp1, recipe": ALIKE + STD,
    "init_cfg": f"{ALIKE}the init_cfg: {CONFIG} on rank 0, {{'type'",
    "own init_cfg": f"{ALIKE}init_cfg of the model: {CONFIG} on rank 0, {{'type'",
    "shapes of meshes": "RunError: the ranks' models lie on other meshes; nothing was written\n"
    "  rank 0 has no DTensor on the mesh of ranks [0, 1] in shape [1, 2]\n"
    "  rank 1 has no DTensor on the mesh of ranks [0, 1]",
}


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return results(on_ranks(WORLD, differing, tmp_path_factory.mktemp("differences")))


@pytest.mark.parametrize("what", EXPECTED)
def test_what_differs_is_told_on_every_rank(differences: list[dict[str, str]], what: str) -> None:
    first, second = (each[what] for each in differences)
    assert first == second
    assert first.startswith(EXPECTED[what]), first


def test_what_is_alike_or_may_differ_passes(differences: list[dict[str, str]]) -> None:
    for each in differences:
        assert {text for what, text in each.items() if what not in EXPECTED} == {"nothing"}


# --- other work, and errors by oneself -------------------------------------------------------------------------------


def fails(rank: int, mesh: DeviceMesh, where: str) -> None:
    """Code of the model's own that fails on rank 1: before others read a weight, after it, or at the end."""

    class Own(Sequential):
        def init_weights(self) -> None:  # type: ignore[override]
            layers: Any = self
            if rank and where == "before":
                raise ValueError("no luck")
            super().init_weights()
            if where != "end":
                layers[0].weight.data[0, 0] = layers[1].weight.data[0, 0]
            if rank:
                raise ValueError("no luck")

    model: Any = Own(*net(), init_cfg=CONFIG)
    fully_shard(model, mesh=mesh)
    model.init_weights(seed=0)


def partly(rank: int, mesh: DeviceMesh, *, bad: bool) -> None:
    """An initializer that writes one tensor of a model, and fails on rank 1."""

    class Few:
        def __call__(self, module: Any) -> None:
            if rank and bad:
                raise ValueError("no luck")
            nn.init.ones_(module[0].bias)

    WEIGHT_INITIALIZERS.register_module(name="Few", module=Few, force=True)
    assert [*by_init_cfg(spread(mesh), {"type": "Few"}, seed=0).untouched] == ["0.weight", "1.weight", "1.bias"]


def others(rank: int) -> dict[str, str]:
    line = init_device_mesh("cpu", (WORLD,))
    few = dist.new_group([0])

    def either(first: Callable[[Any], object], second: Callable[[Any], object], *, meta: bool = False) -> str:
        model = spread(line, meta=meta)
        return said(lambda: (second if rank else first)(model))

    def write(model: Any, seed: Any = 0, **options: Any) -> object:
        return (materialize if any(each.is_meta for each in model.parameters()) else initialize)(
            model, ALL, seed=seed, **options
        )

    def check(model: Any) -> None:
        verify_replicas(model)

    return {
        "a comparison": either(write, check),
        "stages": either(write, verify_stages),
        "a fingerprint": either(write, fingerprint),
        "seeded around it": either(write, lambda model: seeded_around(model, 0)),
        "one has memory": said(lambda: write(spread(line, meta=not rank))),
        "no seed": either(write, lambda model: write(model, "0")),
        "no seed, meta": either(write, lambda model: write(model, "0"), meta=True),
        "no arguments": either(write, lambda model: write(model, arguments=3)),
        "no only, meta": either(write, lambda model: write(model, only=3), meta=True),
        "no model, meta": said(lambda: materialize(3 if rank else net(meta=True), ALL, seed=0)),  # type: ignore[arg-type]
        "no seed around it": said(lambda: seeded_around(spread(line), "0" if rank else 0)),
        "no seed for an init_cfg": said(lambda: by_init_cfg(spread(line), CONFIG, seed="0" if rank else 0)),  # type: ignore[arg-type]
        "no seed for an init_cfg, meta": said(
            lambda: materialize_by_init_cfg(net(meta=True), CONFIG, seed="0" if rank else 0)  # type: ignore[arg-type]
        ),
        "own code, before": said(lambda: fails(rank, line, "before")),
        "own code, after": said(lambda: fails(rank, line, "after")),
        "own code, end": said(lambda: fails(rank, line, "end")),
        "initializer": said(lambda: partly(rank, line, bad=True)),
        "initializer, alike": said(lambda: partly(rank, line, bad=False)),
        "a group without this rank": said(lambda: materialize(net(meta=True), ALL, seed=0, group=few)),
    }


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return results(on_ranks(WORLD, others, tmp_path_factory.mktemp("others")))


APART = "RunError: the ranks do not do the same\n  "


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("a comparison", "torchinit.initialize", "torchinit.verify_replicas"),
        ("stages", "torchinit.initialize", "torchinit.distributed.verify_stages"),
        ("a fingerprint", "torchinit.initialize", "torchinit.fingerprint"),
        ("seeded around it", "torchinit.initialize", "torchinit.seeded"),
        ("one has memory", "torchinit.materialize", "torchinit.initialize"),
    ],
)
def test_other_work_is_told_on_every_rank(mistakes: list[dict[str, str]], what: str, first: str, second: str) -> None:
    assert [each[what] for each in mistakes] == [f"{APART}{first}: rank 0\n  {second}: rank 1"] * WORLD


@pytest.mark.parametrize(
    ("what", "own"),
    [
        ("no seed", "TypeError: a seed is an int, got '0'"),
        ("no seed, meta", "TypeError: a seed is an int, got '0'"),
        ("no arguments", "TypeError: arguments must be a mapping of names to values, but got 3"),
        ("no only, meta", "TypeError: only=: a name is text, but got 3"),
        ("no model, meta", "TypeError: 3 is not a model"),
        ("no seed for an init_cfg, meta", "TypeError: a seed is an int, got '0'"),
    ],
)
def test_an_error_before_the_first_word_is_heard(mistakes: list[dict[str, str]], what: str, own: str) -> None:
    first, second = (each[what] for each in mistakes)
    assert second.startswith(own), second
    assert first.startswith(f"RunError: the plan failed on 1 rank\n  rank 1: {own}"), first


def test_a_seed_that_is_none(mistakes: list[dict[str, str]]) -> None:
    first, second = (each["no seed around it"] for each in mistakes)
    assert second.startswith("TypeError: a seed is an int, got '0'")
    assert first == f"{ALIKE}the seed is 0 on rank 0, '0' on rank 1"
    assert {each["no seed for an init_cfg"] for each in mistakes} == {f"{ALIKE}the seed is 0 on rank 0, '0' on rank 1"}


@pytest.mark.parametrize(
    ("what", "others"),
    [
        ("own code, before", "code of a sharded model"),
        ("own code, after", "init_weights"),
        ("own code, end", "init_weights"),
        ("initializer", "mmengine.initialize"),
    ],
)
def test_own_code_that_fails_on_one_rank(mistakes: list[dict[str, str]], what: str, others: str) -> None:
    first, second = (each[what] for each in mistakes)
    work = "mmengine.initialize" if what == "initializer" else "init_weights"
    assert second == "ValueError: no luck"
    assert first.startswith(f"{APART}{others}: rank 0\n  {work}, which failed with ValueError: no luck: rank 1"), first


def test_an_initializer_that_writes_a_part_of_a_sharded_model(mistakes: list[dict[str, str]]) -> None:
    assert {each["initializer, alike"] for each in mistakes} == {"nothing"}


def test_a_group_that_a_rank_is_not_in(mistakes: list[dict[str, str]]) -> None:
    assert [each["a group without this rank"] for each in mistakes] == [
        "nothing",
        "RunError: rank 1 is not in the group that it was given",
    ]


# --- ranks that do not come ------------------------------------------------------------------------------------------


def absent(rank: int, alone: bool) -> tuple[str, list[str]]:
    """What rank 1 says and logs while rank 0 initializes a model of its own, or does not come."""
    line, lines = init_device_mesh("cpu", (WORLD,)), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torchinit").addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(talk, "_PATIENCE", timedelta(seconds=2))
        if rank:
            return said(lambda: initialize(spread(line), ALL, seed=0)), lines
        spread(line)
        text = said(lambda: initialize(net(), ALL, seed=0)) if alone else "nothing"
        time.sleep(8)
    return text, lines


@pytest.mark.slow("waits for a rank that does not come")
@pytest.mark.parametrize("alone", [True, False])
def test_who_is_waited_for_is_logged_and_named_in_the_end(alone: bool, tmp_path: Any) -> None:
    (first, told), (second, logged) = results(on_ranks(WORLD, absent, tmp_path, alone, timeout=5))
    seen = "torchinit.initialize, alone, as its model holds no part of a DTensor" if alone else "nothing of torchinit's"
    line = f"torchinit.initialize waits for rank 0, last seen at: {seen}"
    assert first == "nothing"
    assert logged == [line]
    assert told == [f"other ranks wait for this one: {line}"] * alone
    assert second.startswith("RunError: no word from the other ranks: "), second
    assert second.endswith(f"\n  {line}")
