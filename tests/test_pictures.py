"""Pictures: drawn as they are printed, harmless to show, each on a page; the peers' tests keep them up to date."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HARMLESS = {"svg", "title", "style", "rect", "path", "circle", "text", "g", "tspan"}


def pictures() -> ModuleType:
    """Return docs/pictures.py, which is a script."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PICTURES = pictures()


def test_there_is_one_for_each_name_and_no_other() -> None:
    assert {path.stem for path in (ROOT / "docs/pictures").iterdir()} == {*PICTURES.PICTURES, *PICTURES.FIGURES}


@pytest.mark.parametrize("name", [*PICTURES.PICTURES, *PICTURES.FIGURES])
def test_it_loads_nothing_and_stands_on_a_page(name: str) -> None:
    root = ET.fromstring((ROOT / f"docs/pictures/{name}.svg").read_text("utf-8"))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= HARMLESS
    attributes = {attribute for element in root.iter() for attribute in element.attrib}
    assert not any("href" in attribute or attribute.startswith("on") for attribute in attributes)
    pages = [ROOT / "README.md", ROOT / "README.zh-CN.md", *ROOT.glob("docs/**/*.md")]
    assert any(f"pictures/{name}.svg" in page.read_text("utf-8") for page in pages)


def test_every_character_keeps_its_column() -> None:
    text = "$ torchinit plan\n\na<b>  1 & 2\n      third\n~ wte.weight  N(0, 1) → N(0, 2)\n"
    svg = PICTURES.drawn(text, "a <title>")
    assert PICTURES.shown(svg) == "$ torchinit plan\na<b>  1 & 2\nthird\n~ wte.weight  N(0, 1) → N(0, 2)"
    texts = [e for e in ET.fromstring(svg).iter() if e.tag.endswith("text") and "textLength" in e.attrib]
    columns = {e.text: (float(e.attrib["x"]) - PICTURES.EDGE) / PICTURES.WIDTH for e in texts}
    assert columns["1 & 2"] == len("a<b>  ")
    assert columns["third"] == 6
    rows = {e.text: (int(e.attrib["y"]) - int(texts[0].attrib["y"])) / PICTURES.HEIGHT for e in texts}
    assert (rows["1 & 2"], rows["third"]) == (2, 3)


def test_lines_that_mean_something_are_marked() -> None:
    svg = PICTURES.drawn("$ command\n+ new\n- old\n~ other\nplain\n", "marks")
    marks = [e.get("class") for e in ET.fromstring(svg).iter() if "textLength" in e.attrib]
    assert marks == ["bold", "good", "bad", "change", None]
