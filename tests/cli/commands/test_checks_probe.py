"""The command `probe`: what it builds and reads, what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.given import Write
from tests.html import check
from tests.linting.sarif_schema import assert_sarif
from torchinit.cli import main

MODELS = """
import torch
from torch import nn

def make(depth=12, std=0.02):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return model

def batch():
    return torch.ones(8, 16) + torch.eye(8, 16), torch.arange(8) % 4

def wide(width, classes=4):
    model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, classes))
    nn.init.zeros_(model[2].weight)
    return model

class Two(nn.Linear):
    def __init__(self):
        super().__init__(16, 4)

    def forward(self, left, right):
        raise ValueError("none will do")
"""

RECIPE = '[[rules]]\ntype = "Kaiming"\nmode = "fan_in"\nlayer = "Linear"\n'


@pytest.fixture(autouse=True)
def _here(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("net.py", MODELS)
    write("r.toml", RECIPE)
    monkeypatch.chdir(tmp_path)


def test_a_bad_start_and_the_recipe_that_mends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "net.py:make"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("✗ Vanishing signal: ")
    assert '{type = "Kaiming", mode = "fan_in", layer = "Linear"}' in out
    assert "made: 64 samples of random vectors of 16" in out
    assert main(["probe", "net.py:make", "--recipe", "r.toml"]) == 0


def test_json_and_sarif(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "net.py:make", "--json", "--optimizer", "SGD", "--lr", "0.1", "--dtype", "float16"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["runs"][0]["dtype"] == "float16"
    assert len(data["runs"][0]["losses"]) == 2
    assert main(["probe", "net.py:make", "--sarif"]) == 1
    log = json.loads(capsys.readouterr().out)
    assert_sarif(log)
    assert log["runs"][0]["results"][0]["ruleId"] == "TI801"


def test_a_batch_is_a_file_or_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.randn(9, 16), "x.pt")
    for batch, said in (("net.py:batch", "on the given batch, its last item as the target"), ("x.pt", "on the given")):
        assert main(["probe", "net.py:make", "--batch", batch, "--arg", "std=0.35"]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net.py:Two"], "Two takes left, right, and what was made for it does not fit; give batch="),
        (["net.py:Two", "--batch", "net.py:batch"], "the forward of Two raised"),
        (["net.py:make", "--batch", "none.pt"], "--batch: there is no file 'none.pt'"),
        (["net.py:make", "--batch", "net.py"], "--batch: net.py cannot be read"),
        (["net.py:make", "--optimizer", "AdamV"], "--optimizer: torch.optim has no 'AdamV'; did you mean 'Adam"),
    ],
)
def test_what_cannot_be_run_is_exit_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *words]) == 2
    assert message in capsys.readouterr().err


def test_checks_of_the_probe_are_explained_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "TI801"]) == 0
    assert "TI801 vanishing-signal: The part of the activations" in capsys.readouterr().out
    assert main(["list", "checks"]) == 0
    assert "TI818 huge-gradients" in capsys.readouterr().out


def test_over_widths_and_depths(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--batch", "net.py:batch", "--seeds", "1", "--steps", "2"]
    assert main(["probe", "net.py:wide", "--widths", "16,256", "--lr", "0.01", *common]) == 1
    assert "grows: 2 over width 16 to 256, 2 steps, 1 seed" in capsys.readouterr().out
    named = ["--widths", "width=8,16", "--arg", "classes=6", "--optimizer", "SGD", "--lr", "1e-6", "--json"]
    main(["probe", "net.py:wide", *named, *common])
    assert json.loads(capsys.readouterr().out)["sizes"] == [8, 16]
    main(["probe", "net.py:make", "--depths", "depth=2,4", *common])
    assert "over depth 2 to 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--widths", "a,b"], "--widths takes whole numbers, as in 64,128 or n_embd=64,128, but got 'a,b'"),
        (["--widths", "8"], "a slope takes two sizes at least"),
        (["--widths", "8,16", "--depths", "2,4"], "over widths or over depths"),
        (["--steps", "-1"], "--steps and --limit are numbers from 0 on"),
        (["--limit", "nan"], "--steps and --limit are numbers from 0 on"),
    ],
)
def test_sizes_that_are_none(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "net.py:wide", *words]) == 2
    assert text in capsys.readouterr().err


def test_a_page_beside_another_start_with_what_lint_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "net.py:make", "--html", "page.html", "--beside", "r.toml"]) == 1
    text = check(Path("page.html").read_text("utf-8")).text
    assert "Vanishing signal" in text
    assert "compared: r.toml" in text
    assert "TI408" in text  # of lint
    assert capsys.readouterr().out.startswith("✗ Vanishing signal: ")
    assert main(["probe", "net.py:make", "--recipe", "r.toml", "--html", "page.html"]) == 0
    text = check(Path("page.html").read_text("utf-8")).text
    assert "Sequential · r.toml · seed 0" in text
    assert "TI408" not in text  # of the start that the recipe gives


def test_a_bar_shows_on_a_terminal_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--widths", "16,64", "--seeds", "1", "--steps", "1"]
    calls = [["net.py:make", "--batch", "net.py:batch"], ["net.py:wide", *sizes]]
    for more in calls:
        main(["probe", *more])
        assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for more, text in zip(calls, ("measuring", "100%"), strict=True):
        main(["probe", *more])
        assert text in capsys.readouterr().err


def test_a_page_of_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--widths", "16,64", "--seeds", "1", "--steps", "2", "--html", "page.html"]
    main(["probe", "net.py:wide", *sizes])
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.split(" ", 1)[1] in check(Path("page.html").read_text("utf-8")).text


def test_pages_that_cannot_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["probe", "net.py:make", "--beside", "r.toml"]) == 2
    assert "--beside is for the page of --html" in capsys.readouterr().err
    assert main(["probe", "net.py:Two", "--html", "no/page.html"]) == 2
    assert "--html: there is no folder 'no'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["probe", "net.py:Two", "--html", "page.html"]) == 2
    assert "pip install 'torchinit[report]'" in capsys.readouterr().err  # before the model is run
    assert main(["apply", "net.py:make", "r.toml", "-o", "x.safetensors", "--html", "page.html"]) == 2
    assert not Path("x.safetensors").exists()


def test_the_page_of_a_run() -> None:
    assert main(["apply", "net.py:make", "r.toml", "-o", "x.safetensors", "--html", "page.html"]) == 0
    assert "Sequential with r.toml, seed 0" in check(Path("page.html").read_text("utf-8")).text
