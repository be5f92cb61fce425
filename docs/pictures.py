"""Pictures: what torchinit prints, run for real and drawn as a terminal shows it; one SVG a picture, in docs/pictures.

    ./dev pictures          # makes them all anew, in the environment of the peers, which has transformers

A picture is text in an SVG: it needs no font of its own, loads nothing, and turns dark where the reader's system is.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from html import escape, unescape
from pathlib import Path

import torch
from torch import nn

import torchinit
from torchinit.cli import main

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


PICTURES: dict[str, tuple[Callable[[], str], str]] = {
    "gpt2": (plan_and_report, "GPT-2 small"),
    "plan": (plan, "A plan"),
    "report": (report, "A report"),
    "diff": (diff, "Two recipes compared"),
    "check": (check, "What is wrong with a start"),
    "trace": (trace, "What other people's code writes"),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the libraries that are shown
    for name in sys.argv[1:] or PICTURES:
        make, title = PICTURES[name]
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.svg").write_text(drawn(make(), title), "utf-8")
