"""Transfer measured: `-m benchmarks.transfer [--write] [--quick] [width] [depth] [digits] [text]`.

``width`` and ``depth`` are coordinate checks (GPT-2 and Llama need transformers: the peers' environment), ``digits``
and ``text`` find the best learning rate at each width (digits need scikit-learn: the project's environment).
``--write`` puts the table into docs/guides/transfer.md, and its pictures into docs/figures.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchinit
from benchmarks.transfer_nets import NETS, Encoder, Mlp, Sized
from torchinit._text import format_table
from torchinit.pages import Figure, Series
from torchinit.pages.drawing import drawn_to_file
from torchinit.probing import CoordCheck
from torchinit.transfer import PARAMETRIZATIONS, Transfer

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs/guides/transfer.md", ROOT / "docs/figures"
QUICK = "--quick" in sys.argv
WIDTHS = (64, 256) if QUICK else (64, 256, 1024)
DEPTHS = (4, 8, 16) if QUICK else (4, 8, 16, 32, 64)
SWEEP = (64, 128) if QUICK else (64, 128, 256, 512)
SEEDS = 1 if QUICK else 2


# --- coordinate checks -----------------------------------------------------------------------------------------------


def checked(net: Sized, parametrization: str, *, depths: Sequence[int] = (), lr: float = 3e-3) -> CoordCheck:
    """Return the coordinate check of a net over widths, or over depths, its readout and queries starting at zero.

    The base of depths is half of the least: one block is not yet many.
    """

    def make(size: int, seed: int) -> Any:
        options = {"depth": size} if depths else {}
        width = 64 if depths else size
        model, base = net.make(width, **options), base_of(net.name, depths[0] // 2 if depths else None)
        transfer = net.transfer(model, base, parametrization=parametrization, optimizer="adamw", zero_readout=True)
        torchinit.initialize(model, transfer.recipe, seed=seed, stats=False)
        net.silence_queries(model, width)
        transfer.apply()
        return model, torch.optim.AdamW(transfer.param_groups(lr=lr))

    sizes: dict[str, Any] = {"depths": depths} if depths else {"widths": WIDTHS}
    # What a branch adds is k^-α of what it was, for that is its multiplier.
    alpha = PARAMETRIZATIONS[parametrization].depth or 0.0
    expected = {"**.self_attn": -alpha, "**.linear2": -alpha} if depths else {}
    return torchinit.coord_check(
        make, **sizes, steps=5, seeds=SEEDS, batch=net.batch(), loss=net.loss, expected=expected, limit=3600
    )


@cache
def base_of(name: str, depth: int | None) -> nn.Module:
    """Return the base of a net, the same for all sizes."""
    torch.manual_seed(0)
    return NETS[name].make(64) if depth is None else NETS[name].make(64, depth=depth)


def over_width() -> Iterator[list[str]]:
    """Yield the rows of the checks over widths."""
    for name, net in NETS.items():
        if name in ("GPT-2", "Llama") and not importlib.util.find_spec("transformers"):
            continue
        for parametrization in ("standard", "mup"):
            check = checked(net, parametrization)
            yield row_of(name, parametrization, check)
            save(f"width_{name.lower()}_{parametrization}", check)


def over_depth() -> Iterator[list[str]]:
    """Yield the rows of the checks over depths."""
    for parametrization in ("standard", "depth_mup", "completep"):
        check = checked(NETS["torch"], parametrization, depths=DEPTHS, lr=1e-3)
        yield row_of("torch", parametrization, check)
        save(f"depth_{parametrization}", check)


def row_of(net: str, parametrization: str, check: CoordCheck) -> list[str]:
    """Return a check in a row: how many layers are what, and the steepest slope."""
    moving = [each for each in check if each.verdict != "still"]
    verdicts = [each.verdict for each in moving]
    worst = max(moving, key=lambda each: abs(each.change - each.expected))
    flat, undecided = verdicts.count("flat"), verdicts.count("undecided")
    numbers = map(str, (flat, undecided, len(verdicts) - flat - undecided))
    return [net, parametrization, *numbers, f"{worst.change:+.2f} ± {worst.change_error:.2f} ({worst.name})"]


def save(name: str, check: CoordCheck) -> None:
    """Write a picture, if that is asked for; print the table."""
    print(check, flush=True)
    if "--write" in sys.argv:
        FIGURES.mkdir(exist_ok=True)
        check.save_svg(FIGURES / f"{name}.svg")


# --- learning rates --------------------------------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits, inputs from 0 to 1."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


@cache
def text() -> Tensor:
    """Return the help texts that Python ships, as numbers of characters; rare ones are one."""
    from pydoc_data.topics import topics

    whole = "".join(topics[name] for name in sorted(topics))
    letters = sorted(set(whole), key=whole.count, reverse=True)[:95]
    numbers = {letter: at for at, letter in enumerate(letters)}
    return torch.tensor([numbers.get(letter, 95) for letter in whole])


def digits_loss(width: int, rate: float, parametrization: str, seed: int) -> float:
    """Return the mean loss of the last ten of 120 steps."""
    torch.manual_seed(0)
    base, model = Mlp(64), Mlp(width)
    transfer = Transfer(model, base, parametrization=parametrization, optimizer="adam", kinds={"6.*": "output"})
    inputs, classes = digits()

    def loss(generator: torch.Generator) -> Tensor:
        at = torch.randint(len(inputs), (128,), generator=generator)
        return nn.functional.cross_entropy(model(inputs[at]), classes[at])

    return trained(model, transfer, torch.optim.Adam, loss, rate, seed, 40 if QUICK else 120)


def text_loss(width: int, rate: float, parametrization: str, seed: int) -> float:
    """Return the mean loss of the last ten of 80 steps."""
    torch.manual_seed(0)
    base, model = Encoder(64, tokens=96), Encoder(width, tokens=96)
    transfer = Transfer(model, base, parametrization=parametrization, kinds={"positions": "input"})
    tokens = text()

    def loss(generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(tokens) - 65, (4,), generator=generator)
        batch = torch.stack([tokens[at : at + 65] for at in starts])
        return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    return trained(model, transfer, torch.optim.AdamW, loss, rate, seed, 30 if QUICK else 80)


def trained(
    model: nn.Module, transfer: Transfer, optimizer: Any, loss: Callable[[torch.Generator], Tensor], rate: float,
    seed: int, steps: int,
) -> float:  # fmt: skip
    """Return the mean loss of the last ten steps, warmed up for ten and falling to zero."""
    torchinit.initialize(model, transfer.recipe, seed=seed, stats=False)
    generator = torch.Generator().manual_seed(seed)
    last: list[float] = []
    with transfer.apply():
        made = optimizer(transfer.param_groups(lr=rate))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            made, lambda step: min(1.0, (step + 1) / 10, (steps - step) / (steps - 10))
        )
        for _ in range(steps):
            made.zero_grad()
            value = loss(generator)
            value.backward()
            made.step()
            schedule.step()
            last.append(float(value.detach()))
    mean = sum(last[-10:]) / 10
    return mean if math.isfinite(mean) else math.inf


def swept(name: str, loss: Callable[..., float], exponents: Sequence[int], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Yield a row for each width: the losses over the rates, where the best is, and how far from that of the base.

    ``seeds`` says how many there are at each width. Above the base's width the search goes from the best rate of the
    last width as far as it has to, so that not all of the grid is measured.
    """
    lines = {}
    for parametrization in ("standard", "mup"):
        best, start = None, None
        for width, number in zip(SWEEP, seeds, strict=False):

            def mean(power: int, width: int = width, number: int = number, name: str = parametrization) -> float:
                return sum(loss(width, 2.0**power, name, seed) for seed in range(number)) / number

            losses = searched(mean, exponents, start)
            start, place = vertex(losses)
            best = place if best is None else best
            cells = [f"{losses[each]:.4f}" if each in losses else "-" for each in exponents]
            yield [parametrization, str(width), *cells, f"2^{place:.1f}", f"{place - best:+.1f}"]
            print(*cells, flush=True)
            low = min(losses.values())
            lines[f"{parametrization} {width}"] = tuple(losses.get(each, math.nan) / low - 1 for each in exponents)
    if "--write" in sys.argv:
        FIGURES.mkdir(exist_ok=True)
        rates = tuple(2.0**power for power in exponents)
        places = tuple(f"2^{power}" for power in exponents)
        title = f"The loss above its lowest, over the learning rate: {name}"
        series = tuple(Series(label, values, dashed="standard" in label) for label, values in lines.items())
        figure = Figure(name, title, places, series, "learning rate of the base", sizes=rates)
        (FIGURES / f"rates_{name}.svg").write_text(drawn_to_file(figure), "utf-8")


