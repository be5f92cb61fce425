"""Ctrl-C on the command line: it ends at once, with exit code 130 and without a traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from torchinit.cli import main
from torchinit.cli.commands import COMMANDS
from torchinit.cli.frame import REGISTERED

# What each command cannot do without, so that it gets as far as its run.
ARGUMENTS = {
    "apply": ["m:f", "gpt2", "-o", "x.safetensors"],
    "cache": ["ls"],
    "check": ["m:f"],
    "check-ckpt": ["w.pth"],
    "completion": ["bash"],
    "convert": ["w.pth", "x.safetensors"],
    "diff": ["a.json", "b.json"],
    "explain": ["Kaiming"],
    "fetch": ["https://example.org/a.pth"],
    "fingerprint": ["m:f"],
    "grow": ["w.pth", "-o", "x.safetensors"],
    "inspect": ["w.pth"],
    "list": [],
    "parity": ["m:f"],
    "plan": ["m:f", "gpt2"],
    "probe": ["m:f"],
    "reproduce": ["report.json", "--model", "m:f"],
    "roles": ["m:f"],
    "transfer": ["m:f", "--base-width", "8"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_ends_with_130(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> bool:
        raise KeyboardInterrupt

    import_module(f"torchinit.cli.commands.{COMMANDS[command][0]}")
    monkeypatch.setitem(REGISTERED, command, replace(REGISTERED[command], run=interrupted))
    assert main([command, *ARGUMENTS[command]]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow("starts the command line")
def test_a_fetch_is_interrupted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes a connection, and never says a word
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.pth"
        environment = {**os.environ, "TORCHINIT_CACHE": str(tmp_path), "TORCHINIT_PRIVATE_HOSTS": "127.0.0.1"}
        command = [sys.executable, "-m", "torchinit", "fetch", url, "--sha256", "0" * 64]
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as run:
            talking, _ = server.accept()
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=60)
            talking.close()
    assert (run.returncode, out, err) == (130, "", "")


def test_an_interrupt_in_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: object) -> int:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys.modules["torchinit.cli"], "_carry_out", interrupted)
    assert main(["list"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
