"""Rank orders: on meshes whose ranks do not ascend a model is what torch makes of the same weights, or is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.processes import on_ranks, results
from torchinit import (
    Layer,
    Leaf,
    Name,
    Normal,
    Orthogonal,
    Pretrained,
    Rule,
    RunError,
    Uniform,
    fingerprint,
    initialize,
    materialize,
    verify_replicas,
)

RULES = [
    Rule(Name("**"), Normal(std=0.5)),
    Rule(Leaf("bias"), Uniform(-1, 1)),
    Rule(Layer("Linear") & Leaf("weight"), Orthogonal(2.0)),
]
Lay = Callable[[nn.Module], object]


class Net(nn.Module):
    """A table, a pair of layers as tensor parallelism likes them, a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(width, width)
        self.up = nn.Linear(width, 8 * width)
        self.down = nn.Linear(8 * width, width)
        self.head = nn.Linear(width, width - 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.down(self.up(self.table(tokens)).relu()))
        return found


def one_process(width: int) -> Net:
    one = Net(width)
    initialize(one, RULES, seed=5).assert_ok(complete=True)
    return one


def meta(width: int) -> Net:
    with torch.device("meta"):
        return Net(width)


def line_of(*ranks: int) -> Iterator[tuple[str, int, Lay]]:
    """The ways to lay out a model over a line of ranks: name, width, layout."""
    mesh = DeviceMesh("cpu", torch.tensor(ranks))
    pair = {"up": ColwiseParallel(), "down": RowwiseParallel(), "table": ColwiseParallel(output_layouts=Replicate())}
    for width in (8, 5):
        yield f"fsdp2 {width}", width, lambda model: fully_shard(model, mesh=mesh)
    yield (
        "fsdp2 by columns",
        8,
        lambda model: [
            fully_shard(layer, mesh=mesh, shard_placement_fn=lambda one: Shard(one.dim() - 1))
            for layer in (model.get_submodule("up"), model.get_submodule("down"))
        ],
    )
    yield "tensor parallel", 8, lambda model: parallelize_module(model, mesh, pair)


