"""A model's own start through the meta device: the values of init_weights, on one rank and on many."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.layouts import cut, whole
from tests.distributed.own import CODES, Coded, Model, save_teacher
from tests.processes import on_ranks, results
from torchinit import WEIGHT_INITIALIZERS, BaseModule, fingerprint, materialize, seeded
from torchinit.distributed.wholes import WholeTensor, WholeTensors
from torchinit.mmengine import Sequential
from torchinit.model.dtensor import shards_of


def meta(checkpoint: str) -> Model:
    with torch.device("meta"):
        return Model(checkpoint)


def eager(checkpoint: str) -> Model:
    """The oracle: memory by the constructors, what each layer resets, and init_weights."""
    model = Model(checkpoint)
    with seeded(model, 0):
        module: Any
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.LSTM, nn.Embedding, nn.BatchNorm2d)):
                module.reset_parameters()
    model.init_weights(seed=0)
    return model


def differing(model: nn.Module, one: nn.Module) -> list[str]:
    """The names of the tensors that differ from those of one process."""
    mine: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    theirs: dict[str, Tensor] = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    return [name for name, expected in theirs.items() if not torch.equal(whole(mine[name]), expected)]


def test_the_values_of_init_weights(tmp_path: Path) -> None:
    path = str(tmp_path / "teacher.pth")
    save_teacher(path)
    one, model = eager(path), meta(path)
    before = torch.get_rng_state()
    report = materialize(model, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert differing(model, one) == []
    assert fingerprint(model).total == fingerprint(one).total
    assert report.untouched == () and report.buffers == ()
    assert {name for name, _ in (*one.named_parameters(), *one.named_buffers())} == {record.name for record in report}


def shard_all(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2 for every layer by itself, so that each has the class that fully_shard makes of its own."""
    for module in list(model.modules()):
        if next(module.parameters(recurse=False), None) is not None:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def shard_as_one(model: nn.Module, mesh: DeviceMesh) -> None:
    fully_shard(model, mesh=mesh)


def shard_columns(model: nn.Module, mesh: DeviceMesh) -> None:
    cut(model, mesh, *[1] * mesh.ndim)


def shard_twice(model: nn.Module, mesh: DeviceMesh) -> None:
    """Each axis cut, the first by FSDP2 where tensor parallelism has left it: uneven pieces of pieces."""
    cut(model, mesh["tensor"], 0)
    fully_shard(model, mesh=mesh["data"])


def on_a_line(rank: int, path: str) -> dict[str, list[str]]:
    return on_each_layout(init_device_mesh("cpu", (2,)), path, (shard_all, shard_as_one, shard_columns))


def on_a_plane(rank: int, path: str) -> dict[str, list[str]]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return on_each_layout(mesh, path, (shard_as_one, shard_columns, shard_twice))


def on_each_layout(mesh: DeviceMesh, path: str, layouts: tuple[Callable[..., None], ...]) -> dict[str, list[str]]:
    """In what the models of each layout differ from that of one process."""
    one = eager(path)
    found = {}
    for lay_out in layouts:
        model = meta(path)
        lay_out(model, mesh)
        before = {name: (type(module), id(module)) for name, module in model.named_modules()}
        report = materialize(model, seed=0)
        # What NumPy writes, no report knows of.
        wrong = [text for text in report.problems if not text.startswith("coded.0.layer.weight")]
        wrong += differing(model, one)
        if before != {name: (type(module), id(module)) for name, module in model.named_modules()}:
            wrong.append("the modules")
        if fingerprint(model).total != fingerprint(one).total:
            wrong.append("the fingerprint")
        found[lay_out.__name__] = wrong
    return found


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize(("world", "ranks"), [(2, on_a_line), (4, on_a_plane)])
def test_sharded_it_is_that_of_one_process(world: int, ranks: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "teacher.pth")
    save_teacher(path)
    folder = tmp_path / "ranks"
    folder.mkdir()
    for found in results(on_ranks(world, ranks, folder, path)):
        assert {layout: wrong for layout, wrong in found.items() if wrong} == {}
        assert len(found) == 3


