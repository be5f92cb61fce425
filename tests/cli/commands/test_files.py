"""Commands on checkpoints: inspect, check-ckpt, convert, and apply with a recipe that loads."""

from __future__ import annotations

import json
import shlex
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.checkpoints.files import state, write
from torchinit import Name, Pretrained, Rule, open_checkpoint
from torchinit.cli import main
from torchinit.recipes import decode_recipe

MODEL = f"{Path(__file__).parents[3]}/examples/models.py:mlp"


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, torch.Tensor]:
    """The state of the example model, saved as ``trained.pth``, in a file of training."""
    from examples.models import mlp

    held = {key: torch.full_like(value, number) for number, (key, value) in enumerate(mlp().state_dict().items())}
    torch.save({"model": held, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "trained.pth")
    return held


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("safetensors", tmp_path, state())
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "stem.weight" in text
    assert "6 tensors of 118 bytes" in " ".join(text.split())
    assert main(["inspect", str(path), "--json", "--hashes"]) == 0
    data = json.loads(capsys.readouterr().out)
    by_name = {one["name"]: one for one in data["tensors"]}
    assert by_name["stem.weight"] == {
        "name": "stem.weight", "shape": [4, 2, 3], "dtype": "float32", "bytes": 96,
        "sha256": _sha256(state()["stem.weight"].numpy().tobytes()),
    }  # fmt: skip
    assert by_name["empty"]["sha256"] == _sha256(b"")
    assert data["sha256"] == _sha256(path.read_bytes())


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (None, 2, "can not be found"),
        (b"", 1, "is empty"),
        (b"<html>", 1, "is a web page"),
        (Namespace(lr=1), 1, "its pickle asks for argparse.Namespace"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "check-ckpt", "convert"])
