"""Layouts: one answer from one process and from many, whichever engine holds the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.distributed.layouts import MODELS, RULES, layouts, whole
from tests.processes import on_ranks, results
from torchinit import initialize, materialize, sites


def compared(model: nn.Module, one: nn.Module) -> Iterator[str]:
    """In what the model differs from that of one process."""
    mine, theirs = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (model, one))
    if mine.keys() != theirs.keys():
        yield f"other tensors: {mine.keys() ^ theirs.keys()}"
    for name, expected in theirs.items():
        tensor = mine[name]
        gathered = whole(tensor)
        if not torch.equal(gathered, expected):
            yield f"{name} differs"
        if (tensor.dtype, tensor.requires_grad, tuple(tensor.shape)) != (
            expected.dtype,
            expected.requires_grad,
            tuple(expected.shape),
        ):
            yield f"{name} is of another kind"


def of_one_process(name: str) -> nn.Module:
    one = MODELS[name]()
    initialize(one, RULES, seed=5).assert_ok(complete=True)
    return one


def every_layout(rank: int) -> dict[str, list[str]]:
    """What is wrong, by model and layout."""
    found = {}
    for name, make in MODELS.items():
        one = of_one_process(name)
        for layout, lay_out in layouts(dist.get_world_size()):
            with torch.device("meta"):
                model = make()
            lay_out(model)
            known, before = sites(model), torch.get_rng_state()
            report = materialize(model, RULES, seed=5)
            report.assert_ok(complete=True)
            problems = list(compared(model, one))
            if [(site.name, site.shape, len(site.aliases)) for site in known] != [
                (site.name, site.shape, len(site.aliases)) for site in sites(one)
            ]:
                problems.append("the sites are others")
            if not torch.equal(torch.get_rng_state(), before):
                problems.append("torch's generator has moved")
            found[f"{name}, {layout}"] = problems
    return found


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def answers(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What a sharded model computes, and the gradient of its first weight, against those of one process."""
    one, example, world = chain(), torch.arange(10.0).reshape(2, 5), dist.get_world_size()
    initialize(one, RULES, seed=5)
    one(example).square().sum().backward()
    found = {"one process": (one(example), one.get_parameter("0.weight").grad)}
    for layout, mesh in {
        "fsdp2": init_device_mesh("cpu", (world,)),
        "fsdp2 x tensor parallel": init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor")),
    }.items():
        with torch.device("meta"):
            model = chain()
        if mesh.ndim == 2:
            parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh if mesh.ndim == 1 else mesh["data"])
        materialize(model, RULES, seed=5)
        result = model(example)
        result.square().sum().backward()
        found[layout] = result, model.get_parameter("0.weight").grad
    return {layout: (result.detach(), whole(grad)) for layout, (result, grad) in found.items() if grad is not None}


def test_the_engine_computes_with_what_was_written(tmp_path: Any) -> None:
    """FSDP2 keeps the memory of its shards a second time; of three rows the last rank has none."""
    for found in results(on_ranks(4, answers, tmp_path)):
        result, gradient = found.pop("one process")
        assert len(found) == 2
        for mine in found.values():
            torch.testing.assert_close(mine, (result, gradient))


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_gathered_weights_are_those_of_one_process(world: int, tmp_path: Any) -> None:
    for found in results(on_ranks(world, every_layout, tmp_path)):
        assert len(found) == (16 if world % 2 == 0 else 8)
        assert {layout: wrong for layout, wrong in found.items() if wrong} == {}
