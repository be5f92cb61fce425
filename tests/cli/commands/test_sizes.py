"""The commands `grow` and `transfer`: the file, the account and the proof; the base, the table; what is refused."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from torchinit.cli import _parser, main
from torchinit.cli.models import build
from torchinit.transfer.table import PARAMETRIZATIONS, Decay, Form

NETS = """
from torch import nn


def encoder(depth=4, width=8, first=True):
    layer = nn.TransformerEncoderLayer(width, width // 4, 2 * width, norm_first=first, batch_first=True)
    blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(20, width), blocks, nn.Linear(width, 20))


def headed(width=8, heads=2):
    layer = nn.TransformerEncoderLayer(width, heads, 2 * width, norm_first=True, batch_first=True)
    blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(20, width), blocks, nn.Linear(width, 20))


class Scaled(nn.Sequential):
    def forward(self, ids):
        return super().forward(ids) * self[0].embedding_dim


def scaled(width=8):
    return Scaled(nn.Embedding(20, width), nn.Linear(width, 20))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("grown_nets.py").write_text(NETS, "utf-8")
    for name, factory, words in (
        ("old", "encoder", {}),
        ("post", "encoder", {"first": False}),
        ("scaled", "scaled", {}),
        ("headed", "headed", {}),
    ):
        model = build(f"grown_nets.py:{factory}", words, "cpu", seed=3)
        torch.save(model.state_dict(), f"{name}.pth")
    return tmp_path


def grow(*words: str) -> int:
    return main(["grow", *words])


INTO = ("--into", "grown_nets.py:encoder")


def test_deeper_and_wider_with_the_proof(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--arg", "depth=6", "--arg", "width=16", "--depth", "identity", "--width", "hyperclone")
    olds = ("--old-arg", "depth=4", "--old-arg", "width=8")
    assert grow("old.pth", *INTO, *options, "--proof", *olds, "-o", "new.safetensors") == 0
    printed = capsys.readouterr().out
    assert "promise: same function" in printed
    assert "the same function within 1e-05" in printed
    old, new = torch.load("old.pth", weights_only=True), load_file("new.safetensors")
    expected = old["1.layers.3.linear1.weight"].repeat(2, 2) / 2
    torch.testing.assert_close(new["1.layers.4.linear1.weight"], expected)
    assert not new["1.layers.5.linear2.weight"].any()


def test_a_student_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grow("old.pth", *INTO, "--arg", "depth=2", "--depth", "0,3", "-o", "new.safetensors", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["promise"], data["proof"], data["output"]) == ("none", None, "new.safetensors")
    old, new = torch.load("old.pth", weights_only=True), load_file("new.safetensors")
    assert torch.equal(new["1.layers.1.norm1.weight"], old["1.layers.3.norm1.weight"])


def test_what_promises_nothing_is_measured_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        grow("old.pth", *INTO, "--arg", "depth=8", "--depth", "stack", "--old-arg", "depth=4", "-o", "n.safetensors")
        == 0
    )
    assert "another function within 1e-05" in capsys.readouterr().out
    assert Path("n.safetensors").exists()


def test_a_broken_promise_leaves_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model whose code multiplies by its width, which no name tells."""
    words = ("scaled.pth", "--into", "grown_nets.py:scaled", "--arg", "width=16", "--width", "net2net")
    assert grow(*words, "--old-arg", "width=8", "-o", "new.safetensors") == 1
    assert "new.safetensors was not written: the promise is broken" in capsys.readouterr().out
    assert not Path("new.safetensors").exists()


@pytest.mark.parametrize(("heads", "holds"), [(4, True), (2, False)])
def test_a_promise_on_a_condition(heads: int, holds: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads of 4 in the file, which it does not tell: where they are of 8 in the model, it computes something else."""
    into = ("headed.pth", "--into", "grown_nets.py:headed", "--arg", "width=16", "--arg", f"heads={heads}")
    words = (*into, "--width", "hyperclone", "-o", "new.safetensors", "--force")
    assert grow(*words) == 0
    printed = capsys.readouterr().out
    told = f"promised only if heads are of {16 // heads} in the file, too"
    assert printed.index(told) < printed.index("promise: same function, if what is told above holds")
    assert grow(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["promise"] == "conditional"
    Path("new.safetensors").unlink()
    assert grow(*words, "--proof", "--old-arg", "width=8", "--old-arg", "heads=2") == (0 if holds else 1)
    assert Path("new.safetensors").exists() == holds


def test_noise_breaks_the_symmetry_and_the_promise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("old.pth", *INTO, "--arg", "width=16", "--width", "net2net", "--noise", "0.01", "-o", "new.safetensors")
    assert grow(*words) == 0
    assert "promise: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("old.pth", "-o", "x.safetensors"), "the model to make is needed: --into MODEL"),
        (("old.pth", *INTO, "-o", "x.pth"), "the output is a .safetensors file"),
        (("old.pth", *INTO, "--depth", "stak", "-o", "x.safetensors"), "did you mean 'stack'?"),
        (("old.pth", *INTO, "-o", "x.safetensors"), "say what grows: --depth, --width or both"),
        (("old.pth", *INTO, "--depth", "0,1,", "-o", "x.safetensors"), "layers are numbers from 0, or 'new'"),
        (
            ("old.pth", *INTO, "--depth", "0,new,1", "-o", "x.safetensors"),
            "--depth: a new block needs rules of its own",
        ),
        (("old.pth", *INTO, "--width", "net2net", "--noise", "-1", "-o", "x.safetensors"), "noise must be at least 0"),
        (("old.pth", *INTO, "--depth", "first", "--seed", "-1", "-o", "x.safetensors"), "a seed is at least 0"),
        (("old.pth", *INTO, "--depth", "first", "--atol", "nan", "-o", "x.safetensors"), "--atol must not be NaN"),
        (("old.pth", *INTO, "--width", "select", "--noise", "1", "-o", "x.safetensors"), "--noise goes with --width"),
        (("old.pth", *INTO, "--arg", "width=12", "--width", "hyperclone", "-o", "x.safetensors"), "whole multiple"),
        (("old.pth", *INTO, "--arg", "depth=2", "--depth", "0,7", "-o", "x.safetensors"), "there is no block 7"),
        (
            (
                "post.pth",
                *INTO,
                "--arg",
                "first=false",
                "--arg",
                "depth=5",
                "--depth",
                "identity",
                "-o",
                "x.safetensors",
            ),
            "post-norm",
        ),
        (
            ("old.pth", *INTO, "--arg", "depth=8", "--depth", "stack", "--proof", "-o", "x.safetensors"),
            "--proof: OLD does not fit its model; say which it is by --old-model or --old-arg",
        ),
    ],
)
def test_what_is_refused(folder: Path, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert grow(*words) in (1, 2)
    assert text in capsys.readouterr().err
    assert not [*folder.glob("x.*")]


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
