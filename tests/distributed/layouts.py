"""Layouts: models of awkward sizes, and the ways in which torch's engines lay them out over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from torchinit import Layer, Leaf, Name, Normal, Orthogonal, Rule, Shape, Uniform
from torchinit.initializers import DeltaOrthogonal
from torchinit.model.dtensor import shards_of


class Experts(nn.Module):
    """A stack of matrices, one an expert."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(count, width, 3))


class Layer1(nn.Module):
    """Sizes that no number of ranks divides, a norm with running values, a stack of experts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width + 1)
        self.down = nn.Linear(2 * width + 1, width, bias=False)
        self.experts = Experts(4, width)
        self.stats = nn.BatchNorm1d(width)


class Text(nn.Module):
    """A table that is also the head, a padding row, a mask that is made in the constructor."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Embedding(13, width, padding_idx=3)
        self.layers = nn.ModuleList(Layer1(width) for _ in range(2))
        self.head = nn.Linear(width, 13, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.ones(width, width, dtype=torch.bool).tril(), persistent=False)


class Image(nn.Module):
    """Convolutions of several kinds, group norm and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(10, 14, 3, groups=2), nn.GroupNorm(2, 14), nn.ConvTranspose2d(14, 7, 2))
        self.head = nn.Linear(7, 5)


RULES = [
    Rule(Name("**"), Normal(std=0.02)),
    Rule(Leaf("bias"), Uniform(-1, 1)),
    Rule(Layer("Linear") & Shape(ndim=2) & ~Name("head.weight"), Orthogonal(), optional=True),
    Rule(Name("body.0.weight"), DeltaOrthogonal(), optional=True),
]
MODELS: dict[str, Callable[[], nn.Module]] = {"text": Text, "image": Image}


def sharded(model: nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2: each layer, then what is left."""
    for module in list(model.modules()):
        if isinstance(module, (Layer1, nn.Conv2d)):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Tensor parallelism, every style; where there are none of these layers, all is replicated."""
    styles = {
        "table": RowwiseParallel(input_layouts=Replicate()),
        "layers.0.norm": SequenceParallel(),
        "layers.*.up": ColwiseParallel(),
        "layers.*.down": RowwiseParallel(),
        "layers.1": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "layers.0": PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate()),
    }
    if isinstance(model, Text):
        parallelize_module(model, mesh, styles)
        model.head.weight = model.table.weight  # tensor parallelism takes ties apart
        for layer in model.layers:
            cut(layer.get_submodule("experts"), mesh, 0)
    else:
        parallelize_module(model, mesh, {"head": ColwiseParallel()})


def cut(model: nn.Module, mesh: DeviceMesh, *axes: int) -> None:
    """Each parameter cut along an axis for each dimension of the mesh; an axis that it has not got is the first."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                places = [Shard(axis if axis < parameter.dim() else 0) for axis in axes]
                if id(parameter) not in made:
                    spread = distribute_tensor(parameter.detach(), mesh, places, src_data_rank=None)
                    made[id(parameter)] = nn.Parameter(spread)
                module._parameters[name] = made[id(parameter)]


def layouts(world: int) -> Iterator[tuple[str, Callable[[nn.Module], None]]]:
    """The ways to lay out a model over so many ranks; every rank has to go through all of them."""
    line = init_device_mesh("cpu", (world,), mesh_dim_names=("all",))
    yield "plain", lambda _: None
    yield "fsdp2", lambda model: sharded(model, line)
    yield "tensor parallel", lambda model: parallel(model, line)
    yield "columns", lambda model: cut(model, line, 1)
    if world % 2 == 0:
        plane = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
        yield "rows and columns", lambda model: cut(model, plane, 0, 1)
        yield "rows of rows", lambda model: cut(model, plane, 0, 0)
        yield "hsdp", lambda model: sharded(model, plane)

        def both(model: nn.Module) -> None:
            parallel(model, plane["tensor"])
            sharded(model, plane["data"])

        yield "fsdp2 x tensor parallel", both


def whole(tensor: Tensor) -> Tensor:
    """What all ranks hold together, put in its place by hand."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    found = torch.full(tuple(tensor.shape), torch.nan)
    mine = [(part.start, part.local) for part in shards_of("", tensor)]
    theirs: list[list[tuple[tuple[int, ...], Tensor]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(theirs, mine)
    for start, local in (part for parts in theirs for part in parts):
        found[tuple(slice(at, at + size) for at, size in zip(start, local.shape, strict=True))] = local
    return found
