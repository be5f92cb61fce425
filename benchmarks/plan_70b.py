"""Planning a Llama of 70 thousand million parameters on the meta device: time and memory.

Needs transformers: `.venv-peers/bin/python benchmarks/plan_70b.py`.
"""

from __future__ import annotations

import resource
import statistics
import time
import tracemalloc

import torch
import transformers
from torch import nn

import torchinit

SIZES = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}
REPEATS = 7


def build() -> nn.Module:
    """The model, without memory."""
    with torch.device("meta"):
        model: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    return model


def seconds(model: nn.Module, recipe: torchinit.rules.Recipe) -> list[float]:
    """How long each of several plans takes."""
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        torchinit.plan(model, recipe, complete=True)
        found.append(time.perf_counter() - begun)
    return found


def main() -> None:
    """Prints what a plan of the whole model costs, for two recipes."""
    begun = time.perf_counter()
    model = build()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    print(f"built on meta in {time.perf_counter() - begun:.2f} s: {numbers / 1e9:.1f} thousand million parameters")
    for name in ("llama", "general"):
        recipe = torchinit.load_recipe(name)
        times = seconds(model, recipe)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        made = torchinit.plan(model, recipe, complete=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{name}: {len(made)} sites planned in {statistics.median(times) * 1e3:.0f} ms"
            f" ({min(times) * 1e3:.0f} to {max(times) * 1e3:.0f}), {peak / 2**20:.1f} MiB of Python objects at most,"
            f" resident memory grew by {(after - before) / 2**10:.1f} MiB"
        )


if __name__ == "__main__":
    main()