def test_what_is_no_checkpoint(
    command: str, content: Any, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    rest = {"inspect": [], "check-ckpt": ["--model", MODEL], "convert": [str(tmp_path / "out.safetensors")]}
    assert main([command, str(path), *rest[command]]) == code
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.usefixtures("trained")
def test_check_ckpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check-ckpt", str(tmp_path / "trained.pth")]
    assert main([*command, "--model", MODEL]) == 0
    assert "trained.pth, part 'model': 100 % of the elements loaded" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--model", MODEL, "--prefix", "net"]) == 1
    assert "0 of" in capsys.readouterr().out
    assert main([*command, "--model", MODEL, "--rename", "^", "x.", "--rename", "^x[.]", "", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert main(command) == 2
    assert "give --model" in capsys.readouterr().err
    assert main([*command, "--model", MODEL, "--sha256", "abc"]) == 2
    assert main([*command, "--model", MODEL, "--sha256", "0" * 64]) == 1


def test_what_check_ckpt_takes_for_a_finding(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    first, *_, last = trained
    torch.save({**trained, first: torch.ones(3), "extra": torch.ones(1)}, tmp_path / "a.pth")
    command = ["check-ckpt", str(tmp_path / "a.pth"), "--model", MODEL]
    assert main(command) == 1
    assert main([*command, "--skip-shapes"]) == 1
    assert main([*command, "--skip-shapes", "--expect-unexpected", "extra"]) == 0
    torch.save({key: value for key, value in trained.items() if key != last}, tmp_path / "a.pth")
    assert main(command) == 1
    assert main([*command, "--expect-missing", last]) == 0


def test_what_would_go_wrong_when_it_is_loaded_is_a_finding(
    tmp_path: Path, trained: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = trained
    path = str(tmp_path / "a.pth")
    torch.save({**trained, first: torch.full_like(trained[first], torch.nan)}, path)
    assert main(["check-ckpt", path, "--model", MODEL]) == 1
    assert f"{first}: {first} holds NaN or infinity in {path}" in capsys.readouterr().out
    assert main(["check-ckpt", path, "--model", MODEL, "--json"]) == 1
    assert "holds NaN" in json.loads(capsys.readouterr().out)["problems"][0]
    assert main(["check-ckpt", path, "--model", MODEL, "--header-only"]) == 0
    torch.save(trained, path)
    assert main(["check-ckpt", path, "--model", MODEL, "--expect-missing", "haed.**"]) == 1


REMEDIES = [
    ("net.{}", 0, "--prefix net.", "prefix='net.'"),
    ("{}x", 2, None, None),
    ("{}", 2, "--expect-missing '{part}.**'", "expect_missing=['{part}.**']"),
]


@pytest.mark.parametrize(("form", "left", "here", "there"), REMEDIES)
def test_the_remedy_is_printed_to_be_pasted(
    form: str, left: int, here: str | None, there: str | None, tmp_path: Path, trained: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, part = str(tmp_path / "a.pth"), [*trained][-1].partition(".")[0]
    names = [name for name in trained if not (left and name.startswith(f"{part}."))]
    torch.save({form.format(name): trained[name] for name in names}, path)
    assert main(["check-ckpt", path, "--model", MODEL]) == 1
    printed = capsys.readouterr().out
    if here is None or there is None:
        assert "try --" not in printed
        return
    here, there = here.format(part=part), there.format(part=part)
    assert f"try {here}, in a rule {there}" in printed
    assert main(["check-ckpt", path, "--model", MODEL, *shlex.split(here)]) == 0
    entry = {"type": "Pretrained", "name": "**", "checkpoint": path, **tomllib.loads(there)}
    assert decode_recipe({"rules": [entry]}) == (Rule(Name("**"), Pretrained(path, **eval(f"dict({there})"))),)


def test_other_shapes_are_left_out_by_the_flag_that_is_named(
    tmp_path: Path, trained: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**trained, [*trained][-1]: torch.ones(3)}, tmp_path / "a.pth")
    command = ["check-ckpt", str(tmp_path / "a.pth"), "--model", MODEL]
    assert main(command) == 1
    assert "try --skip-shapes, in a rule on_shape='skip'" in capsys.readouterr().out
    assert main([*command, "--skip-shapes"]) == 0


@pytest.mark.usefixtures("trained")
def test_check_ckpt_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.json"
    rule = {"type": "Pretrained", "checkpoint": str(tmp_path / "trained.pth"), "name": "**"}
    recipe.write_text(json.dumps({"rules": [rule]}))
    command = ["check-ckpt", "--model", MODEL, "--recipe", str(recipe)]
    assert main(command) == 0
    assert "100 % of the elements loaded" in " ".join(capsys.readouterr().out.split())
    recipe.write_text(json.dumps({"rules": [rule, {"type": "Normal", "std": 0.1, "name": "**"}]}))
    assert main(command) == 1
    assert "would write over them" in " ".join(capsys.readouterr().out.split())
    recipe.write_text(json.dumps({"rules": [{**rule, "prefix": "net"}, {**rule, "prefix": "a"}]}))
    assert main([*command, "--json"]) == 1
    assert [len(one["problems"]) for one in json.loads(capsys.readouterr().out)] == [1, 1]
    assert main(["check-ckpt", str(tmp_path / "trained.pth"), *command[1:]]) == 2
    assert "either a FILE or a --recipe" in capsys.readouterr().err
    recipe.write_text(json.dumps({"rules": [{"type": "Normal", "name": "**"}]}))
    assert main(command) == 2
    assert "no rule of it loads from a checkpoint" in capsys.readouterr().err


def test_convert(tmp_path: Path, trained: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(tmp_path / "trained.pth"), tmp_path / "out.safetensors"
    assert main(["convert", source, str(out)]) == 0
    assert "from torch 'model'" in capsys.readouterr().out
    held = load_file(out)
    assert held.keys() == trained.keys()
    assert all(torch.equal(held[key], value) for key, value in trained.items())
    before = out.read_bytes()
    assert main(["convert", source, str(out)]) == 2
    assert main(["convert", source, str(out), "--force"]) == 0
    assert out.read_bytes() == before
    assert main(["convert", source, str(tmp_path / "out.pth")]) == 2


def test_tied_tensors_are_written_once_and_found_under_both_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = torch.arange(6.0).view(3, 2)
    torch.save({"table.weight": table, "head.weight": table, "half": table[:1]}, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    assert "head.weight is table.weight" in capsys.readouterr().out
    assert sorted(load_file(tmp_path / "a.safetensors")) == ["half", "table.weight"]
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert sorted(checkpoint) == ["half", "head.weight", "table.weight"]
    assert torch.equal(checkpoint.read("head.weight"), table)


def test_apply_with_a_recipe_that_loads(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    source, out = tmp_path / "trained.pth", tmp_path / "out.safetensors"
    recipe = {"rules": [{"type": "Pretrained", "checkpoint": str(source), "name": "**"}]}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    assert main(["apply", MODEL, str(tmp_path / "r.json"), "-o", str(out), "--complete"]) == 0
    held = load_file(out)
    assert all(torch.equal(held[key], value) for key, value in trained.items())
    torch.save(nn.Linear(1, 1).state_dict(), source)
    assert main(["apply", MODEL, str(tmp_path / "r.json"), "-o", str(out), "--force"]) == 1
