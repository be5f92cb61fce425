"""Growing on ranks: the values that one process has, of no more of the file than each needs, in little memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.processes import on_ranks, results
from torchinit import Name, Pretrained, Rule, Zeros, initialize, materialize
from torchinit.checkpoints.adapters import Adapter, HyperClone, Net2Wider, WeightSelection

MIB = 1 << 20


def encoder(depth: int, width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, width // 4, 2 * width, norm_first=True, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def sharded(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.get_submodule("layers").children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (3, 8, {"layers": [0, 2, 4]}),
    (6, 8, {"layers": "identity"}),
    (5, 16, {"adapt": {"**": HyperClone()}}),
    (5, 24, {"adapt": {"**": HyperClone(snr=10.0)}}),
    (10, 24, {"adapt": {"**": Net2Wider(seed=2, noise=0.1)}, "layers": "interleave"}),
    (2, 4, {"adapt": {"**": WeightSelection()}, "layers": "first"}),
]


def grown(rank: int, file: str) -> list[list[str]]:
    """For each case the tensors that differ from those of one process."""
    wrong = []
    for depth, width, how in CASES:
        rule = Rule(Name("**"), Pretrained(file, **how))
        whole = encoder(depth, width)
        initialize(whole, rule)
        with torch.device("meta"):
            model = encoder(depth, width)
        sharded(model)
        materialize(model, rule, seed=0)
        state = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in model.state_dict().items()
        }
        wrong.append([name for name, value in whole.state_dict().items() if not torch.equal(state[name], value)])
    return wrong


@pytest.mark.slow("starts processes that import torch")
def test_two_ranks_have_what_one_process_has(tmp_path: Path) -> None:
    old = encoder(5, 8)
    for parameter in old.parameters():
        nn.init.normal_(parameter)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    folder = tmp_path / "ranks"
    folder.mkdir()
    assert results(on_ranks(2, grown, folder, str(tmp_path / "old.safetensors"))) == [[[]] * len(CASES)] * 2


def sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A file of zeros that takes no room on the disk."""
    head, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 4 * torch.Size(shape).numel()
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + begin)


def peak() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


class Tower(nn.Module):
    def __init__(self, depth: int, size: int) -> None:
        super().__init__()
        pairs = (nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(1, 1)) for _ in range(depth))
        self.layers = nn.ModuleList(pairs)


def measured(rank: int, file: str, depth: int, size: int, adapter: Adapter | None, layers: Any) -> tuple[int, int]:
    """The bytes of the shards, and by how much the peak of memory rises."""
    with torch.device("meta"):
        model = Tower(depth, size)
    sharded(model)
    with torch.device("meta"):
        tiny = Tower(1, 1)
    materialize(tiny, Rule(Name("**"), Zeros()), seed=0)  # whatever is loaded once
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = peak()
    adapt = {} if adapter is None else {"**": adapter}
    materialize(
        model, Rule(Name("**"), Pretrained(file, adapt=adapt, layers=layers)), seed=0, verify=False, stats=False
    )
    held = sum(value.to_local().nbytes for value in model.state_dict().values() if isinstance(value, DTensor))
    return held, peak() - before


@pytest.mark.slow("starts processes that import torch, and reads gigabytes of zeros")
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process")
@pytest.mark.parametrize(
    ("blocks", "width", "depth", "size", "adapter", "layers", "slice_of"),
    [
        (16, 8192, 2, 8192, None, [0, 9], 2 * 8192 * 8192 // 2),  # 4 GiB, of which an eighth is taken
        (1, 4096, 1, 8192, HyperClone(), None, 4096 * 4096),
        (1, 6144, 1, 8192, Net2Wider(), None, 6144 * 6144),
        (1, 8192, 1, 6144, WeightSelection(), None, 8192 * 8192 // 2),
    ],
)
def test_a_rank_needs_its_shard_and_its_slice(
    blocks: int, width: int, depth: int, size: int, adapter: Any, layers: Any, slice_of: int, tmp_path: Path
) -> None:
    file, folder = tmp_path / "old.safetensors", tmp_path / "ranks"
    folder.mkdir()
    shapes = {f"layers.{number}.{leaf}": shape for number in range(blocks) for leaf, shape in (
        ("0.weight", (width, width)), ("1.weight", (1, 1)), ("1.bias", (1,))
    )}  # fmt: skip
    sparse(file, shapes)
    found = results(on_ranks(2, measured, folder, str(file), depth, size, adapter, layers))
    for held, rise in found:
        assert held >= depth * size * size * 4 // 2
        assert rise <= held + 4 * slice_of + 64 * MIB, (held // MIB, rise // MIB)
