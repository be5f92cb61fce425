"""The command line itself: usage, near names, errors, the log, and what it does without the extras."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import torchinit
from tests.cli.given import MLP, RECIPE, ROOT, Write
from torchinit.cli import main
from torchinit.cli.commands import explain


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["plan"], ["plan", MLP, RECIPE, "--strict", "--lenient"], ["frobnicate"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{importlib.metadata.version('torchinit')}\n"


@pytest.mark.parametrize("arguments", [[], ["-v"]])
def test_without_a_command_there_is_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: torchinit [-h]")
    assert "    explain " in out
    assert err == ""


@pytest.mark.parametrize(
    ("word", "near"), [("pln", "plan"), ("chekc", "check"), ("EXPLAIN", "explain"), ("check_ckpt", "check-ckpt")]
)
def test_a_misspelt_command_has_its_near_name(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-v", word, "--json"])
    assert ended.value.code == 2
    text = f"there is no command {word!r}; did you mean {near!r}?; torchinit --help names them"
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-v", "list", "schemes"], ["list", "schemes", "-v"], ["list", "-v", "schemes"]])
def test_verbose_stands_before_or_after_the_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []

    def rows() -> dict[str, str]:
        levels.append(logging.getLogger("torchinit").level)
        return {}

    monkeypatch.setattr(explain, "schemes", rows)
    assert main(arguments) == 0
    assert levels == [logging.INFO]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plan", MLP, "no/such.toml"], "no file"),
        (["plan", MLP, "gtp2"], "did you mean 'gpt2'?"),
        (["plan", MLP, str(ROOT)], "no recipe|a recipe is a file|is a folder"),
        (["plan", "mlp", RECIPE], "'mlp' names no model"),
        (["plan", MLP, RECIPE, "--arg", "dpeth=3"], "unexpected keyword argument 'dpeth'"),
        (["plan", "transformers:no/config.json", RECIPE], "there is no file"),
    ],
)
def test_what_cannot_be_carried_out(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchinit plan: ")
    assert any(part in err for part in text.split("|"))


def test_debug_lets_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINIT_DEBUG", "1")
    with pytest.raises(torchinit.TorchinitError, match="names no model"):
        main(["plan", "mlp", RECIPE])


def test_log_goes_to_standard_error_while_a_command_runs(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "import logging\nlogging.getLogger('torchinit').warning('from the factory')\nfrom torch import nn\n"
    assert main(["plan", write("talks.py", f"{module}make = lambda: nn.Linear(2, 2)\n") + ":make", RECIPE]) == 0
    assert capsys.readouterr().err == "WARNING: from the factory\n"
    before = list(logging.getLogger("torchinit").handlers)
    main(["list", "schemes"])
    assert logging.getLogger("torchinit").handlers == before


def test_without_the_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rich", "rich.console", "rich.progress", "safetensors", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    path = str(tmp_path / "w.safetensors")
    assert main(["plan", MLP, RECIPE]) == 0
    assert main(["apply", MLP, RECIPE, "-o", path]) == 0
    assert main(["diff", path, path]) == 0
    assert main(["plan", f"transformers:{ROOT}/examples/gpt2/config.json", "gpt2"]) == 2
    assert "pip install transformers" in capsys.readouterr().err


def test_module_entry_and_a_reader_that_stops() -> None:
    command = f"{sys.executable} -m torchinit list nonlinearities | head -1"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "nonlinearity      gain\n"
