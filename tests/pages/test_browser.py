"""A browser: a page opened from its file, with the network off; sorted, filtered, narrow, dark, in print."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from functools import lru_cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from torchinit import probe
from torchinit.probing.result import page_of

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium here"),
    pytest.mark.slow("a browser is started"),
]
COMMAND = [
    BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr",
    "--virtual-time-budget=5000",
]  # fmt: skip
MARKUP = "<img src=x onerror=alert(1)>"
# What a reader does, and what is then to be seen; it runs on the page, and again on one of 400 pixels inside of it.
DRIVER = """<script>
const seen = {errors, width: innerWidth, wide: document.documentElement.scrollWidth};
const table = document.querySelector("table.sortable"), body = table.tBodies[0], plan = [...body.rows];
const shown = column => [...body.rows].filter(row => !row.hidden).map(row => row.cells[column].textContent.trim());
const button = text => [...table.tHead.querySelectorAll("button")].find(each => each.textContent === text);
const field = document.querySelector(`[aria-controls="${table.id}"]`);
const count = field.parentElement.querySelector("output");
const filter = text => { field.value = text; field.dispatchEvent(new Event("input")); return [shown(0), count.value]; };
const press = text => {
  button(text).focus();
  document.activeElement.click();
  const head = document.activeElement.parentElement;
  return [shown(0), shown([...head.parentElement.cells].indexOf(head)), head.getAttribute("aria-sort")];
};
seen.plan = shown(0);
seen.shape = [press("shape"), press("shape"), press("shape")];
seen.name = press("tensor");
press("tensor"), press("tensor");
seen.filters = ["bias", "BIAS 1.", "no such", ""].map(filter);
seen.hidden = getComputedStyle(field.parentElement).display;
seen.loaded = performance.getEntriesByType("resource").length;
seen.background = getComputedStyle(document.body).backgroundColor;
seen.focus = [...document.querySelectorAll("input,button,summary,[tabindex]")].every(each => each.tabIndex === 0);
const done = () => document.documentElement.dataset.seen = JSON.stringify(seen);
if (window === top) {
  const frame = document.createElement("iframe");
  frame.style.cssText = "width:400px;height:800px;border:0";
  frame.onload = () => { seen.narrow = JSON.parse(frame.contentDocument.documentElement.dataset.seen); done(); };
  frame.srcdoc = document.documentElement.outerHTML;
  document.body.append(frame);
} else done();
</script>"""
LISTENER = """<script>
const errors = [];
addEventListener("error", event => errors.push(event.message ?? String(event.target)), true);
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
</script>"""


class Net(nn.Module):
    """Layers of several kinds, whose names are markup."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8, 16, 24, 32, 20, 12, 10, 4]
        names = [MARKUP, *map(str, range(1, 7))]
        layers = {name: nn.Linear(a, b) for name, a, b in zip(names, widths, widths[1:], strict=False)}
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x).relu()
        return x


@lru_cache
def page() -> str:
    torch.manual_seed(0)
    model = Net()
    recipe = [{"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}]
    result = probe(model, torch.randn(64, 8), recipe=recipe)
    return page_of(result, probe(model, torch.randn(64, 8)), torchinit.lint(model)).html()


def opened(folder: Path, *flags: str) -> dict[str, Any]:
    """What is seen on the page: opened from a file, by a browser that has no network, and that says nothing."""
    file = folder / "page.html"
    file.write_text(page().replace("<main>", f"{LISTENER}<main>", 1).replace("</body>", f"{DRIVER}</body>"), "utf-8")
    command = [*COMMAND, f"--user-data-dir={folder / 'profile'}", "--dump-dom", *flags, file.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in run.stderr
    found = re.search(r'data-seen="([^"]*)"', run.stdout)
    assert found is not None
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


def elements(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


def test_it_opens_sorts_and_filters(tmp_path: Path) -> None:
    seen = opened(tmp_path)
    for where in (seen, seen["narrow"]):
        assert where["errors"] == []
        assert where["loaded"] == 0
        assert where["focus"] is True
        assert where["hidden"] == "flex"  # the field, which is hidden where there are no scripts
        assert where["wide"] <= where["width"]
    assert seen["narrow"]["width"] == 400
    assert len(seen["plan"]) == 14
    assert any(MARKUP in name for name in seen["plan"])
    (_, up, first), (_, down, second), (again, _, third) = seen["shape"]
    sizes = [*map(elements, up)]
    assert sizes == sorted(sizes) != [*reversed(sizes)]
    assert [*map(elements, down)] == sorted(sizes, reverse=True)
    assert (first, second, third) == ("ascending", "descending", None)
    assert again == seen["plan"]
    assert sorted(seen["name"][0]) == sorted(seen["plan"])
    assert seen["name"][2] == "ascending"
    bias, one, none, every = seen["filters"]
    assert bias == [[name for name in seen["plan"] if "bias" in name], "7 of 14 lines"]
    assert one == [["layers.1.bias"], "1 of 14 lines"]
    assert none == [[], "0 of 14 lines"]
    assert every == [seen["plan"], "14 of 14 lines"]


def test_it_is_light_or_dark_as_the_system_is(tmp_path: Path) -> None:
    grounds = []
    for scheme in ("1", "0"):
        folder = tmp_path / scheme
        folder.mkdir()
        grounds.append(opened(folder, f"--blink-settings=preferredColorScheme={scheme}")["background"])
    assert grounds == ["rgb(252, 252, 250)", "rgb(20, 22, 23)"]


def test_it_prints(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(), "utf-8")
    flags = f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={tmp_path / 'page.pdf'}"
    command = [*COMMAND, *flags, (tmp_path / "page.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 6
