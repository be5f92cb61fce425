"""The kernel without Python: its digests, and the number of instructions that an element costs.

``python -m tests.noise.builds`` compares many more builds, with sanitizers and under valgrind; it takes minutes.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from tests.noise import builds

DIGESTS = "f3f758f831849fe9 0ba24b6fbafbea1e e56a92a7af3f0bdb ad950063fe51529b"
"""What every build prints; they belong to the stream's version as the golden values do."""

GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="no gcc here")
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind here")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="counted on x86-64")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.compile_harness(tmp_path_factory.mktemp("kernel") / "harness", "gcc", ["-O3"])


@pytest.mark.slow("compiles the kernel")
@needs_gcc
def test_optimized_build_prints_the_digests(harness: Path) -> None:
    assert set(builds.digests([str(harness)]).values()) == {DIGESTS}


# Speed is no assertion here, since a machine may do something else; instructions are the same in every run. A limit is
# what this kernel needs with gcc 12 and a tenth more, for other compilers.
@needs_gcc
@needs_valgrind
@needs_x86
@pytest.mark.parametrize(
    ("kind", "measured"), [("uniform", 7.4), ("normal", 12.0), ("truncated2", 13.0), ("truncated3", 14.6)]
)
def test_instructions_an_element(harness: Path, kind: str, measured: float) -> None:
    assert builds.instructions(harness, "avx2", kind) <= measured * 1.1
