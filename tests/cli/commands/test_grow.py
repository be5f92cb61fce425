"""grow: the file, the account and the proof; what is refused, and that no file is there then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from torchinit.cli import main
from torchinit.cli.models import build

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
