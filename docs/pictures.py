"""Pictures: what torchinit prints and draws, run for real; one SVG each, in docs/pictures.

    ./dev pictures          # makes them all anew, in the environment of the peers, which has transformers

A picture is text in an SVG: it needs no font of its own, loads nothing, and turns dark where the reader's system is.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from html import escape, unescape
from pathlib import Path

import torch
from torch import nn

import torchinit
from torchinit import noise
from torchinit.cli import main
from torchinit.pages import Page, drawing
from torchinit.probing import Probe
from torchinit.probing.result import page_of

FOLDER = Path(__file__).parent / "pictures"
ROOT = FOLDER.parents[1]

WIDTH, HEIGHT, EDGE, BAR = 8.0, 17, 16, 28  # of a character, of a line, of the frame, of its bar, in pixels
STYLE = """\
svg { color-scheme: light dark }
.page { fill: #ffffff; stroke: #d0d7de }
.bar { fill: #f0f2f5 } .knob { fill: #c9d1d9 }
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328 }
.bold { font-weight: 700 } .dim { fill: #656d76 } .title { fill: #656d76; text-anchor: middle }
.good { fill: #116329 } .bad { fill: #b3261e } .change { fill: #7a5100 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; stroke: #30363d }
.bar { fill: #161b22 } .knob { fill: #30363d }
text { fill: #e6edf3 } .dim, .title { fill: #8b949e }
.good { fill: #7ee787 } .bad { fill: #ff9a93 } .change { fill: #e3b341 }
}"""
# What makes a line a kind of its own; the first that fits counts.
KINDS = {
    "bold": r"\$ |>>> ",
    "good": r" *\+ ",
    "bad": r" *- |.*\berror\b",
    "change": r" *~ |.*\bwarning\b",
    "dim": r" *(name|tensor|code|site|kind|operation) ",
}


def drawn(text: str, title: str) -> str:
    """Return the text as the SVG of a terminal's window."""
    lines = text.splitlines()
    width = 2 * EDGE + WIDTH * max(map(len, lines))
    height = BAR + 2 * EDGE + HEIGHT * len(lines)
    size = f'viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}"'
    frame = f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}\n</style>",
        f'{frame} class="page"/>',
        f'<path class="bar" d="M1 {BAR} V8 a7 7 0 0 1 7 -7 H{width - 8:g} a7 7 0 0 1 7 7 V{BAR} z"/>',
        *(f'<circle class="knob" cx="{EDGE + 18 * index}" cy="{BAR / 2 + 1}" r="5"/>' for index in range(3)),
        f'<text class="title" x="{width / 2:g}" y="{BAR / 2 + 5}">{escape(title)}</text>',
    ]
    for number, line in enumerate(lines, 1):
        parts += cells(line, BAR + EDGE + HEIGHT * number - 5)
    return "\n".join([*parts, "</svg>", ""])


def cells(line: str, y: int) -> Iterator[str]:
    """Yield the cells of a line, each held to its columns whatever font there is."""
    kind = next((name for name, pattern in KINDS.items() if re.match(pattern, line)), "")
    mark = f' class="{kind}"' if kind else ""
    for cell in re.finditer(r"\S+(?: \S+)*", line):
        x, length = EDGE + WIDTH * cell.start(), WIDTH * len(cell[0])
        yield f'<text{mark} x="{x:g}" y="{y}" textLength="{length:g}">{escape(cell[0], quote=False)}</text>'


def shown(svg: str) -> str:
    """Return the text that a picture shows, line by line, without its columns."""
    lines: dict[str, list[str]] = {}
    for y, text in re.findall(r'<text(?: class="\w+")? x="[\d.]+" y="(\d+)" textLength="[\d.]+">(.*?)</text>', svg):
        lines.setdefault(y, []).append(unescape(text))
    return "\n".join("  ".join(line) for line in lines.values())


# --- what is shown ---------------------------------------------------------------------------------------------------


def gpt2(device: str) -> nn.Module:
    """Return GPT-2 small as transformers builds it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(ROOT / "examples/gpt2/config.json"))
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def plan_and_report() -> str:
    """Return both, as README shows them."""
    return f"{plan()}\n\n{report()}"


def plan() -> str:
    """Return the plan of GPT-2."""
    made = torchinit.plan(gpt2("meta"), ROOT / "examples/gpt2.toml")
    return f'>>> print(torchinit.plan(gpt2, "gpt2.toml"))\n{made}'


def report() -> str:
    """Return the report of GPT-2's start."""
    made = torchinit.initialize(gpt2("cpu"), ROOT / "examples/gpt2.toml", seed=0)
    return f'>>> print(torchinit.initialize(gpt2, "gpt2.toml", seed=0))\n{made}'


def diff() -> str:
    """Return how the starts of two recipes differ."""
    return command("torchinit diff examples/gpt2.toml general --model transformers:examples/gpt2/config.json")


def check() -> str:
    """Return what is wrong with torch's own transformer."""
    return command("torchinit check torch.nn:Transformer --arg batch_first=true")


class Tower(nn.Module):
    """Blocks, and a last layer that is meant to be silent at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.out = nn.Linear(64, 64)

    def init_weights(self) -> None:
        """Undo for the last layer what was meant."""
        nn.init.zeros_(self.out.weight)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)


def trace() -> str:
    """Return what a model's own code writes: its last layer is zeroed, and then drawn."""
    model = Tower()
    with torchinit.trace(model) as seen:
        model.init_weights()
    return f">>> with torchinit.trace(model) as seen:\n...     model.init_weights()\n>>> print(seen)\n{seen}"


def command(line: str) -> str:
    """Return a command and what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(ROOT):
        main(shlex.split(line)[1:])
    return f"$ {line}\n{out.getvalue()}"


def probe() -> str:
    """Return the verdict on a deep net whose signal vanishes."""
    lines = command("torchinit probe docs/pictures.py:vanishing --batch docs/pictures.py:vectors").split("\n")
    return "\n".join(textwrap.fill(line, 110, subsequent_indent="    ") if len(line) > 110 else line for line in lines)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def vanishing(std: float = 0.02) -> nn.Module:
    """Return thirty layers with ReLU, of N(0, 0.02)."""
    layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return model


def vectors() -> torch.Tensor:
    """Return inputs for it."""
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@cache
def gpt2_page() -> Page:
    """Return the page of GPT-2's start, beside one of N(0, 1) tables and N(0, 0.08) matrices."""
    ids = torch.randint(50257, (4, 64), generator=torch.Generator().manual_seed(0))
    loud = [("Conv1D", 0.08), ("Embedding", 1.0)]
    other: list[dict[str, object]] = [{"type": "Normal", "std": std, "layer": layer} for layer, std in loud]
    other.append({"type": "Neutral", "layer": "LayerNorm"})

    def probed(recipe: object, name: str) -> Probe:
        made = torchinit.probe(gpt2("cpu"), {"input_ids": ids}, recipe=recipe, limit=600)
        return replace(made, start=made.start and replace(made.start, recipe=name))

    return page_of(probed(ROOT / "examples/gpt2.toml", "gpt2.toml"), probed(other, "N(0, 1) tables"))


def by_depth(page: Page) -> str:
    """Return a page's first two figures side by side, below its verdict."""
    parts = [(figure.title, figure.caption, drawing.draw(figure)) for figure in page.panels[0].figures[:2]]
    return side_by_side(parts, (drawing.WIDTH, drawing.HEIGHT), page.subject, page.verdict)


def probe_gpt2() -> str:
    """Return the signal and the gradient of two starts of GPT-2."""
    return by_depth(gpt2_page())


def probe_deep() -> str:
    """Return those of a net whose signal vanishes, beside its remedy."""
    with noise.seeded_generators(0):
        model = vanishing()
    mended = torchinit.probe(model, vectors(), recipe=[{"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}])
    mended = replace(mended, start=mended.start and replace(mended.start, recipe="Kaiming"))
    return by_depth(page_of(torchinit.probe(model, vectors()), mended))


def weights() -> str:
    """Return the histograms of GPT-2's weights, each with the density that was planned."""
    several = gpt2_page().distributions
    ranges = drawing.common_range(several)
    drawn = (drawing.draw_distribution(each, *ranges[each.title]) for each in several)
    names = (each.title.removeprefix("transformer.") for each in several)
    parts = [*zip(names, (each.caption for each in several), drawn, strict=True)]
    return side_by_side(parts, drawing.SMALL, "GPT-2 small: weights as drawn, against the plan", columns=3)


def coordinates() -> str:
    """Return how what five steps change goes with the width, in the usual parametrization."""

    def make(width: int) -> nn.Module:
        layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.zeros_(layers[-1].weight)
        return nn.Sequential(*layers)

    return torchinit.coord_check(make, widths=(64, 128, 256, 512, 1024), lr=3e-3, limit=600).to_svg()


def side_by_side(
    parts: Sequence[tuple[str, str, str]], size: tuple[int, int], title: str, caption: str = "", columns: int = 2
) -> str:
    """Return drawings, each below its title and caption, as one that is below a title of its own."""
    wide, tall = max(size[0], 230) + 24, size[1] + 56
    inner = []
    for at, (name, below, svg) in enumerate(parts):
        x, y = at % columns * wide, at // columns * tall
        inner.append(f'<text class="title" x="{x + 8}" y="{y + 24}">{escape(name)}</text>')
        inner.append(f'<text x="{x + 8}" y="{y + 42}">{escape(below)}</text>')
        place = f'<svg x="{x + 8}" y="{y + 50}" width="{size[0]}" height="{size[1]}" '
        inner.append(svg.replace("<svg ", place, 1))
    height = -(-len(parts) // columns) * tall
    box = f'<svg viewBox="0 0 {columns * wide} {height}">{"".join(inner)}</svg>'
    return drawing.standalone(box, columns * wide, height, title, caption)


PICTURES: dict[str, tuple[Callable[[], str], str]] = {
    "gpt2": (plan_and_report, "GPT-2 small"),
    "plan": (plan, "A plan"),
    "report": (report, "A report"),
    "diff": (diff, "Two recipes compared"),
    "check": (check, "What is wrong with a start"),
    "trace": (trace, "What other people's code writes"),
    "probe": (probe, "Is this start any good?"),
}
FIGURES: dict[str, Callable[[], str]] = {
    "probe_gpt2": probe_gpt2,
    "probe_deep": probe_deep,
    "weights": weights,
    "coordinates": coordinates,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the libraries that are shown
    for name in sys.argv[1:] or [*PICTURES, *FIGURES]:
        FOLDER.mkdir(exist_ok=True)
        svg = FIGURES[name]() if name in FIGURES else drawn(PICTURES[name][0](), PICTURES[name][1])
        (FOLDER / f"{name}.svg").write_text(svg, "utf-8")
