"""Trains a small Llama with tensor parallelism and FSDP2 on a mesh of 2 x 2, from the meta device.

    torchrun --standalone --nproc-per-node 4 examples/train_tp_fsdp.py

The fingerprint is that of ``train_fsdp2.py``: how a model is cut does not show in its first weights.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from small_llama import Llama, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torchinit

PARTS = {
    "embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "layers.*.attention.q_proj": ColwiseParallel(),
    "layers.*.attention.k_proj": ColwiseParallel(),
    "layers.*.attention.v_proj": ColwiseParallel(),
    "layers.*.attention.o_proj": RowwiseParallel(),
    "layers.*.feed_forward.gate_proj": ColwiseParallel(),
    "layers.*.feed_forward.up_proj": ColwiseParallel(),
    "layers.*.feed_forward.down_proj": RowwiseParallel(),
}


def main(steps: int) -> None:
    """One rank's part."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("fsdp", "tp"))
    with torch.device("meta"):  # no memory yet
        model = Llama()
    parallelize_module(model, mesh["tp"], PARTS)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh["fsdp"])
    fully_shard(model, mesh=mesh["fsdp"])
    report = torchinit.materialize(model, "llama", seed=0, fingerprint=True)  # memory for what is here, and its values
    losses = train(model, steps, part=mesh.get_local_rank("fsdp"))
    if dist.get_rank() == 0 and report.fingerprint:
        print(f"fingerprint {report.fingerprint.total}")
        print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    dist.init_process_group("gloo")
    main(parser.parse_args().steps)
    dist.barrier()  # ranks leave together: gloo may abort a process whose peer is gone before it is done
    dist.destroy_process_group()