# --- what happens on many ranks ----------------------------------------------------------------------------


def counted(work: Callable[[], object]) -> tuple[int, int]:
    """How often some work gathered a tensor, and how many bytes it had whole at most at a time."""
    gathers, most = 0, 0
    fill, bring = WholeTensor.fill, WholeTensors._bring

    def filled(self: WholeTensor, exchange: Any) -> None:
        nonlocal gathers
        gathers += not all(shard.is_whole for shard in shards_of(self.name, self.spread))
        fill(self, exchange)

    def brought(self: WholeTensors, *args: Any, **kwargs: Any) -> None:
        nonlocal most
        bring(self, *args, **kwargs)
        most = max(most, sum(whole.base.untyped_storage().nbytes() for whole in self._touched))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeTensor, "fill", filled)
        patch.setattr(WholeTensors, "_bring", brought)
        work()
    return gathers, most


def costs(rank: int) -> dict[str, tuple[int, int]]:
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for code in CODES:
        with torch.device("meta"):
            model = Coded(code)
        fully_shard(model, mesh=mesh)
        found[code] = counted(partial(materialize, model, seed=0))
    return found


BY_PARTS = ("constant_init", "normal_init", "uniform_init", "xavier_init", "kaiming_init", "caffe2_xavier_init")


def test_code_that_fills_whole_tensors_needs_no_more_memory_than_their_parts(tmp_path: Path) -> None:
    for found in results(on_ranks(2, costs, tmp_path)):
        for code in (*BY_PARTS, "nn.init.kaiming_uniform_", "reset_parameters", "nothing"):
            assert found[code] == (0, 0), code
        assert found["nn.init.trunc_normal_"] == (0, 49 * 4)  # what it has drawn it looks at
        assert found["index"] == (2, 56 * 4)


def in_memory(rank: int) -> list[str]:
    """A sharded model that has memory: init_weights itself, without materialize."""
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for code in CODES:
        one: Any = Coded(code)
        other: Any = Coded(code)
        shard_all(other, mesh)
        alone, spread = (model.init_weights(seed=3) for model in (one, other))
        assert [(each.name, each.rule, each.shape) for each in alone] == [(e.name, e.rule, e.shape) for e in spread]
        found += [f"{code}: {name}" for name in differing(other, one)]
        for mine, theirs in zip(other.parameters(), one.parameters(), strict=True):
            assert mine.requires_grad == theirs.requires_grad
            assert getattr(mine, "_decays", True) == getattr(theirs, "_decays", True)
    return found


def test_init_weights_of_a_sharded_model_that_has_memory(tmp_path: Path) -> None:
    assert results(on_ranks(2, in_memory, tmp_path)) == [[], []]


@WEIGHT_INITIALIZERS.register_module(name="TestReplacing")
class Replacing:
    """An initializer that gives a module another parameter."""

    def __call__(self, module: Any) -> None:
        module[0].weight = nn.Parameter(torch.ones(4, 3))


class Chain(BaseModule):
    """A model that computes something."""

    def __init__(self) -> None:
        super().__init__({"type": "Xavier", "layer": "Linear"})
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def init_weights(self) -> None:  # type: ignore[override]
        super().init_weights()
        self.second.bias.data[1] = 2.0

    def forward(self, example: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(example).relu())
        return result


def answers(rank: int) -> list[tuple[Tensor, Tensor | None]]:
    """What the model computes, and a gradient: of one process, of a replica, and sharded."""
    mesh, example = init_device_mesh("cpu", (2,)), torch.arange(10.0).reshape(2, 5)
    one = Chain()
    one.init_weights(seed=4)  # type: ignore[call-arg]
    models: list[nn.Module] = [one]
    for lay_out in (lambda model, mesh: None, shard_all):
        with torch.device("meta"):
            models.append(Chain())
        lay_out(models[-1], mesh)
        materialize(models[-1], seed=4)
    for model in models:
        model(example).square().sum().backward()
    gradients = [model.get_parameter("first.weight").grad for model in models]
    found = [(model(example).detach(), grad) for model, grad in zip(models, gradients, strict=True)]
    return [(result, None if grad is None else whole(grad)) for result, grad in found]


