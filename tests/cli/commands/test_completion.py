"""completion: the shells themselves complete commands, options and names from what is printed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torchinit.cli import main
from torchinit.cli.commands import COMMANDS

BASH = """
source {file}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_torchinit torchinit "${{COMP_WORDS[$COMP_CWORD]}}" "${{COMP_WORDS[$((COMP_CWORD-1))]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = "source {file}; complete -C 'torchinit {words}' | cut -f1"

CASES = [
    ("torchinit pl", "plan"),
    ("torchinit list ad", "adapters"),
    ("torchinit check --fail-on w", "warning"),
    ("torchinit plan --comp", "--complete"),
    ("torchinit cache v", "verify"),
]


def printed(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    file = tmp_path / f"torchinit.{shell}"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    return file


def ran(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = printed("bash", tmp_path, capsys)
    assert ran(["bash", "-c", BASH.format(file=file, words=words)]).split() == [expected]


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
@pytest.mark.parametrize(("words", "expected"), CASES)
def test_fish(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, words = printed("fish", tmp_path, capsys), words.removeprefix("torchinit ")
    assert ran(["fish", "-c", FISH.format(file=file, words=words)]).split() == [expected]


def test_zsh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = printed("zsh", tmp_path, capsys)
    text = file.read_text("utf-8")
    assert text.startswith("#compdef torchinit\n")
    assert all(f"\n    {name}:'" in text for name in COMMANDS)
    if shutil.which("zsh"):
        ran(["zsh", "-n", str(file)])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "shell completion needs an optional dependency: pip install 'torchinit[cli]'" in capsys.readouterr().err


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
