"""Stubs: stand-ins for compiled or heavy modules that other libraries import and the peers' tests never call.

Importing this file is enough: from then on `import torchvision.anything` and `import mmcv._ext` succeed.
What they hand out are empty classes, good for `import`, for `isinstance` and as a base class. To call one is
an error that says so.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# torchvision would replace the pinned torch. `mmcv._ext` is mmcv's compiled part, which mmcv-lite lacks.
# mmpretrain's multimodal models were written for transformers 4 and fail to import with transformers 5.
STUBBED = ("torchvision", "mmcv._ext", "mmpretrain.models.multimodal")


class _Placeholders(type):
    """Classes whose public attributes exist, so that `InterpolationMode.BICUBIC` can be a default value."""

    def __getattr__(cls, name: str) -> Any:
        return _placeholder(f"{cls.__module__}.{cls.__name__}", name)

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        message = f"{cls.__module__}.{cls.__name__} is a stub of the peers' tests and cannot be called"
        raise NotImplementedError(message)


def _placeholder(owner: str, name: str) -> type:
    if name.startswith("__"):
        # Machinery asks for dunders (__path__, __wrapped__ ...) and takes any answer at its word.
        raise AttributeError(name)
    return _Placeholders(name, (), {"__module__": owner})


class _StubModule(ModuleType):
    """A package in which every name exists, as a submodule when imported and as an empty class otherwise."""

    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> type:
        return _placeholder(self.__name__, name)


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stubbed modules and whatever lies below them; asked first: one of them exists, broken."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(fullname == stub or fullname.startswith(f"{stub}.") for stub in self.names):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is complete as it is."""


def install() -> None:
    """Make the stubs importable; a second call changes nothing."""
    if not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StubFinder(STUBBED))


@contextlib.contextmanager
def standing_in(*names: str) -> Iterator[None]:
    """Stubs for some more modules, which nobody else is to take for installed: gone when the block ends."""
    finder = _StubFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if getattr(module, "__loader__", None) is finder]:
            del sys.modules[name]


install()
