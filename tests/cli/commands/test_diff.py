"""The commands `diff` and `fingerprint`: what is the same, what is not, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchinit
from tests.cli.given import KAIMING, MLP, RECIPE, TRANSFORMER, Write, rules
from torchinit import Report
from torchinit.cli import main
from torchinit.cli.models import build


def test_diff_of_recipes_on_a_model(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    other = write("r.json", rules(KAIMING, {"type": "Normal", "std": 0.5, "name": "4.weight"}))
    assert main(["diff", RECIPE, RECIPE, "--model", MLP]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", RECIPE, other, "--model", MLP]) == 1
    assert capsys.readouterr().out.startswith("~  4.weight  N(0, 0.1768) → N(0, 0.5)")
    almost = [write(f"{std}.json", rules({"type": "Normal", "std": std, "name": "**"})) for std in (0.1, 0.1 + 1e-12)]
    assert main(["diff", *almost, "--model", MLP]) == 1
    assert main(["diff", RECIPE, other]) == 2
    assert "give --model" in capsys.readouterr().err


def test_diff_of_plans_and_reports(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    reports, plans = [], []
    for seed in ("0", "1"):
        output = tmp_path / f"{seed}.safetensors"
        assert main(["apply", MLP, RECIPE, "--seed", seed, "-o", str(output), "--json"]) == 0
        reports.append(write(f"report{seed}.json", capsys.readouterr().out))
        assert main(["plan", MLP, RECIPE, "--arg", f"width={2 + int(seed)}", "--json"]) == 0
        plans.append(write(f"plan{seed}.json", capsys.readouterr().out))
    assert main(["diff", reports[0], reports[0]]) == 0
    capsys.readouterr()
    assert main(["diff", *reports, "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)
    assert [change["name"] for change in changes] == ["0.weight", "2.weight", "4.weight"]
    assert {change["verb"] for change in changes} == {"changed"}
    assert main(["diff", plans[0], plans[0]]) == 0
    assert main(["diff", *plans]) == 1
    assert "3 kinds change (5 tensors); 1 kind is the same." in capsys.readouterr().out
    assert main(["diff", plans[0], reports[0]]) == 2
    assert "is a plan and" in capsys.readouterr().err


def test_diff_of_weight_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    for seed, path in enumerate(paths):
        assert main(["apply", MLP, RECIPE, "--seed", str(seed), "-o", path]) == 0
    capsys.readouterr()
    assert main(["diff", paths[0], paths[0]]) == 0
    assert main(["diff", *paths]) == 1
    out = capsys.readouterr().out
    assert "~  *.weight  ×3  128…4096 elements apart by up to " in out
    assert "0.bias" not in out


def test_what_cannot_be_compared(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    broken, damaged = write("broken.json", "{"), write("damaged.json", '{"records": [{"nam": 1}]}')
    plan = write("plan.json", '{"steps": []}')
    changed = write("changed.json", '{"sites": {}, "fingerprint": "torchinit-fingerprint-1", "total": "0"}')
    bare = write("bare.json", Report().to_json())
    for pair, text in (
        ([broken, broken], "is not JSON"),
        ([damaged, damaged], "is not a report"),
        ([plan, plan], "this is not a plan"),
        (
            [changed, changed],
            "is not a fingerprint that `torchinit fingerprint --json` wrote: the fingerprint",
        ),
        ([bare, changed], "is a report without a fingerprint"),
        (["no.toml", "no.toml", "--model", MLP], "no file 'no.toml'"),
        (["no.safetensors", "no.safetensors"], "there is no file"),
    ):
        assert main(["diff", *pair]) == 2
        assert text in capsys.readouterr().err


def test_fingerprint_of_a_model_and_of_its_file(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report, the file that belongs to it, and the fingerprint of the file are the same; another seed is not."""
    files, reports, prints = [], [], []
    for seed in ("0", "1"):
        files.append(str(tmp_path / f"{seed}.safetensors"))
        assert main(["apply", TRANSFORMER, "gpt2", "--seed", seed, "-o", files[-1], "--json"]) == 0
        reports.append(write(f"report{seed}.json", capsys.readouterr().out))
        assert main(["fingerprint", files[-1], "--json"]) == 0
        prints.append(write(f"print{seed}.json", capsys.readouterr().out))
    for pair in ([reports[0], files[0]], [files[0], prints[0]], [prints[0], reports[0]], [prints[0], prints[0]]):
        assert main(["diff", *pair]) == 0, pair
        assert capsys.readouterr().out == "no difference\n"
    for pair in ([reports[0], files[1]], [files[0], prints[1]], [prints[0], reports[1]], prints):
        assert main(["diff", *pair]) == 1, pair
        assert "~  wte.weight" in capsys.readouterr().out


def test_fingerprint_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fingerprint", TRANSFORMER]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["digest", "name"]
    assert "lm_head.weight is wte.weight" in lines
    model = build(TRANSFORMER, {}, "cpu", 0)
    assert lines[-1] == f"{torchinit.fingerprint(model).total}  total of {len(lines) - 3} sites"


def test_fingerprint_tells_what_no_file_holds(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
import torch
def make():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.ones(2), persistent=False)
    return model
"""
    assert main(["fingerprint", write("masked.py", text) + ":make"]) == 0
    *_, total, persistent = capsys.readouterr().out.splitlines()
    assert total.endswith("  total of 3 sites")
    assert persistent.endswith("  without 1 buffer that no state dict holds")
    assert total[:32] != persistent[:32]


def test_diff_of_reports_sees_bits_that_statistics_do_not(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(2, 3)
    first = torchinit.initialize(model, {"rules": [KAIMING]}, seed=0, fingerprint=True)
    with torch.no_grad():
        model.weight.copy_(model.weight.flip(0))
    second = replace(first, fingerprint=torchinit.fingerprint(model))
    assert main(["diff", write("1.json", first.to_json()), write("2.json", second.to_json())]) == 1
    assert capsys.readouterr().out == "~  weight  other bits\n\n1 kind changes (1 tensor); 1 kind is the same.\n"