def plane_of(ranks: list[list[int]]) -> Iterator[tuple[str, int, Lay]]:
    """The ways to lay out a model over two dimensions."""
    mesh = DeviceMesh("cpu", torch.tensor(ranks), mesh_dim_names=("data", "tensor"))
    yield "hsdp", 5, lambda model: fully_shard(model, mesh=mesh)

    def both(model: nn.Module) -> None:
        parallelize_module(model, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(model, mesh=mesh["data"])

    yield "fsdp2 over tensor parallel", 5, both
    flat = mesh._flatten(f"flat{ranks}")
    yield "fsdp2 over all ranks", 5, lambda model: fully_shard(model, mesh=flat)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def differences(width: int, lay_out: Lay, folder: Path) -> Iterator[str]:
    """In what a laid-out model differs from that of one process, and from what torch makes of the same weights."""
    one, theirs = one_process(width), one_process(width)
    lay_out(theirs)
    names, tokens = [name for name, _ in one.named_parameters()], torch.arange(width)
    file = Rule(Name("**"), Pretrained(str(folder / f"{width}.pth")))

    def drawn(model: nn.Module) -> None:
        materialize(model, RULES, seed=5).assert_ok(complete=True)

    def loaded(model: nn.Module) -> None:
        materialize(model, file, seed=5).assert_ok(complete=True)

    def again(model: nn.Module) -> None:
        materialize(model, Rule(Name("**"), Normal()), seed=1)
        initialize(model, RULES, seed=5).assert_ok(complete=True)

    for way in (drawn, loaded, again):
        model = meta(width)
        lay_out(model)
        way(model)
        for name in names:
            mine = model.get_parameter(name)
            if not torch.equal(local(mine), local(theirs.get_parameter(name))):
                yield f"{way.__name__}: {name} is cut otherwise than torch cuts it"
            if isinstance(mine, DTensor) and not torch.equal(mine.full_tensor(), one.get_parameter(name)):
                yield f"{way.__name__}: {name} is gathered to something else"
        if fingerprint(model) != fingerprint(one):
            yield f"{way.__name__}: another fingerprint"
        verify_replicas(model)
        torch.testing.assert_close(local(model(tokens)), one(tokens), msg=f"{way.__name__}: the outputs")


def every_layout(rank: int, folder: Path, meshes: list[Any]) -> dict[str, list[str]]:
    found = {}
    if rank == 0:
        for width in (8, 5):
            torch.save(one_process(width).state_dict(), folder / f"{width}.pth")
    dist.barrier()
    for ranks in meshes:
        ways = plane_of(ranks) if isinstance(ranks[0], list) else line_of(*ranks)
        for layout, width, lay_out in ways:
            found[f"{layout} {ranks}"] = list(differences(width, lay_out, folder))
    return found


LINES = {2: [[1, 0]], 4: [[3, 2, 1, 0], [1, 3, 0, 2]]}
PLANES = [[[2, 3], [0, 1]], [[1, 0], [3, 2]], [[3, 2], [1, 0]], [[0, 2], [1, 3]]]


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize(("world", "meshes", "layouts"), [(2, LINES[2], 4), (4, LINES[4], 8), (4, PLANES, 12)])
def test_what_torch_gathers_is_the_model(world: int, meshes: list[Any], layouts: int, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for found in results(on_ranks(world, every_layout, tmp_path, tmp_path / "files", meshes)):
        assert len(found) == layouts
        assert {layout: wrong for layout, wrong in found.items() if wrong} == {}


# --- what torch itself does not put together ---------------------------------------------------------------


def cut(model: nn.Module, mesh: DeviceMesh, *places: Any) -> None:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                spread = distribute_tensor(parameter.detach(), mesh, places)
                module._parameters[name] = nn.Parameter(spread)


def refusals(rank: int, folder: Path) -> dict[str, list[str]]:
    """What each layout is refused with, on this rank: by materialize, and by initialize with values from a file."""
    line = DeviceMesh("cpu", torch.tensor([3, 2, 1, 0]))
    twisted = DeviceMesh("cpu", torch.tensor([[0, 1], [3, 2]]), mesh_dim_names=("a", "b"))
    turned = DeviceMesh("cpu", torch.tensor([[0, 2], [1, 3]]), mesh_dim_names=("c", "d"))
    turned._flatten("cd")
    rowwise = RowwiseParallel(input_layouts=Replicate())
    ways: dict[str, tuple[int, Lay]] = {
        "uneven": (7, lambda model: cut(model, line, Shard(0))),
        "different orders": (8, lambda model: cut(model, twisted, Replicate(), Shard(0))),
        "flattened": (8, lambda model: cut(model, turned, Shard(0), Shard(0))),
        "rows of a table": (8, lambda model: parallelize_module(model, line, {"table": rowwise})),
        "replicated inputs": (8, lambda model: parallelize_module(model, line, {"up": rowwise})),
    }
    if rank == 0:
        for width in (7, 8):
            torch.save(one_process(width).state_dict(), folder / f"{width}.pth")
    dist.barrier()
    return {name: refused(width, lay_out, folder / f"{width}.pth") for name, (width, lay_out) in ways.items()}


def refused(width: int, lay_out: Lay, file: Path) -> list[str]:
    blank, held = meta(width), one_process(width)
    lay_out(blank)
    lay_out(held)
    before = {name: local(value).clone() for name, value in held.named_parameters()}
    with pytest.raises(RunError) as first:
        materialize(blank, RULES, seed=5)
    with pytest.raises(RunError) as second:
        initialize(held, Rule(Name("**"), Pretrained(str(file))))
    assert all(parameter.is_meta for parameter in blank.parameters())
    assert all(torch.equal(local(value), before[name]) for name, value in held.named_parameters())
    return [str(first.value), str(second.value)]


MESSAGES = {
    "uneven": r"\(\d, 7\), which is not .* The mesh's ranks \[3, 2, 1, 0\] do not ascend: torch cuts by",
    "different orders": r"dimension 1 of its mesh has its ranks in different orders, as \[0, 1\] and \[3, 2\]: torch",
    "flattened": r"dimensions \[0, 1\] of its mesh are flattened into one, over ranks \[0, 2, 1, 3\]: torch cuts by",
    "rows of a table": r"torch would not compute from its weight: torch cuts by .*\n.*table: RowwiseParallel over ranks"
    r" \[3, 2, 1, 0\] finds the rows that it looks up by the place in the mesh",
    "replicated inputs": r"make the mesh of ascending ranks.*\n.*up: RowwiseParallel over ranks \[3, 2, 1, 0\] finds"
    r" its part of the inputs by the place in the mesh",
}


def test_what_torch_itself_mixes_up_is_refused_on_all_ranks(tmp_path: Path) -> None:
    """Of seven rows two ranks hold as many as they would in order: they hear of it from the others."""
    (tmp_path / "files").mkdir()
    for found in results(on_ranks(4, refusals, tmp_path, tmp_path / "files", timeout=20)):
        assert set(found) == set(MESSAGES)
        for layout, said in found.items():
            assert [text for text in said if not re.search(MESSAGES[layout], text)] == []
