"""Files: what is read is bounded; what is written is whole, and what a killed run leaves is removed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torchinit._files import expanded, read_bounded, remove_leftovers, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


LEFT = ".out.safetensors.0123456789abcdef.part"


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with replacing(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("half")  # type: ignore[call-overload]  # fails
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["out.safetensors"]


def test_names_are_random_so_that_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    (tmp_path / f".out.safetensors.{os.getpid()}.part").write_bytes(b"of a container with the same number")
    with replacing(path) as first, replacing(path) as second:
        assert first.name != second.name
        first.write(b"1")
        second.write(b"2")
    assert path.read_bytes() == b"1"  # the last one to be whole
    assert len(names(tmp_path)) == 2


def test_what_is_left_is_told_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, others = tmp_path / "out.safetensors", (".other.safetensors.0123456789abcdef.part", ".out.safetensors.part")
    for name in (LEFT, *others):
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(path)
    assert names(tmp_path) == sorted(others)
    assert f"{tmp_path / LEFT} was left by a run that was killed; it is removed" in caplog.text


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with replacing(path) as file:
        file.write(b"half")
        remove_leftovers(path)
        assert len(names(tmp_path)) == 1
    assert path.read_bytes() == b"half"


CODE = """
import sys, time
from pathlib import Path
from torchinit._files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half"); file.flush(); print("writing", flush=True); time.sleep(60)
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_a_run_that_is_killed(number: signal.Signals, left: int, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", CODE, str(path)], stdout=-1, stderr=-1, text=True) as run:
        assert run.stdout
        assert run.stdout.readline() == "writing\n"
        remove_leftovers(path)  # of a run that is alive
        assert len(names(tmp_path)) == 1
        run.send_signal(number)
    assert len(names(tmp_path)) == left
    remove_leftovers(path)
    assert names(tmp_path) == []


def test_what_is_read(tmp_path: Path) -> None:
    (path := tmp_path / "a").write_bytes(b"1234")
    os.mkfifo(fifo := tmp_path / "fifo")
    assert read_bounded(path, 4) == b"1234"
    with pytest.raises(OSError, match=r"^has more than 3 bytes$"):
        read_bounded(path, 3)
    for odd in (fifo, Path("/dev/zero"), Path("/dev/full")):
        with pytest.raises(OSError, match=r"^is a device or a pipe, not a file$"):
            read_bounded(odd, 4)
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 4)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 4)


def test_users_that_are_not_there() -> None:
    assert expanded("~/a") == Path.home() / "a"
    with pytest.raises(FileNotFoundError, match=re.escape("~nouser/x can not be found: there is no user")):
        expanded("~nouser/x")
