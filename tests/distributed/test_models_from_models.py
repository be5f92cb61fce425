"""Models from models on two ranks: mixtures, factors and tokens have the bits of one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.layouts import cut, whole
from tests.processes import on_ranks, results
from torchinit import Name, Pretrained, Rule, initialize, materialize
from torchinit.checkpoints.adapters import (
    Adapter,
    Chain,
    Fuse,
    LoRA,
    MergeExperts,
    PoolHeads,
    Rearrange,
    ResizeVocabulary,
    Upcycle,
    UpcycleRouter,
)

WIDTH, HIDDEN = 8, 12


class Grown(nn.Module):
    """Whatever is made of another model; no size is a multiple of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(13, WIDTH)
        self.copies = nn.ParameterDict({"up": torch.empty(3, 2 * HIDDEN, WIDTH), "down": torch.empty(3, WIDTH, HIDDEN)})
        self.parts = nn.ParameterDict({"up": torch.empty(6, HIDDEN, WIDTH), "down": torch.empty(6, WIDTH, HIDDEN // 2)})
        self.anew = nn.ParameterDict({"up": torch.empty(3, 2 * HIDDEN, WIDTH), "down": torch.empty(3, WIDTH, HIDDEN)})
        self.router = nn.Linear(WIDTH, 6, bias=False)
        self.merged = nn.Linear(5, 7, bias=False)
        self.k, self.o = nn.Linear(WIDTH, 4, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        for name in ("low", "near", "none"):
            layer = nn.Module()
            layer.base_layer, layer.a, layer.b = (
                nn.Linear(9, 7),
                nn.Linear(9, 4, bias=False),
                nn.Linear(4, 7, bias=False),
            )
            self.add_module(name, layer)


FILE = {
    "table.weight": (10, WIDTH), "gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN),
    "experts": (4, 7, 5), "k.weight": (WIDTH, WIDTH), "o.weight": (WIDTH, WIDTH),
}  # fmt: skip
FILE |= {f"{name}.base_layer.weight": (7, 9) for name in ("low", "near", "none")}
FILE |= {f"{name}.base_layer.bias": (7,) for name in ("low", "near", "none")}
FUSE = Fuse("both", ("gate", "up"))
NAMES: dict[str, Any] = {"a": "a", "b": "b"}
ADAPT: dict[str, Adapter] = {
    "table.*": ResizeVocabulary(trained=9, like={10: (1, 4)}),
    "copies.up": Chain((FUSE, Upcycle("copies.up", "both"))),
    "copies.down": Upcycle("copies.down", "down"),
    "parts.up": Chain((FUSE, Upcycle("parts.up", "both", hidden=0, fused=2, granularity=2))),
    "parts.down": Upcycle("parts.down", "down", hidden=1, granularity=2, scale=2.0, noise=0.1),
    "anew.up": Chain((FUSE, Upcycle("anew.up", "both", hidden=0, fused=2, drop=0.5))),
    "anew.down": Upcycle("anew.down", "down", hidden=1, drop=0.5),
    "router.weight": UpcycleRouter("router.weight", "down", granularity=2),
    "merged.weight": MergeExperts("merged.weight", "experts"),
    "k.*": PoolHeads(4, choose=(3, 0)),
    "o.*": Rearrange((2, 2, -1), (1, 0, 2), axis=1),
    "low.**": LoRA("pissa", 4, 0.5, **NAMES),
    "near.**": LoRA("olora", 4, 0.5, **NAMES),
    "none.**": LoRA("orthogonal", 4, **NAMES),
}


def made(rank: int, file: str, expected: str) -> Mapping[str, list[str]]:
    """By layout: what differs from one process."""
    values, found = safetensors.torch.load_file(expected), {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layout, axis in (("fsdp2", None), ("rows", 0), ("columns", 1), ("last", 2)):
        with torch.device("meta"):
            model = Grown()
        if axis is None:
            fully_shard(model, mesh=mesh)
        else:
            cut(model, mesh, axis)
        materialize(model, Rule(Name("**"), Pretrained(file, adapt=ADAPT, expect_unexpected="**")), seed=0)
        state = model.state_dict()
        found[layout] = [name for name, value in values.items() if not torch.equal(whole(state[name]), value)]
    return found


@pytest.mark.slow("starts processes that import torch")
def test_two_ranks_make_what_one_does(tmp_path: Path) -> None:
    torch.manual_seed(3)
    file, one = {name: torch.randn(size) for name, size in FILE.items()}, Grown()
    safetensors.torch.save_file(file, tmp_path / "file.safetensors")
    report = initialize(one, Rule(Name("**"), Pretrained(file, adapt=ADAPT)), seed=0)
    assert report.loads[0].complete
    safetensors.torch.save_file(one.state_dict(), tmp_path / "one.safetensors")
    paths = str(tmp_path / "file.safetensors"), str(tmp_path / "one.safetensors")
    for found in results(on_ranks(2, made, tmp_path, *paths)):
        assert found == {"fsdp2": [], "rows": [], "columns": [], "last": []}
