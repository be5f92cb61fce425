"""The optional part of the build: the compiled kernel. Everything else is in pyproject.toml.

A compiler that is missing or fails is no error: the same values are then drawn by slower code.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNEL = Path(__file__).parent / "src" / "torchinit" / "noise" / "csrc"
build = runpy.run_path(str(KERNEL / "build.py"))


class BuildKernel(build_ext):
    """Compiles with flags of our own; the result is a plain library that ctypes loads."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            build["build"](target)
        except build["BuildError"] as error:
            print(f"torchinit: no compiled kernel, the same values will be drawn more slowly: {error}")

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / build["LIBRARY"])

    def copy_extensions_to_source(self) -> None:
        """In place, for an editable install; there is nothing to copy without a compiler."""
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            if built.exists():
                self.copy_file(str(built), str(KERNEL / build["LIBRARY"]), level=self.verbose)


class AnyPythonWheel(bdist_wheel):
    """The library has nothing of Python in it: one wheel serves every version on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("torchinit.noise.csrc._kernel", [], optional=True)],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": AnyPythonWheel},
)
