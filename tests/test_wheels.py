"""Wheels: what is installed, with a compiler from a source distribution and without one, and that it draws the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNEL = "torchinit/noise/csrc/_kernel.so"
SOURCES = ROOT / "src"

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no compiler here")

# Every tenth of the golden draws with whatever serves there, the kernel or not; prints which.
GOLDEN = """
import json, sys
from tests.noise.golden import FILE, Case
from torchinit.noise import keyed
from torchinit.noise.engines import dispatch
for row in json.loads(FILE.read_text("utf-8"))["cases"][::10]:
    expected = row.pop("digest")
    assert Case(**row).digest() == expected, row
print(keyed.__file__, dispatch.chosen_kernel() is not None)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because setuptools writes build/ and *.egg-info beside the sources."""
    project = tmp_path_factory.mktemp("wheels") / "project"
    project.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(SOURCES, project / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    return project


def build_wheel(source: Path, target: Path, **environment: str) -> Path:
    """A wheel of a folder or a source distribution, unpacked."""
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["-w", str(target), str(source)]
    subprocess.run(command, check=True, cwd=source.parent, env={**os.environ, **environment})
    (wheel,) = target.glob("torchinit-*.whl")
    assert "-py3-none-" in wheel.name
    zipfile.ZipFile(wheel).extractall(target)
    return target


def draws(installed: Path, project: Path) -> str:
    """Which code drew the golden values, and whether the kernel did; fails where a value differs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (installed, ROOT)))}
    command = [sys.executable, "-c", GOLDEN]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=project, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow("builds a source distribution and a wheel, and compiles the kernel")
@needs_compiler
def test_a_wheel_from_a_source_distribution_holds_what_runs(project: Path, tmp_path: Path) -> None:
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project, capture_output=True)
    (sdist,) = tmp_path.glob("torchinit-*.tar.gz")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2].removeprefix("src/") for name in archive.getnames()}
    installed = build_wheel(sdist, tmp_path / "wheel")
    held = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    endings = (".py", ".toml", ".typed", ".c", ".h")
    needed = {str(path.relative_to(SOURCES)) for path in (SOURCES / "torchinit").rglob("*") if path.suffix in endings}
    assert needed <= shipped
    assert needed | {KERNEL} <= held
    assert not [name for name in held if name.startswith("tests")]
    assert draws(installed, project) == f"{installed}/torchinit/noise/keyed.py True"


def test_a_wheel_without_a_compiler_draws_the_same(project: Path, tmp_path: Path) -> None:
    installed = build_wheel(project, tmp_path / "wheel", CC="/bin/false")
    assert not (installed / KERNEL).exists()
    assert draws(installed, project) == f"{installed}/torchinit/noise/keyed.py False"
