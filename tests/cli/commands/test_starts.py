"""The commands `plan` and `apply`: what they show, what they write, and with which exit code they end."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import torchinit
from tests.cli.given import KAIMING, MLP, RECIPE, ROOT, TRANSFORMER, Write, rules
from torchinit import Plan, Report
from torchinit.cli import main

IN_VAIN = {"type": "Constant", "val": 1, "layer": "Conv2D"}


def test_plan_shows_every_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", MLP, RECIPE, "--arg", "depth=2", "--complete"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Sequential with {RECIPE}\n4 sites to write: 4 kinds, 706 elements")
    assert [line.split()[0] for line in out.splitlines()[-6:-2]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert out.endswith("every parameter has a rule; nothing is written yet\n")


def test_plan_as_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", TRANSFORMER, "gpt2", "--json", "--device", "cpu"]) == 0
    made = Plan.from_json(capsys.readouterr().out)
    assert made["lm_head.weight"].site.name == "wte.weight"
    assert made["h.3.mlp.c_proj.weight"].fill == torchinit.Normal(std=0.02 / 8**0.5)


CNN = """
from torch import nn


def cnn():
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 10))
"""


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_scheme_for_other_models_says_so(
    command: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{write('cnn.py', CNN)}:cnn"
    output = ["-o", str(tmp_path / "w.safetensors")] if command == "apply" else []
    assert main([command, model, "llama", "--lenient", *output]) == 1
    assert "the scheme 'llama' needs parameters of attn.*, of mlp.* or expert.*" in capsys.readouterr().err
    recipe = str(write("llama.json", '{"extends": {"name": "llama", "optional": true}}'))
    assert main([command, model, recipe, "--lenient", *output]) == 0
    said = "scheme 'llama' reached 2 of 6 parameters, 6.2 % of the elements, less than a half of the model."
    better = "Schemes that reach more of it: 'general' (6 of 6), 'resnet' (6 of 6)"
    assert f"{said} {better}" in " ".join(capsys.readouterr().out.split())
    output += ["--force"] if output else []
    assert main([command, model, "general", *output]) == 0
    assert "scheme 'general' reached 6 of 6 parameters, 100 % of the elements" in capsys.readouterr().out.splitlines()
    assert main([command, model, recipe, "--lenient", "--json", *output]) == 0
    assert json.loads(capsys.readouterr().out)["reach"][0]["parameters"] == [2, 6]


def test_a_plan_says_what_follows(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{write('cnn.py', CNN)}:cnn", "general", "--json"]) == 0
    made = Plan.from_json(capsys.readouterr().out)
    assert [step.site.activation for step in made if step.site.leaf == "weight"] == ["relu", "linear", "linear"]


LARGE = [f"{ROOT}/examples/large.py:moe_1t", f"{ROOT}/examples/large.toml", "--arg", "depth=3"]


def test_plan_on_a_mesh_tells_what_a_rank_holds(capsys: pytest.CaptureFixture[str]) -> None:
    cut = ["--parallel", "fsdp,ep", "--place", "fsdp:**.experts.*=1"]
    assert main(["plan", *LARGE, "--mesh", "512x8", *cut, "--complete"]) == 0
    out = capsys.readouterr().out
    assert "on 4,096 ranks (fsdp 512 x ep 8)" in out
    assert re.search(r"^layers\.\*\.feed_forward\.experts\.w1 +2 +384x2048x7168 +bfloat16 +1 0 +48x4x7168 ", out, re.M)
    assert main(["plan", *LARGE, "--mesh", "512x8", *cut, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["ranks"] == 4096
    assert cost["most"] < cost["bytes"] / 2000
    assert set(cost["rates"]) == {"Normal bfloat16", "Constant bfloat16"}


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--mesh", "8by8"], 2, "a mesh is numbers of ranks such as 512x8"),
        (["--mesh", "8", "--place", "fsdp=1"], 2, "a placement is way:name=axis"),
        (["--mesh", "8", "--place", "tp:**.experts.w1=1"], 1, "the mesh has no dimension 'tp': it is fsdp 8"),
    ],
)
def test_a_mesh_that_is_none(options: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *LARGE, *options]) == code
    assert text in capsys.readouterr().err


def test_rule_in_vain_is_a_finding_unless_lenient(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write("r.json", rules(KAIMING, IN_VAIN))
    assert main(["plan", MLP, recipe]) == 1
    assert "Layer('Conv2D') matches none of" in capsys.readouterr().err
    assert main(["plan", MLP, recipe, "--lenient"]) == 0
    optional = write("o.json", rules(KAIMING, {**IN_VAIN, "optional": True}))
    assert main(["plan", MLP, optional]) == 0


def test_gaps_are_findings_with_complete(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write("r.json", rules({**KAIMING, "bias": None}))
    assert main(["plan", MLP, recipe]) == 0
    assert main(["plan", MLP, recipe, "--complete"]) == 1
    assert "no rule for 0.bias" in capsys.readouterr().err
    assert main(["apply", MLP, recipe, "--complete", "-o", f"{recipe}.safetensors"]) == 1
    assert not Path(f"{recipe}.safetensors").exists()


def test_ten_mistakes_are_one_block_and_write_nothing(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write("r.json", rules(*[{"type": "Normal", "sdt": 0.1, "layer": "Linear"}] * 10))
    output = tmp_path / "w.safetensors"
    assert main(["apply", MLP, recipe, "-o", str(output)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchinit apply: 10 mistakes in")
    assert len(err.splitlines()) == 11
    assert "rules[9].sdt: Normal has no argument 'sdt'; did you mean 'std'?" in err
    assert not output.exists()


def test_apply_twice_gives_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, other = (tmp_path / f"{n}.safetensors" for n in range(3))
    state = torch.get_rng_state()
    for path, seed in ((first, "0"), (second, "0"), (other, "1")):
        assert main(["apply", TRANSFORMER, "gpt2", "--complete", "--seed", seed, "-o", str(path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert "52 sites written: 16 kinds, 220,544 elements" in capsys.readouterr().out


def test_apply_writes_what_initialize_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.safetensors"
    assert main(["apply", MLP, RECIPE, "--seed", "5", "--arg", "width=16", "-o", str(path), "--json"]) == 0
    assert Report.from_json(capsys.readouterr().out).assert_ok(complete=True)["0.weight"].measured is not None
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)])
    torchinit.initialize(model, RECIPE, seed=5)
    read = load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert (told["torchinit.seed"], told["torchinit.stream"]) == ("5", "torchinit-stream-1")


def test_what_no_rule_covers_repeats_too(write: Write, tmp_path: Path) -> None:
    recipe = write("r.json", rules({"type": "Normal", "name": "0.weight"}))
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for path in paths:
        assert main(["apply", MLP, recipe, "-o", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert load_file(paths[0])["2.weight"].std() > 0


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float64", torch.float64)])
def test_dtype(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path = tmp_path / "w.safetensors"
    assert main(["apply", MLP, RECIPE, "--dtype", name, "--no-stats", "-o", str(path)]) == 0
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}


def test_progress_shows_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "w.safetensors")
    assert main(["apply", MLP, RECIPE, "-o", path]) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    assert "\x1b" not in plain.out
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["apply", MLP, RECIPE, "-o", path, "--force"]) == 0
    shown = capsys.readouterr()
    assert "writing" in shown.err
    assert "\x1b" not in shown.out


def test_output_is_checked_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "w.safetensors"
    there.write_text("precious")
    for output, text in (
        (there, "exists already; --force overwrites it"),
        (tmp_path / "w.pth", "the output is a .safetensors file"),
        (tmp_path / "no" / "w.safetensors", "there is no folder"),
    ):
        assert main(["apply", "no.such:model", RECIPE, "-o", str(output)]) == 2
        assert text in capsys.readouterr().err
    assert there.read_text() == "precious"
    assert main(["apply", MLP, RECIPE, "-o", str(there), "--force"]) == 0
    assert load_file(there)


def test_seed_that_the_stream_does_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", MLP, RECIPE, "--seed", "-1", "-o", str(tmp_path / "w.safetensors")]) == 2
    assert "--seed: a seed is at least 0" in capsys.readouterr().err


def test_values_that_are_not_as_planned_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchinit.Normal, "write", lambda _, shard, __: shard.local.fill_(7.0))
    monkeypatch.setattr(torchinit.Normal, "job", lambda *_: None)
    path = tmp_path / "w.safetensors"
    assert main(["apply", MLP, RECIPE, "-o", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "7" in out
    assert "0.weight: mean is 7, planned 0" in err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_kept_and_carried_out(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    kept, first, second = (str(tmp_path / name) for name in ("plan.json", "1.safetensors", "2.safetensors"))
    assert main(["plan", TRANSFORMER, "gpt2", "-o", kept]) == 0
    assert main(["apply", TRANSFORMER, "gpt2", "--seed", "3", "-o", first]) == 0
    assert main(["apply", TRANSFORMER, kept, "--seed", "3", "-o", second]) == 0
    assert Path(first).read_bytes() == Path(second).read_bytes()
    assert main(["plan", TRANSFORMER, "gpt2", "-o", kept]) == 2
    assert "exists already; --force overwrites it" in capsys.readouterr().err
    assert main(["plan", TRANSFORMER, "gpt2", "-o", kept, "--force"]) == 0
    other = str(tmp_path / "3.safetensors")
    assert main(["apply", MLP, kept, "-o", other]) == 1
    err = capsys.readouterr().err
    assert "the plan is one of another model; nothing was written" in err
    assert "the model has no wte.weight, which the plan has" in err
    assert "the plan has no 0.weight, which the model has" in err
    assert main(["plan", MLP, RECIPE, "-o", kept, "--force"]) == 0
    assert main(["apply", MLP, kept, "--arg", "width=16", "-o", other]) == 1
    assert "0.weight is planned for shape (64, 8), but it has (16, 8)" in capsys.readouterr().err
    assert not Path(other).exists()
    assert main(["plan", MLP, write("r.json", rules({"type": "Kaiming", "name": "9.*"})), "-o", f"{other}.json"]) == 1
    assert not Path(f"{other}.json").exists(), "a plan with problems is not kept"


def test_all_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", TRANSFORMER, "gpt2", "--all"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("h.")]) == 48


def test_only_what_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["torch.nn:Linear", "general", "--arg", "in_features=2", "--arg", "out_features=3"]
    assert main(["plan", *small, "--only", "weight"]) == 0
    assert "1 site to write" in capsys.readouterr().out
    assert main(["plan", *small, "--only", "wiehgt"]) == 1
    assert "no tensor of the model is called 'wiehgt'; did you mean 'weight'?" in capsys.readouterr().err
    assert main(["plan", *small, "--only", "missing"]) == 1
    assert "no tensor has the mark of transformers" in capsys.readouterr().err
    assert main(["apply", *small, "--only", "weight", "-o", str(tmp_path / "out.safetensors")]) == 0
    assert "1 tensor proven unchanged: bias" in capsys.readouterr().out
    assert main(["plan", *small, "-o", str(tmp_path / "plan.json")]) == 0
    kept = [small[0], str(tmp_path / "plan.json"), *small[2:]]
    assert main(["apply", *kept, "--only", "weight", "-o", str(tmp_path / "b.safetensors")]) == 2
    assert "--only is for a recipe" in capsys.readouterr().err


class Asked(torch.nn.Linear):
    """A model that is asked for its own start, as transformers' are."""

    def initialize_weights(self) -> None:
        torch.nn.init.normal_(self.weight, std=0.5)
        self.bias.data[0] = 7.0  # which no initializer describes


def test_without_a_recipe_a_model_starts_as_its_own_code_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, out = ["--arg", "in_features=40", "--arg", "out_features=30"], str(tmp_path / "out.safetensors")
    monkeypatch.setattr(torch.nn, "Asked", Asked, raising=False)
    assert main(["plan", "torch.nn:Asked", *small]) == 0
    assert "N(0, 0.5)" in capsys.readouterr().out
    assert main(["apply", "torch.nn:Asked", *small, "-o", out]) == 0
    printed = capsys.readouterr().out
    assert "1 site written" in printed
    assert "skipped bias: stays as its own code has made it" in printed
    assert main(["plan", "torch.nn:Linear", *small]) == 2
    assert "give a RECIPE for Linear" in capsys.readouterr().err
    assert main(["plan", "torch.nn:Asked", *small, "--only", "weight"]) == 2
    assert "--only and --set are for a recipe" in capsys.readouterr().err
