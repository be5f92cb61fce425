"""Starts that follow the data, beside anyinit and lsuv: `-m benchmarks.lsuv [--write]`, in the peers' environment."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchinit
from benchmarks import probe_nets as nets
from benchmarks.probe import CONFIGS, of_timm, of_transformers

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "probe.md"
LAYERS = (nn.Linear, nn.Conv2d, nn.Conv1d, nn.ConvTranspose2d)
VECTORS, IMAGES = (16, 64), (16, 3, 64, 64)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP 30 ReLU": (lambda: nets.mlp(30), lambda: torch.randn(VECTORS)),
    "MLP 30 tanh": (lambda: nets.mlp(30, nn.Tanh), lambda: torch.randn(VECTORS)),
    "VGG 14": (nets.vgg, lambda: torch.randn(16, 3, 32, 32)),
    "autoencoder": (nets.autoencoder, lambda: torch.randn(16, 3, 32, 32)),
    "residual 48": (nets.Residual, lambda: torch.randn(16, 32)),
    "pre-LN 6": (nets.Decoder, lambda: torch.randint(500, (16, 24))),
    "pre-LN 6, tied": (lambda: nets.Decoder(tied=True), lambda: torch.randint(500, (16, 24))),
    "resnet18": (lambda: of_timm("resnet18", {}), lambda: torch.randn(IMAGES)),
    "vit_tiny": (lambda: of_timm("vit_tiny_patch16_224", {"img_size": 64}), lambda: torch.randn(IMAGES)),
    "GPT-2": (
        lambda: of_transformers("GPT2LMHeadModel", CONFIGS["GPT2LMHeadModel"]), lambda: torch.randint(500, (16, 24)),
    ),
    "Llama": (
        lambda: of_transformers("LlamaForCausalLM", CONFIGS["LlamaForCausalLM"]), lambda: torch.randint(500, (16, 24)),
    ),
    "LSTM": (lambda: nets.Recurrent(nn.LSTM), lambda: torch.randn(16, 30, 8)),
}  # fmt: skip


def of_torchinit(model: nn.Module, batch: Tensor) -> dict[str, float]:
    """The targets of the layers that end a branch, where they are not 1."""
    result = torchinit.lsuv(model, batch)
    return {each.name.removesuffix(".weight"): each.target for each in result.layers if not math.isnan(each.target)}


def of_anyinit(model: nn.Module, batch: Tensor) -> dict[str, float]:
    """The package anyinit, by measuring."""
    import anyinit

    anyinit.initialize(model, "empirical", batch, seed=0)
    return {}


def of_lsuv(model: nn.Module, batch: Tensor) -> dict[str, float]:
    """The package lsuv."""
    import lsuv

    lsuv.lsuv_with_singlebatch(model, batch, verbose=False)
    return {}


def errors(model: nn.Module, batch: Tensor, targets: dict[str, float]) -> list[float]:
    """|ln variance - ln target| of what comes out of each layer, outside of attention."""
    found: list[float] = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Any) -> None:
            variance = float(output.detach().float().var(correction=0))
            found.append(abs(math.log(variance / targets.get(name, 1.0) ** 2)) if variance > 0 else math.inf)

        return hook

    for name, module in model.named_modules():
        is_layer = isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"
        if is_layer and (not targets or name in targets) and "attn" not in name:
            module.register_forward_hook(hook_of(name))
    model.eval()
    for module in model.modules():
        module.training = "BatchNorm" in type(module).__name__
    with torch.no_grad():
        model(batch)
    return found


def cell(way: Callable[[nn.Module, Tensor], dict[str, float]], name: str) -> str:
    """What one package makes of one model."""
    make, batch_of = MODELS[name]
    torch.manual_seed(0)
    model, batch = make(), batch_of()
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            targets = way(model, batch)
        seconds = time.perf_counter() - start
        found = errors(model, batch, targets)
    except Exception as error:  # noqa: BLE001 - whatever another package raises
        return f"{type(error).__name__}"
    if not found:
        return f"no layer, {seconds:.2f} s"
    right = sum(each <= math.log(1.1) * 2 for each in found)
    return f"{right}/{len(found)}, {statistics.median(found):.2g} / {max(found):.2g}, {seconds:.2f} s"


def main(words: list[str]) -> None:
    """Print the table; write it where that is asked for."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    ways = {"torchinit.lsuv": of_torchinit, "anyinit 0.4.0": of_anyinit, "lsuv 0.3.0": of_lsuv}
    lines = [f"| model | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    for name in MODELS:
        lines.append(f"| {name} | {' | '.join(cell(way, name) for way in ways.values())} |")
        print(lines[-1], flush=True)
    if "--write" in words:
        begin, end = "<!-- lsuv: begin -->", "<!-- lsuv: end -->"
        before, _, rest = PAGE.read_text("utf-8").partition(begin)
        table = "\n".join(lines)
        PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
