"""The command `check`: what it builds, applies and loads, what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.given import Write
from tests.linting.sarif_schema import assert_sarif
from torchinit.cli import main
from torchinit.linting import CHECKS
from torchinit.probing import PROBE_CHECKS
from torchinit.transfer import TRANSFER_CHECKS

EVERY = {**CHECKS, **PROBE_CHECKS, **TRANSFER_CHECKS}

MODELS = """
import torch
from torch import nn

def clean():
    return nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Embedding(20, 32, padding_idx=0))

def padded():
    model = clean()
    nn.init.normal_(model[2].weight)
    return model

class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.tokens = nn.Parameter(torch.empty(4, 8))
        self.register_buffer("index", torch.empty(4, dtype=torch.int64))
"""

RECIPE = """
[[rules]]
type = "Normal"
std = 0.02
layer = ["Linear", "Embedding"]

[[rules]]
type = "Ones"
name = "1.weight"
"""


@pytest.fixture(autouse=True)
def _here(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("net.py", MODELS)
    write("r.toml", RECIPE)
    monkeypatch.chdir(tmp_path)


def codes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [finding["code"] for finding in json.loads(capsys.readouterr().out)["findings"]]


def test_a_clean_model(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    assert main(["check", "net.py:clean"]) == 0
    assert capsys.readouterr().out == "no findings\n"
    assert main(["check", "net.py:clean", "-v"]) == 0
    assert capsys.readouterr().out.startswith("no findings\nnot run for want of a recipe (TI106")
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_memory_that_was_never_filled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "net.py:Forgetful"]) == 1
    out = capsys.readouterr().out
    assert "TI103  error     tokens  all 32 values are NaN" in out
    assert "TI105  error     index   holds whole numbers up to 9.22e+18" in out
    assert "2 errors" in out


def test_fail_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "net.py:padded", "--json"]) == 0
    assert codes(capsys) == ["TI405"]
    assert main(["check", "net.py:padded", "--fail-on", "warning"]) == 1
    assert main(["check", "net.py:padded", "--fail-on", "warning", "--ignore", "TI1,padding-row"]) == 0
    assert main(["check", "net.py:padded", "--fail-on", "note", "--select", "TI1", "--select", "TI3"]) == 0


def test_a_recipe_is_applied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "net.py:clean", "r.toml", "--json"]) == 0
    assert codes(capsys) == ["TI106"]
    assert main(["check", "net.py:clean", "r.toml", "--as-built", "--json"]) == 1
    assert set(codes(capsys)) == {"TI106", "TI704"}


def test_a_recipe_that_cannot_be_applied_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.toml").write_text(RECIPE + "[[rules]]\ntype = 'Kaiming'\nname = '0.bias'\n", encoding="utf-8")
    assert main(["check", "net.py:clean", "r.toml", "--json"]) == 1
    assert "TI705" in codes(capsys)


def test_weights_are_loaded_last(capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"module.0.weight": weight, "extra": weight[0].clone(), "0.bias": weight[:3, 0].clone()}, "w.safetensors")
    assert main(["check", "net.py:clean", "--weights", "w.safetensors", "--json"]) == 1
    assert codes(capsys) == ["TI201", "TI201", "TI202"]
    save_file({"encoder.0.weight": weight}, "w.safetensors")
    assert main(["check", "net.py:clean", "r.toml", "--weights", "w.safetensors"]) == 1
    assert "none of 1 keys is in the model: encoder.0.weight; with prefix='encoder.' 1 of 5 match" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_sketch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "net.py:Forgetful", "--device", "meta", "--json"]) == 0
    assert codes(capsys) == ["TI102"]


def test_sarif(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "net.py:Forgetful", "--sarif"]) == 1
    log = json.loads(capsys.readouterr().out)
    assert_sarif(log)
    (run,) = log["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["TI103", "TI105"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "net.py"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--select", "TI99"], "'TI99' is not a check"),
        (["--ignore", "same-in-layer"], "did you mean 'same-in-layers'?"),
        (["--as-built"], "--as-built compares with a recipe: give one"),
        (["--weights", "no.safetensors"], "there is no file 'no.safetensors'"),
        (["no.toml"], "no file 'no.toml'"),
    ],
)
def test_what_cannot_be_carried_out(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "net.py:clean", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_every_check_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "checks"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(EVERY) + 1
    for code, one in EVERY.items():
        for word in (code, one.name):
            assert main(["explain", word]) == 0
            out = capsys.readouterr().out
            assert out.startswith(f"{code} {one.name}: ")
            assert f"\nAt worst: {one.severity}. Way out: {one.remedy}.\n" in out