def test_the_engine_computes_with_what_was_written(tmp_path: Path) -> None:
    for one, *others in results(on_ranks(2, answers, tmp_path)):
        for other in others:
            torch.testing.assert_close(other, one)


class Failing(BaseModule):
    """Code that reads its weight, and fails on one rank before that, or after."""

    def __init__(self, how: str) -> None:
        super().__init__({"type": "Normal", "layer": "Linear"})
        self.how = how
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    def init_weights(self) -> Any:  # type: ignore[override]
        super().init_weights()
        alone = torch.distributed.get_rank() == 1
        if self.how == "before" and alone:
            raise KeyError("not here")
        if self.how == "after" and not alone:
            return
        if self.how == "other":
            (self.first if alone else self.second).weight.sum().item()
        if self.how == "caught":
            with suppress(Exception):  # as people do
                self.first.weight.sum().item()
            if alone:
                raise KeyError("not here")
        self.second.weight.sum().item()
        if self.how == "replaced":
            self.first.weight = nn.Parameter(torch.ones(4, 3))
        if self.how == "shape":
            self.first.weight.data = torch.ones(2, 3)


def failures(rank: int, folder: str) -> dict[str, tuple[str, bool, bool]]:
    """The error of each way to fail; whether the model has no memory again, and counts as not initialized."""
    mesh, found = init_device_mesh("cpu", (2,)), {}
    cases: dict[str, Callable[[], Any]] = {
        **{how: partial(Failing, how) for how in ("before", "after", "other", "caught", "replaced", "shape")},
        "replaced by an initializer": lambda: Sequential(nn.Linear(3, 4), init_cfg={"type": "TestReplacing"}),
        "config": lambda: Sequential(nn.Linear(3, 4), init_cfg={"type": "Normal", "std": rank + 1, "layer": "Linear"}),
        "checkpoint": lambda: Sequential(nn.Linear(3, 4), init_cfg={"type": "Pretrained", "checkpoint": "weights.pth"}),
    }
    os.chdir(folder)
    if rank == 1:
        os.chdir("/")  # where the file is not
    else:
        torch.save(nn.Sequential(nn.Linear(3, 4)).state_dict(), "weights.pth")
    for name, make in cases.items():
        with torch.device("meta"):
            model = make()
        fully_shard(model, mesh=mesh)
        try:
            materialize(model, seed=0)
            text = "nothing"
        except Exception as error:  # noqa: BLE001  # its kind is what is looked at
            text = f"{type(error).__name__}: {error}"
        found[name] = text, all(each.is_meta for each in model.parameters()), not model.is_init
    return found


FAILURES = {
    "before": "RunError: the initialization failed on 1 rank\n  rank 1: KeyError: 'not here'",
    "after": "RunError: the initialization failed on 1 rank\n  rank 1: gathers a tensor, when others are done",
    "other": "RunError: the initialization failed on 2 ranks\n  rank 0: RunError: second.weight: code on other ranks",
    "caught": "RunError: the initialization failed on 1 rank\n  rank 1: KeyError: 'not here'",
    "replaced": "RunError: the initialization failed on 2 ranks\n  rank 0: InitCfgAssertionError: Find a new :obj:`Par",
    "replaced by an initializer": "RunError: the initialization failed on 2 ranks\n  rank 0: RunError: code put new",
    "shape": "RunError: the initialization failed on 2 ranks\n  rank 0: RunError: first.weight: code gave it shape [2",
    "config": "RunError: the ranks do not start alike; nothing was written. Give each its own group= if that is meant\n"
    "  init_cfg of the model: {'type': 'Normal', 'std': 1, 'layer': 'Linear'} on rank 0",
    "checkpoint": "RunError: the initialization failed on 1 rank\n  rank 1: FileNotFoundError",
}


def test_one_error_on_all_ranks_and_the_model_on_meta(tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    for found in results(on_ranks(2, failures, folder, str(tmp_path))):
        assert found.keys() == FAILURES.keys()
        for name, (text, on_meta, fresh) in found.items():
            assert text.startswith(FAILURES[name]), name
            assert on_meta and fresh, name
