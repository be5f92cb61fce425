"""The public face: one sorted list of names, each documented by example, behind an import that loads only torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import torchinit

# Aliases of types have no docstring of their own.
DOCUMENTED = [
    n for n in torchinit.__all__ if inspect.isclass(getattr(torchinit, n)) or inspect.isfunction(getattr(torchinit, n))
]

# What `import torchinit` loads beyond what `import torch` had loaded already.
LOADED = """
import sys, torch
before = set(sys.modules)
import torchinit
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_all_is_sorted_and_has_no_name_twice() -> None:
    assert list(torchinit.__all__) == sorted(set(torchinit.__all__))


def test_all_is_exactly_what_is_public() -> None:
    public = {
        name
        for name, value in vars(torchinit).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert public == set(torchinit.__all__) - {"__version__"}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_name_is_documented_by_example(name: str) -> None:
    value = getattr(torchinit, name)
    document = inspect.getdoc(value) or ""
    assert document, f"{name} has no docstring"
    if not (isinstance(value, type) and issubclass(value, BaseException)):
        assert ">>>" in document, f"the docstring of {name} has no example"


def test_import_loads_torch_and_the_standard_library_alone() -> None:
    command = [sys.executable, "-W", "error:::torchinit", "-c", LOADED]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "torchinit" in loaded
    assert set(loaded) - {"torchinit"} <= sys.stdlib_module_names
