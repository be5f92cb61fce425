"""Sharded: under FSDP2 and tensor parallelism a transfer is that of one process, by logical shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torchinit
from tests.processes import on_ranks, results
from tests.transfer.nets import Attention, Decoder, ids
from torchinit.transfer import Transfer

PLAN: dict[str, Any] = {
    **{f"layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
    "layers.*.self_attn.o_proj": RowwiseParallel(),
    "layers.*.mlp.up_proj": ColwiseParallel(),
    "layers.*.mlp.down_proj": RowwiseParallel(),
}


def transferred(model: nn.Module) -> Transfer:
    with torch.device("meta"):
        base = Decoder(16)
    rules = [
        {"type": "LeCun", "distribution": "normal", "name": "layers.*.*.*.weight"},
        {"type": "Normal", "std": 0.5, "name": "embed_tokens.weight"},
        {"type": "Normal", "std": 0.25, "name": "lm_head.weight"},
        {"type": "Zeros", "param": "bias"},
        {"type": "Ones", "name": "**.norm*.weight"},
        {"type": "Ones", "name": "norm.weight"},
    ]
    return Transfer(model, base, start={"rules": rules})


def told(model: nn.Module, transfer: Transfer) -> tuple[str, list[Any], torch.Tensor | None]:
    """The bits, the groups and the text of the transfer."""
    groups = transfer.param_groups(lr=0.01, weight_decay=0.1)
    plain = [(tuple(each["param_names"]), each["lr"], each["eps"], each["weight_decay"]) for each in groups]
    torch.optim.AdamW(groups)
    assert not len(transfer.lint())
    return str(torchinit.fingerprint(model)), [*plain, str(transfer)], model(ids())


def on_rank(rank: int, kind: str) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        model = Decoder(64)
    if kind == "fsdp":
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model, mesh, PLAN)
        for module in model.modules():
            if isinstance(module, Attention):
                module.num_heads //= 2  # those of this rank
    transfer = transferred(model)
    torchinit.materialize(model, transfer.recipe, device="cpu", seed=3)
    transfer.apply()
    bits, groups, out = told(model, transfer)
    return bits, groups, None if out is None else out.detach()


@pytest.mark.parametrize("kind", ["fsdp", "tensor_parallel"])
def test_ranks_start_and_learn_as_one_process(kind: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Decoder(64)
    transfer = transferred(model)
    torchinit.materialize(model, transfer.recipe, device="cpu", seed=3)
    transfer.apply()
    bits, groups, out = told(model, transfer)
    assert out is not None
    for there in results(on_ranks(2, on_rank, tmp_path, kind)):
        assert there[0] == bits
        assert there[1] == groups
        torch.testing.assert_close(there[2], out.detach(), rtol=1e-4, atol=1e-5)
