"""A model of a thousand million float32 parameters materialized by 1, 2 and 4 gloo ranks: memory and time a rank.

``python -m benchmarks.sharded [--layers 20] [--width 7168] [--worlds 1 2 4]``. Needs 4 GB.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import torchinit
from torchinit.model.dtensor import local_part

RULES = {"rules": [{"type": "Normal", "std": 0.02, "name": "**"}]}


def memory(what: str) -> int:
    """A figure of this process in bytes: VmRSS is what it holds, VmHWM the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024


def rank(number: int, world: int, folder: str, layers: int, width: int) -> None:
    """Builds, shards, materializes, and prints a line."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torchinit.materialize(nn.Linear(8, 8, device="meta"), RULES, seed=0)  # whatever is loaded late is loaded now
    dist.barrier()
    baseline, processor, wall = memory("VmRSS"), time.process_time(), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    torchinit.materialize(model, RULES, seed=0)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    local = sum(local_part(parameter).nbytes for parameter in model.parameters())
    more = memory("VmHWM") - baseline - local
    columns = f"{world} | {number} | {local / 2**20:,.0f} | {more / 2**20:.1f} | {processor:.2f} | {wall:.2f}"
    print(f"| {columns} |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--width", type=int, default=7168)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    chosen = parser.parse_args()
    numbers = chosen.layers * chosen.width**2
    print(f"{numbers / 1e9:.2f} thousand million parameters, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| ranks | rank | local shard, MiB | peak above it and the baseline, MiB | processor, s | wall, s |")
    print("|---|---|---|---|---|---|")
    for world in chosen.worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(rank, (world, folder, chosen.layers, chosen.width), nprocs=world)


if __name__ == "__main__":
    main()
