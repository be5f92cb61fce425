"""The command `transfer`: the base it builds or reads, the table it prints, and its mistakes."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from torchinit.cli import _parser, main
from torchinit.transfer.table import PARAMETRIZATIONS, Decay, Form

NET = """
from torch import nn

def net(width=64, layers=1):
    sizes = [(8, width), *[(width, width)] * layers, (width, 4)]
    return nn.Sequential(*[each for a, b in sizes for each in (nn.Linear(a, b), nn.ReLU())][:-1])
"""
WIDE = ["transfer", "net.py:net", "--arg", "width=256"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    (tmp_path / "r.toml").write_text('[[rules]]\ntype = "Normal"\nstd = 0.1\nname = "*.weight"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_the_table_and_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WIDE, "--base", "net.py:net", "--lr", "3e-3", "--weight-decay", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mup (table8) for adamw; Yang et al. 2022, table 8")
    assert "2.weight   hidden  64x64 -> 256x256  0.5    1     0.25  0.25   4\n" in out
    assert "readout x 0.25: input of 4\n" in out
    assert "2.weight                             adamw      0.00075  0.4           2.5e-09\n" in out
    assert main([*WIDE, "--base-width", "64", "--lr", "3e-3", "--weight-decay", "0.1"]) == 0
    assert capsys.readouterr().out == out


def test_json_and_a_saved_base(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--base", "net.py:net", "--base-arg", "width=32", "--recipe", "r.toml", "--save-base", "base.json"]
    assert main([*WIDE, *options, "--json"]) == 0
    out = capsys.readouterr().out
    data = json.loads(out)
    assert data["format"] == "torchinit-transfer-1" and data["settings" if "settings" in data else "form"]
    assert [each["lr"] for each in data["groups"]] == [1.0, 0.125, 1.0]
    assert "0.0353553" in json.dumps(data["recipe"])
    assert main([*WIDE, "--base", "base.json", "--json"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--base", "net.py:net", "--base-arg", "layers=2"], 1, "another structure: this model has no '6.weight'"),
        (["--base", "net.py:net", "--optimizer", "rprop"], 1, "no table of a parametrization is published for"),
        (["--base", "nett.py:net"], 2, "there is no file 'nett.py'; did you mean 'net.py'?"),
        (["--base-width", "0"], 1, "base_width is a whole number from 1 on"),
        (["--base-width", "64", "--lr", "nan"], 1, "lr is a number from 0 on, but got nan"),
        ([], 2, "one of the arguments --base --base-width is required"),
        (["--base", "net.py:net", "--kinds", "input"], 2, "--kinds takes GLOB=KIND, such as positions=input, but got"),
        (["--base", "net.py:net", *["--kinds", "a=input"] * 2], 2, "--kinds a is given twice"),
        (["--base", "net.py:net", "--kinds", "0.*=inptu"], 1, "but got 'inptu'; did you mean 'input'?"),
        (["--base", "net.py:net", "--branches", "x.*"], 1, "branches"),
        (["--base", "net.py:net", "--set", "std=1"], 2, "--set goes with --recipe"),
        (["--base-width", "64", "--base-arg", "width=32"], 2, "--base-arg goes with --base MODEL"),
        (["--base-width", "64", "--adam-lr", "0.1"], 2, "--adam-lr goes with --optimizer muon"),
        (["--base-width", "64", "--optimizer", "sgd", "--eps", "0"], 2, "--eps goes with --optimizer adamw, adam or"),
        (["--base", "net.py:net", "--wd", "square"], 2, "invalid choice: 'square'"),
    ],
)
def test_mistakes(options: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        assert main([*WIDE, *options]) == code
    assert text in capsys.readouterr().err


def test_a_larger_base_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = "the base is larger than this model: what was found there is scaled down"
    assert main([*WIDE, "--base", "net.py:net", "--base-arg", "width=512"]) == 0
    assert told in capsys.readouterr().out
    assert main([*WIDE, "--base", "net.py:net", "--base-arg", "width=256", "--optimizer", "Muon", "--eps", "1e-9"]) == 0
    assert told not in capsys.readouterr().out


def test_a_saved_base_has_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WIDE, "--base", "net.py:net", "--save-base", "base.json"]) == 0
    assert main([*WIDE, "--base", "base.json", "--recipe", "r.toml"]) == 2
    assert "a saved base has its start with it" in capsys.readouterr().err


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "depth_mup"]) == 0
    out = capsys.readouterr().out
    assert "https://arxiv.org/abs/2310.02244" in out and "hidden  r_i^-1/2  1       r_i^-1           r_o/r_i" in out
    assert "α = 0.5: each residual branch x k^-α" in out
    assert main(["explain", "missing-multiplier"]) == 0
    assert "transfer.lint(model, optimizer)" in capsys.readouterr().out


def test_the_command_has_every_parametrization_and_form() -> None:
    """It names them itself, the usual one first."""
    commands = next(each for each in _parser(["transfer"])._actions if isinstance(each, argparse._SubParsersAction))
    choices = {action.dest: set(action.choices or ()) for action in commands.choices["transfer"]._actions}
    assert choices["parametrization"] == {*PARAMETRIZATIONS}
    assert choices["form"] == {*get_args(Form)}
    assert choices["wd"] == {*get_args(Decay)}


BLOCKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

class Net(nn.Module):
    def __init__(self, width=64, depth=2):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, width, 3))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)
"""


def test_what_nobody_can_tell_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "blocks.py").write_text(BLOCKS, encoding="utf-8")
    words = ["transfer", "blocks.py:Net", "--arg", "width=256", "--arg", "depth=4", "--base", "blocks.py:Net", "--json"]
    words += ["--parametrization", "completep", "--optimizer", "muon", "--lr", "0.02", "--weight-decay", "0.1"]
    words += ["--wd", "sqrt", "--zero-readout", "--adam-lr", "0.004", "--no-decay", "**.bias", "--recipe", "l.toml"]
    (tmp_path / "l.toml").write_text('[[rules]]\ntype = "LeCun"\nname = "**.weight"\n', encoding="utf-8")
    assert main(words) == 1
    assert "kinds={'table': 'input'}" in capsys.readouterr().err
    assert main([*words, "--kinds", "table=input", "--branches", "blocks.*.down"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in data["rows"]}
    assert rows["table"]["kind"] == "input" and data["wd"] == "sqrt"
    assert {each["module"] for each in data["multipliers"] if each["purpose"] == "branch"} == {
        f"blocks.{number}.down" for number in range(4)
    }
    groups = {name: each for each in data["groups"] for name in each["names"]}
    assert groups["head.bias"]["weight_decay"] == 0 and groups["head.weight"]["lr"] == 0.004
    hidden = groups["blocks.0.up.weight"]
    assert hidden["weight_decay"] == pytest.approx(0.1 * (hidden["lr"] / 0.02) ** -0.5)
    rules = {rule["where"]["globs"][0]: rule["init"] for rule in data["recipe"]["rules"]}
    assert rules["head.weight"] == {"type": "Constant", "val": 0.0}


def test_a_recipe_takes_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = 'arguments = { std = 0.1 }\n[[rules]]\ntype = "Normal"\nstd = "std"\nname = "*.weight"\n'
    Path("r.toml").write_text(recipe, encoding="utf-8")
    assert main([*WIDE, "--base", "net.py:net", "--recipe", "r.toml", "--set", "std=0.4", "--json"]) == 0
    rules = json.loads(capsys.readouterr().out)["recipe"]["rules"]
    assert [rule["init"] for rule in rules] == [{"type": "Normal", "std": std} for std in (0.4, 0.2, 0.4)]
