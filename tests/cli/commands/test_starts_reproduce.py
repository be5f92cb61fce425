"""reproduce: a start is made again from its report alone, in a new process; what has changed since is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torchinit import Layer, Leaf, Normal, Orthogonal, Pretrained, Rule, Zeros, initialize, materialize
from torchinit.cli import main
from torchinit.plans import Report
from torchinit.plans.origin import Origin

NET = """
import torch
from torch import nn
from torchinit.mmengine import BaseModule


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = net(), nn.BatchNorm1d(3)


class Own(BaseModule):
    def __init__(self):
        super().__init__(init_cfg=dict(type="Normal", std=0.01, layer="Linear"))
        self.fc = nn.Linear(4, 4)
"""
RECIPE = '[[rules]]\ntype = "Kaiming"\nlayer = "Linear"\nbias = 0.0\n'
RULES = [Rule(Leaf("weight"), Normal()), Rule(Leaf("bias"), Zeros())]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(name: str) -> Any:
    space: dict[str, Any] = {}
    exec(compile(NET, "net.py", "exec"), space)  # noqa: S102  # the same text as in the file
    return space[name]


def applied(capsys: pytest.CaptureFixture[str], *more: str) -> None:
    words = ["apply", "net.py:net", "recipe.toml", "-o", "w.safetensors", "--seed", "5", "--json", "--force", *more]
    assert main(words) == 0
    Path("report.json").write_text(capsys.readouterr().out, encoding="utf-8")


def again(capsys: pytest.CaptureFixture[str], report: str = "report.json", model: str = "net") -> tuple[int, str]:
    code = main(["reproduce", report, "--model", f"net.py:{model}"])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_in_a_fresh_environment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applied(capsys, "--dtype", "bf16")
    total = json.loads(Path("report.json").read_text("utf-8"))["fingerprint"]["total"]
    fresh = folder / "elsewhere"
    fresh.mkdir()
    for name in ("net.py", "report.json"):
        shutil.copy(folder / name, fresh)
    words = [sys.executable, "-m", "torchinit", "reproduce", "report.json", "--model", "net.py:net"]
    done = subprocess.run(words, cwd=fresh, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"made again: fingerprint {total}\n"), done.stderr


def test_from_the_file_of_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applied(capsys, "--dtype", "fp16")
    code, text = again(capsys, "w.safetensors")
    assert (code, text[:24]) == (0, "made again: fingerprint ")
    data = bytearray(Path("w.safetensors").read_bytes())
    data[-1] ^= 1
    Path("w.safetensors").write_bytes(data)
    code, text = again(capsys, "w.safetensors")
    assert code == 1
    assert "other bits" in text


def test_one_changed_byte_of_the_recipes_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applied(capsys)
    Path("recipe.toml").write_text(RECIPE.replace("0.0", "0.1"), encoding="utf-8")
    code, text = again(capsys)
    assert code == 1
    assert "the recipe's file recipe.toml has other bytes: its SHA-256 is" in text
    assert "made again, but of what is named above: fingerprint" in text


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            '"mode": "fan_out"',
            '"mode": "fan_in"',
            "the recipe in report.json has been changed: its digest is not the one",
        ),
        ('"val": 0.0', '"val": 0.5', "the recipe in report.json has been changed"),
        ('"mode": "fan_out"', '"mode": "fan_oot"', r"recipe[0].init.mode: must be one of 'fan_in', 'fan_out'"),
        ('"seed": 5', '"seed": 6', "~  0,3.weight  ×2  other bits"),
        ('"torchinit-stream-1"', '"torchinit-stream-0"', "the values are those of torchinit-stream-0, and this is"),
        ('"total": "', '"total": "0', "the fingerprint was changed: its total does not belong to its sites"),
    ],
)
def test_one_changed_byte_of_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, text: str
) -> None:
    applied(capsys)
    report = Path("report.json").read_text("utf-8")
    assert old in report
    Path("report.json").write_text(report.replace(old, new, 1), encoding="utf-8")
    code, told = again(capsys)
    assert code
    assert text in told


def kept(report: Report) -> Report:
    Path("report.json").write_text(report.to_json(), encoding="utf-8")
    return report


def test_a_source_and_the_files_of_an_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"0.weight": torch.randn(16, 8)}, "one.safetensors")
    save_file({"0.bias": torch.randn(16)}, "two.safetensors")
    index = {"weight_map": {"0.weight": "one.safetensors", "0.bias": "two.safetensors"}}
    Path("model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    loaded = Rule("0.*", Pretrained("model.safetensors.index.json"))
    report = kept(initialize(made("net")(), [*RULES, loaded], seed=1, fingerprint=True))
    assert report.origin
    assert {Path(name).name for name in report.origin.sources} == {
        "model.safetensors.index.json", "one.safetensors", "two.safetensors",
    }  # fmt: skip
    assert again(capsys)[0] == 0
    data = bytearray(Path("two.safetensors").read_bytes())
    data[-2] ^= 1
    Path("two.safetensors").write_bytes(data)
    code, text = again(capsys)
    assert code == 1
    assert "two.safetensors has other bytes: its SHA-256 is" in text
    assert "one.safetensors has" not in text
    assert "~  0.bias  other bits" in text
    Path("two.safetensors").unlink()
    code, text = again(capsys)
    assert code == 2
    assert "two.safetensors cannot be had:" in text


def test_every_way_to_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped, own = made("Wrapped"), made("Own")
    kept(initialize(wrapped().half(), RULES, seed=2, inside="net", under="stage.1", fingerprint=True))
    assert again(capsys, model="Wrapped")[0] == 0
    with torch.device("meta"):
        empty, self_made = wrapped(), own()
    kept(materialize(empty, Rule(Layer("Linear") & Leaf("weight"), Orthogonal()), seed=2, fingerprint=True))
    assert again(capsys, model="Wrapped")[0] == 0
    kept(materialize(self_made, seed=2, fingerprint=True))
    assert again(capsys, model="Own")[0] == 0


def test_what_no_rule_writes_is_the_factorys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(initialize(made("net")(), RULES[:1], seed=2, fingerprint=True))
    code, text = again(capsys)
    assert code == 1
    assert "bias  ×2  other bits  no rule writes it, so it is as the factory makes it" in text


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (lambda: initialize(nn.Linear(2, 2), RULES, fingerprint=True), "drawn from torch's generator, without a seed"),
        (
            lambda: initialize(nn.Linear(2, 2), RULES, seed=1),
            "report.json does not say what it was made of; `torchinit",
        ),
        (
            lambda: initialize(nn.Linear(2, 2), Rule("**", lambda t: t.zero_()), seed=1, fingerprint=True),
            "report.json holds a start that cannot be made again: Name('**') -> code: lambda",
        ),
    ],
)
def test_what_cannot_be_made_again(folder: Path, capsys: pytest.CaptureFixture[str], report: Any, text: str) -> None:
    kept(report())
    code, told = again(capsys)
    assert code == 2
    assert text in told


def test_the_model_has_to_be_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applied(capsys)
    assert main(["reproduce", "report.json"]) == 2
    assert "give the factory of the model: --model package.module:factory" in capsys.readouterr().err


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applied(capsys)
    assert main(["reproduce", "report.json", "--model", "net.py:net", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["made_again"] is True
    assert (told["problems"], told["changes"], told["fingerprint"]) == ([], [], told["now"])


def test_diff_says_in_words_how_two_starts_differ(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    applied(capsys)
    Path("report.json").rename("a.json")
    Path("recipe.toml").write_text(RECIPE.replace("0.0", "0.1"), encoding="utf-8")
    applied(capsys, "--seed", "6")
    assert main(["diff", "a.json", "report.json"]) == 1
    told = capsys.readouterr().out.split("\n")
    assert told[0] == "the seed is 5 in a.json, and 6 in report.json"
    assert told[1].startswith("the recipe has All(Layer('Linear'), Kinds('bias')) -> Constant(0) in a.json, and All(")
    assert told[2].startswith("the recipe's file recipe.toml is ")
    assert main(["diff", "a.json", "report.json", "--json"]) == 1
    assert {each["name"] for each in json.loads(capsys.readouterr().out)} == {
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    }
    assert main(["diff", "a.json", "a.json"]) == 0


def test_all_that_an_origin_may_differ_in() -> None:
    rules = (Rule("a", Normal()), Rule("b", Zeros()))
    one = Origin("initialize", 0, rules, "1", "2", versions={"torch": "2.13"}, sources={"x": "0" * 64})
    other = Origin("materialize", 0, rules[::-1], "3", "2", under="layers.3", versions={"torch": "2.12"})
    assert list(one.differences(other)) == [
        ("it was made by", "initialize", "materialize"),
        ("under is", "''", "'layers.3'"),
        ("the recipe has its rules", "in one order", "in another, or with other options"),
        ("the source x is", "000000000000…", "not there"),
        ("the version of torch is", "2.13", "2.12"),
    ]
    assert list(one.differences(one)) == []
