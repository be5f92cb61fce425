"""Trains a small Llama with FSDP2, from the meta device: the first weights are those of one process.

    torchrun --standalone --nproc-per-node 4 examples/train_fsdp2.py

The fingerprint that it prints is the same for any number of processes, and for none:

    torchrun --standalone --nproc-per-node 1 examples/train_fsdp2.py
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from small_llama import Llama, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import torchinit


def main(steps: int) -> None:
    """One rank's part."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))
    with torch.device("meta"):  # no memory yet
        model = Llama()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    report = torchinit.materialize(model, "llama", seed=0, fingerprint=True)  # memory for what is here, and its values
    losses = train(model, steps, part=dist.get_rank())
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
