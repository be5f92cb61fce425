"""Notes of exceptions on the command line: what was written by then, say, is printed below the error."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from torchinit import CheckpointError
from torchinit.checkpoints import Loaded
from torchinit.checkpoints.formats import torch_save
from torchinit.cli import frame, main
from torchinit.cli.commands import COMMANDS
from torchinit.cli.frame import REGISTERED, UsageError, told, usage_errors

FAILED = """
import torch

def make():
    error = ValueError("no")
    error.add_note("it was the\\x1b[31m third layer")
    raise error
"""


def noted(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


def test_notes_of_an_error_and_of_those_behind_it() -> None:
    with pytest.raises(UsageError) as caught, usage_errors("--seed"):  # which says: from None
        raise noted(ValueError("is none"), "the note of the first", "a second one")
    assert told(noted(caught.value, "its own", "a second one")) == (
        "--seed: is none\n  its own\n  a second one\n  the note of the first"
    )
    assert told(ValueError("alone")) == "alone"
    assert told(noted(KeyboardInterrupt(), "3 of 4")) == "3 of 4"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_error_with_a_note(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(FAILED)
    assert main(["plan", f"{tmp_path}/net.py:make", "gpt2", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "net.py:make raised ValueError: no\n" in err
    assert err.endswith("\n  it was the\\u001b[31m third layer\n")  # behind the hint, and spelled out


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError("no space"), 2)])
def test_a_run_that_ends_in_the_middle_tells_what_is_written(
    error: BaseException, code: int, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "r.json").write_text('{"rules": [{"type": "Normal", "name": "weight"}]}')
    command = ["apply", "torch.nn:Linear", str(tmp_path / "r.json"), "-o", str(tmp_path / "a.safetensors"), *more]
    monkeypatch.setattr(frame, "progress_bar", lambda *_: nullcontext(Raises(error)))
    assert main([*command, "--arg", "in_features=2", "--arg", "out_features=3"]) == code
    out, err = capsys.readouterr()
    assert "1 of 1 site had been written by then (weight)" in err
    assert out == ""
    assert not (tmp_path / "a.safetensors").exists()


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_: object, **__: object) -> None:
        raise self.error


def test_notes_in_what_is_told_as_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, path := tmp_path / "a.pth")
    error = noted(CheckpointError("is odd"), "since it was converted")
    monkeypatch.setattr(torch_save.TorchCheckpoint, "_info", Raises(error))
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == ["is odd\n  since it was converted"]
    monkeypatch.undo()
    monkeypatch.setattr(Loaded, "prepare", Raises(error))
    model = ["--model", "torch.nn:Linear", "--arg", "in_features=2", "--arg", "out_features=3"]
    assert main(["check-ckpt", str(path), *model, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0] == "weight: is odd\n  since it was converted"


def test_an_interrupt_without_a_note_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module(f"torchinit.cli.commands.{COMMANDS['plan'][0]}")
    monkeypatch.setitem(REGISTERED, "plan", replace(REGISTERED["plan"], run=Raises(KeyboardInterrupt())))
    assert main(["plan", "m:f", "gpt2"]) == 130
    assert capsys.readouterr() == ("", "")
