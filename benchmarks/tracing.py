"""Tracing: what it adds to an initialization, as a ratio of processor time, with and without in turn.

    .venv/bin/python -m benchmarks.tracing [--quick]

prints a line for each; ``--quick`` leaves out the model of a billion parameters (4 GiB).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from benchmarks.models import llama
from benchmarks.timing import side_by_side
from examples.models import ResNet, Transformer
from torchinit import seeded, trace

Code = Callable[[nn.Module], object]
Opened = Callable[[nn.Module], AbstractContextManager[object]]

WAYS: dict[str, Opened] = {
    "alone": lambda model: nullcontext(),
    "trace": trace,
    "seeded": lambda model: seeded(model, 0),
}


def normals(model: nn.Module) -> None:
    """N(0, 0.02²) for every weight."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)


def compare(what: str, model: nn.Module, code: Code, repeats: int) -> None:
    """Prints what each way costs beside the code alone."""

    def call(opened: Opened) -> Callable[[], None]:
        def run() -> None:
            with opened(model):
                code(model)

        return run

    spreads = side_by_side({name: call(opened) for name, opened in WAYS.items()}, repeats)
    alone = spreads["alone"]
    for name in ("trace", "seeded"):
        median, best = spreads[name].median / alone.median, spreads[name].best / alone.best
        print(f"| {what} | {name} | {alone.median * 1e3:.1f} ms | {median:.3f} | {best:.3f} |", flush=True)


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description="what tracing adds to an initialization")
    parser.add_argument("--quick", action="store_true", help="without the model of a billion parameters")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | way | alone, median | ratio of medians | of the best |\n|---|---|---|---|---|")
    resnet = ResNet()
    compare("ResNet-50", resnet, lambda _: resnet.init_weights(), 15)
    compare("a small Transformer (0.2M)", Transformer(), normals, 15)
    if not chosen.quick:
        billion = llama().to_empty(device="cpu")
        compare("1.1B Llama", billion, normals, 3)


if __name__ == "__main__":
    main()
