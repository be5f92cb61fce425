"""Bookkeeping: what a plan and a report cost beside the draws, on models of 10 to 20,000 small tensors.

``python -m benchmarks.bookkeeping`` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from benchmarks import results
from benchmarks.draws import NOISE, Row, compare, row_section, threads
from torchinit import Kaiming, Layer, Leaf, Name, Normal, Ones, Rule, Zeros, fingerprint, initialize, lint, plan
from torchinit.model.shards import Shard

BASE = (
    Rule(Layer("Linear") & Leaf("weight"), Kaiming()),
    Rule(Leaf("bias"), Zeros()),
    Rule(Layer("LayerNorm") & Leaf("weight"), Ones()),
)
FIFTY = (*BASE, *(Rule(Name(f"{i}.1.weight"), Normal(std=0.01 * (i + 1)), optional=True) for i in range(47)))

JOBS: dict[str, Callable[[nn.Module], object]] = {
    "plan": lambda model: plan(model, BASE),
    "plan, 50 rules": lambda model: plan(model, FIFTY),
    "initialize, no statistics": lambda model: initialize(model, BASE, seed=0, stats=False),
    "initialize, 50 rules, no statistics": lambda model: initialize(model, FIFTY, seed=0, stats=False),
    "initialize": lambda model: initialize(model, BASE, seed=0),
    "initialize without a seed": lambda model: initialize(model, BASE),
    "fingerprint": fingerprint,
    "lint": lint,
}


def small_model(tensors: int) -> nn.Module:
    """Blocks of ten tensors, of 4 to 64 elements: two norms, three linear layers."""

    def block() -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(16), nn.Linear(16, 4), nn.GELU(), nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 2)
        )

    return nn.Sequential(*(block() for _ in range(max(1, tensors // 10))))


def by_hand(model: nn.Module) -> None:
    """The loop that people write: the values of ``BASE``, by ``torch.nn.init``."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def all_rows(quick: bool) -> Iterator[Row]:
    """Each job beside the loop, then one tensor in one call beside one call of torch's."""
    for tensors in (10, 1_200) if quick else (10, 100, 1_200, 20_000):
        model = small_model(tensors)
        times = max(1, 1_000 // tensors)
        for name, job in JOBS.items():
            if tensors <= 1_200 or name != "lint":
                what = f"{name}, {tensors:,} small tensors"
                yield compare(what, partial(job, model), partial(by_hand, model), "a loop", tensors, times=times)
    for size in (64, 1_024, 4_096):
        shard = Shard.whole("weight", nn.Parameter(nn.Linear(size, 1).weight.detach()[0]))
        ours = partial(Normal(0.0, 0.02).write, shard, NOISE)
        theirs = partial(nn.init.normal_, shard.local, 0.0, 0.02)
        yield compare(f"one tensor of {size:,} in one call", ours, theirs, "torch.nn.init", 1, times=500)


def section(quick: bool) -> tuple[object, list[str]]:
    """All rows, measured on one thread."""
    with threads(1):
        return row_section(all_rows(quick))


if __name__ == "__main__":
    results.measure({"bookkeeping": section}, __doc__)
