"""Alarms: what exists in the package, and is not registered or stands on no page, fails here.

Each alarm is a function that returns what is missing, and is shown to go off.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest
from torch import Tensor

import torchinit
from torchinit.checkpoints.adapters import ADAPTERS, Adapter
from torchinit.cli import commands
from torchinit.cli.commands import COMMANDS
from torchinit.cli.frame import REGISTERED
from torchinit.initializers import Constant, Fill
from torchinit.initializers.base import Wrapper
from torchinit.linting import CHECKS, checks
from torchinit.linting.registry import Hit
from torchinit.linting.target import LintTarget
from torchinit.model import Site
from torchinit.recipes import INITIALIZERS
from torchinit.rules import SELECTORS, Selector
from torchinit.serialization.registry import ClassRegistry

DOCS = Path(__file__).parents[1] / "docs"

# What no recipe names: text makes the first, and the second stands for a function of the user's.
UNNAMED = {"Computed", "Code", "FromIndex"}


def every_module() -> list[str]:
    """Every module of the package; what runs something when it is imported, and the kernel's folder, are left out."""
    found = [module.name for module in pkgutil.walk_packages(torchinit.__path__, "torchinit.")]
    return [name for name in found if not name.endswith("__main__") and ".csrc." not in name]


def classes() -> Iterator[type]:
    """Every public and finished dataclass of the package."""
    for name in every_module():
        for value in vars(import_module(name)).values():
            if not inspect.isclass(value) or value.__module__ != name or value.__name__.startswith("_"):
                continue
            if is_dataclass(value) and not inspect.isabstract(value):
                yield value


def initializers() -> list[type]:
    return [cls for cls in classes() if callable(getattr(cls, "resolve", None)) and cls.__name__ not in UNNAMED]


def subclasses(base: type) -> list[type]:
    return [cls for cls in classes() if issubclass(cls, base) and cls.__name__ not in UNNAMED]


def unregistered(found: Collection[type], registry: ClassRegistry) -> list[str]:
    """Those that no name of the registry stands for."""
    known = {registry.get(name) for name in registry}
    return [f"{cls.__module__}.{cls.__name__}" for cls in found if cls not in known]


def off_page(names: Collection[str], page: str, row: str) -> list[str]:
    """The names without a line of the page that begins with this row."""
    text = (DOCS / page).read_text("utf-8")
    return [name for name in names if not re.search("^" + row.format(re.escape(name)), text, re.MULTILINE)]


def unlisted(commands: Collection[str], names: Container[str]) -> list[str]:
    """The commands that the parser does not know."""
    return [name for name in commands if name not in names]


def unchecked() -> list[str]:
    """The public functions of the checks' modules that are not checks."""
    known = {one.search for one in CHECKS.values()}
    return [
        f"{module.__name__}.{name}"
        for module in vars(checks).values()
        if inspect.ismodule(module) and module.__name__.startswith("torchinit.linting.checks.")
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
        if not name.startswith("_") and value not in known
    ]


def test_every_initializer_is_registered() -> None:
    assert len(initializers()) > 25
    assert unregistered(initializers(), INITIALIZERS) == []


def test_every_fill_is_registered() -> None:
    assert len(subclasses(Fill)) > 10
    assert unregistered(subclasses(Fill), INITIALIZERS) == []


def test_every_selector_is_registered() -> None:
    assert len(subclasses(Selector)) > 10
    assert unregistered(subclasses(Selector), SELECTORS) == []


def test_every_adapter_is_registered() -> None:
    assert len(subclasses(Adapter)) > 15
    assert unregistered(subclasses(Adapter), ADAPTERS) == []


def test_every_check_is_registered() -> None:
    assert unchecked() == []


def test_every_command_is_listed() -> None:
    for module in pkgutil.iter_modules(commands.__path__):
        import_module(f"{commands.__name__}.{module.name}")
    assert len(REGISTERED) > 10
    assert unlisted(REGISTERED, COMMANDS) == []
    homes = {name: made.run.__module__.rpartition(".")[2] for name, made in REGISTERED.items()}
    assert homes == {name: file for name, (file, _) in COMMANDS.items()}


@pytest.mark.parametrize(
    ("names", "page", "row"),
    [
        (list(INITIALIZERS), "reference/recipes.md", r"\| `{}[(`]"),
        (list(SELECTORS), "reference/recipes.md", r"\| `{}[(`]"),
        (list(ADAPTERS), "guides/adapters.md", r"\| `{}[(`]"),
        (list(CHECKS), "guides/lint.md", r"\| `{}`"),
        (list(COMMANDS), "reference/cli.md", r"## {}$"),
    ],
    ids=["initializers", "selectors", "adapters", "checks", "commands"],
)
def test_every_name_is_on_its_page(names: list[str], page: str, row: str) -> None:
    assert off_page(names, page, row) == []
    assert off_page([*names, "Forgotten"], page, row) == ["Forgotten"]


@dataclass(frozen=True)
class Siren:
    """An initializer that nobody registered."""

    omega: float = 30.0

    def resolve(self, site: Site) -> Fill:
        return Constant(self.omega)


@dataclass(frozen=True)
class Loud(Wrapper):
    """A fill that nobody registered."""


@dataclass(frozen=True)
class Odd(Selector):
    """A selector that nobody registered."""

    def matches(self, site: Site) -> bool:
        return True


@dataclass(frozen=True)
class Shuffle(Adapter):
    """An adapter that nobody registered."""

    def adapt(self, tensors: Sequence[Tensor], shape: tuple[int, ...], key: str) -> Tensor:
        return tensors[0].flip(0)


def ti999(target: LintTarget) -> Iterator[Hit]:
    """A check that nobody registered."""
    yield from ()


@pytest.mark.parametrize(
    ("module", "cls", "found", "registry"),
    [
        ("torchinit.initializers.variance_scaling", Siren, initializers, INITIALIZERS),
        ("torchinit.initializers.composed", Loud, lambda: subclasses(Fill), INITIALIZERS),
        ("torchinit.rules.selectors", Odd, lambda: subclasses(Selector), SELECTORS),
        ("torchinit.checkpoints.adapters.images", Shuffle, lambda: subclasses(Adapter), ADAPTERS),
    ],
)
def test_a_class_that_nobody_registered_is_found(
    module: str, cls: type, found: Callable[[], list[type]], registry: ClassRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cls, "__module__", module)  # as if it were written there
    monkeypatch.setattr(import_module(module), cls.__name__, cls, raising=False)
    assert unregistered(found(), registry) == [f"{module}.{cls.__name__}"]


def test_a_check_that_nobody_registered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("torchinit.linting.checks.ti4_scale")
    monkeypatch.setattr(ti999, "__module__", module.__name__)
    monkeypatch.setattr(module, "ti999", ti999, raising=False)
    assert unchecked() == ["torchinit.linting.checks.ti4_scale.ti999"]


def test_a_command_that_nobody_lists_is_found() -> None:
    assert unlisted(["plan", "check-ckpt", "forgotten"], COMMANDS) == ["forgotten"]
