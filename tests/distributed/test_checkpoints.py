"""Checkpoints of sharded models: saved from four ranks and loaded on two, and files read by slices."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.layouts import RULES, Text, layouts, sharded, whole
from tests.processes import on_ranks, results
from torchinit import Name, Pretrained, Rule, fingerprint, initialize, materialize
from torchinit.checkpoints.adapters import Adapter, Fuse, Rows, Stack, Transpose
from torchinit.checkpoints.fits import last_match
from torchinit.checkpoints.formats.base import Checkpoint
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.model.dtensor import local_part


def model() -> nn.Module:
    with torch.device("meta"):
        made = Text()
    sharded(made, init_device_mesh("cpu", (dist.get_world_size(),)))
    return made


def saved(rank: int, folder: str) -> tuple[str, str]:
    made = model()
    report = materialize(made, RULES, seed=5, fingerprint=True)
    save(made.state_dict(), checkpoint_id=folder)
    assert report.fingerprint is not None
    return report.fingerprint.total, fingerprint(made).persistent.total


def loaded(rank: int, folder: str) -> str:
    made = model()
    materialize(made, Rule(Name("**"), RULES[0].init), seed=6)  # other values, to be replaced
    state = made.state_dict()
    load(state, checkpoint_id=folder)
    made.load_state_dict(state)
    return fingerprint(made).persistent.total


@pytest.mark.slow("starts processes that import torch, twice")
def test_saved_from_four_ranks_and_loaded_on_two(tmp_path: Path) -> None:
    """Sizes that neither divides; the fingerprint is that of one process all along."""
    one = Text()
    initialize(one, RULES, seed=5)
    folder = tmp_path / "checkpoint"
    for name in ("four", "two"):
        (tmp_path / name).mkdir()
    four = results(on_ranks(4, saved, tmp_path / "four", str(folder)))
    assert four == [(fingerprint(one).total, fingerprint(one).persistent.total)] * 4
    two = results(on_ranks(2, loaded, tmp_path / "two", str(folder)))
    assert two == [fingerprint(one).persistent.total] * 2


ADAPT = {
    "table.weight": Rows(),
    "layers.*.up.*": Fuse("up", ("gate", "value")),
    "layers.*.down.weight": Transpose(),
    "layers.*.experts.up": Stack("up", "*.up", 4),
}
"""How a model is made of a file that keeps it in other pieces."""


def pieces(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model as that file keeps it."""
    made = dict(state)
    made["table.weight"] = torch.cat([state["table.weight"], torch.full((5, 6), torch.nan)])
    for number in range(2):
        layer = f"layers.{number}"
        for leaf in ("weight", "bias"):
            whole = made.pop(f"{layer}.up.{leaf}")
            made |= {f"{layer}.gate.{leaf}": whole[:4].clone(), f"{layer}.value.{leaf}": whole[4:].clone()}
        made[f"{layer}.down.weight"] = state[f"{layer}.down.weight"].T.contiguous()
        experts = made.pop(f"{layer}.experts.up")
        made |= {f"{layer}.experts.{at}.up": expert.clone() for at, expert in enumerate(experts)}
    return made


def pretrained(rank: int, files: Mapping[str, Mapping[str, Adapter]], expected: str) -> dict[str, Any]:
    """By file and layout: what differs from the model, and of what more was read than is here."""
    read: dict[str, int] = {}
    plain = Checkpoint.read

    def counted(checkpoint: Checkpoint, key: str, box: Any = None) -> torch.Tensor:
        found = plain(checkpoint, key, box)
        read[key] = max(read.get(key, 0), found.numel())
        return found

    values = safetensors.torch.load_file(expected)
    found = {}
    for (file, adapt), (layout, lay_out) in product(files.items(), layouts(dist.get_world_size())):
        with torch.device("meta"):
            made = Text()
        lay_out(made)
        read.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "read", counted)
            patch.setattr(Loaded, "content", "")  # for which ranks read a few stretches of every tensor
            materialize(made, Rule(Name("**"), Pretrained(file, adapt=adapt)), seed=0)
        state = made.state_dict()
        adapters = {name: last_match(adapt, name) for name in state}
        wants = {name: adapter.wants(name) if adapter else (name,) for name, adapter in adapters.items()}
        counts = {name: sum(read.get(key, 0) for key in keys) for name, keys in wants.items()}
        more = [name for name, count in counts.items() if count > local_part(state[name]).numel()]
        wrong = [name for name, value in values.items() if not torch.equal(whole(state[name]), value)]
        found[f"{Path(file).stem}, {layout}"] = wrong, more
    return found


@pytest.mark.slow("starts processes that import torch")
def test_each_rank_reads_its_slices(tmp_path: Path) -> None:
    """Of a file that fits, and of one that is adapted, but for the stretches that all of them compare."""
    one, same, other = Text(), str(tmp_path / "same.safetensors"), str(tmp_path / "pieces.safetensors")
    initialize(one, RULES, seed=5)
    state = {name: value.clone() for name, value in one.state_dict().items() if name != "head.weight"}
    safetensors.torch.save_file(state, same)  # of a tied tensor one copy: two would be compared, whole
    safetensors.torch.save_file(pieces(state), other)
    for found in results(on_ranks(4, pretrained, tmp_path, {same: {}, other: ADAPT}, same)):
        assert len(found) == 16
        assert {layout: lists for layout, lists in found.items() if any(lists)} == {}