def searched(mean: Callable[[int], float], exponents: Sequence[int], start: int | None) -> dict[int, float]:
    """Return the losses over the grid, or from a start on until the lowest has a neighbour on each side."""
    losses = {power: mean(power) for power in exponents if start is None or abs(power - start) <= 1}
    while True:
        power = min(losses, key=lambda each: losses[each])
        missing = [each for each in (power - 1, power + 1) if each in exponents and each not in losses]
        if not missing:
            return losses
        losses |= {each: mean(each) for each in missing}


def vertex(losses: dict[int, float]) -> tuple[int, float]:
    """Return the power of the lowest loss, and that of the parabola through it and its neighbours."""
    power = min(losses, key=lambda each: losses[each])
    if power - 1 not in losses or power + 1 not in losses:
        return power, float(power)
    left, middle, right = losses[power - 1], losses[power], losses[power + 1]
    return power, power + (left - right) / (2 * (left - 2 * middle + right))


COORDINATES = ["net", "parametrization", "flat", "undecided", "wrong", "steepest"]
RATES = ["parametrization", "width"]
PARTS: dict[str, tuple[list[str], Callable[[], Iterator[list[str]]]]] = {
    "width": (COORDINATES, over_width),
    "depth": (COORDINATES, over_depth),
    "digits": (
        [*RATES, *(f"2^{power}" for power in range(-9, -2)), "best", "moves"],
        lambda: swept("digits", digits_loss, range(-9, -2), [SEEDS] * 4),
    ),
    "text": (
        [*RATES, *(f"2^{power}" for power in range(-9, -3)), "best", "moves"],
        lambda: swept("text", text_loss, range(-9, -3), (2, 2, 1, 1)),
    ),
}


def main() -> None:
    """Measure what the command line names."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in [each for each in sys.argv[1:] if not each.startswith("--")] or PARTS:
        head, rows = PARTS[name]
        begun = time.perf_counter()
        measured = [*rows()]
        table = f"```text\n{format_table(head, measured)}\n```"
        print(f"{table}\n{name}: {time.perf_counter() - begun:.0f} s")
        if "--write" in sys.argv:
            written(name, table)


def written(name: str, table: str) -> None:
    """Put a table between its marks on the page."""
    begin, end = f"<!-- measured {name}: begin -->", f"<!-- measured {name}: end -->"
    page = PAGE.read_text("utf-8")
    before, rest = page.split(begin)
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}", "utf-8")


if __name__ == "__main__":
    main()
