"""A model's own start through the meta device: the values of init_weights, on one rank and on many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.layouts import cut, whole
from tests.distributed.own import Model, save_teacher
from tests.processes import on_ranks, results
from torchinit import fingerprint, materialize, seeded


def meta(checkpoint: str) -> Model:
    with torch.device("meta"):
        return Model(checkpoint)


def eager(checkpoint: str) -> Model:
    """The oracle: memory by the constructors, what each layer resets, and init_weights."""
    model = Model(checkpoint)
    with seeded(model, 0):
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


def shard_all(model: nn.Module, mesh: Any) -> None:
    """FSDP2 for every layer by itself, so that each has the class that fully_shard makes of its own."""
    for module in list(model.modules()):
        if next(module.parameters(recurse=False), None) is not None:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def on_each_layout(rank: int, path: str) -> dict[str, list[str]]:
    mesh = init_device_mesh("cpu", (2,))
    one = eager(path)
    found = {}
    for layout, lay_out in {
        "fsdp2, every layer": lambda model: shard_all(model, mesh),
        "fsdp2, the model": lambda model: fully_shard(model, mesh=mesh),
        "columns": lambda model: cut(model, mesh, 1),
    }.items():
        model = meta(path)
        lay_out(model)
        before = {name: (type(module), id(module)) for name, module in model.named_modules()}
        report = materialize(model, seed=0)
        found[layout] = differing(model, one)
        found[layout] += ["the modules"] if before != {n: (type(m), id(m)) for n, m in model.named_modules()} else []
        # What NumPy writes, no report knows of.
        found[layout] += [text for text in report.problems if not text.startswith("coded.0.layer.weight")]
        if fingerprint(model).total != fingerprint(one).total:
            found[layout].append("the fingerprint")
    return found


def test_sharded_it_is_that_of_one_process(tmp_path: Path) -> None:
    path = str(tmp_path / "teacher.pth")
    save_teacher(path)
    folder = tmp_path / "ranks"
    folder.mkdir()
    for found in results(on_ranks(2, on_each_layout, folder, path)):
        assert {layout: wrong for layout, wrong in found.items() if wrong} == {}
        assert len(found) == 3
