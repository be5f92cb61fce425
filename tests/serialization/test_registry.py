"""Registries: names, near names, names taken twice, and packages that bring more."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from torchinit import ConfigError, Normal
from torchinit.initializers import Fill
from torchinit.model import Site
from torchinit.recipes import INITIALIZERS
from torchinit.serialization.registry import ClassRegistry

PLUGIN = """
from dataclasses import dataclass
from torchinit import Normal

@dataclass(frozen=True)
class Tiny:
    std: float = 1e-6

    def resolve(self, site):
        return Normal(std=self.std)
"""


@dataclass(frozen=True)
class Mine:
    """An initializer of somebody else."""

    std: float = 1.0

    def resolve(self, site: Site) -> Fill | None:
        return Normal(std=self.std)


@dataclass(frozen=True)
class Other(Mine):
    """Another."""


@pytest.fixture
def registry() -> ClassRegistry:
    return ClassRegistry("initializer", method="resolve", group="torchinit.tests", reserved={"layer"})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a good entry point and two bad ones."""
    name = "torchinit_tests_plugin"
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[torchinit.tests]\nTiny = {name}:Tiny\nGone = {name}:Gone\nAbsent = {name}_absent:Tiny\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_names_of_a_class(registry: ClassRegistry) -> None:
    assert registry.register(Mine) is Mine
    registry.register("First", "Second")(Other)
    assert tuple(registry) == ("First", "Mine", "Second")
    assert len(registry) == 3
    assert registry.get("Second") is Other
    assert registry.name_of(Other) == "First"
    assert "Mine" in registry
    assert "mine" not in registry
    assert repr(registry) == "<Registry of 3 initializers>"


def test_a_name_that_is_taken(registry: ClassRegistry) -> None:
    registry.register("Mine")(Mine)
    registry.register("Mine")(Mine)
    text = r"'Mine' stands for .*\.Mine already, so not for .*\.Other; force=True replaces it"
    with pytest.raises(ValueError, match=text):
        registry.register("New", "Mine")(Other)
    assert tuple(registry) == ("Mine",)
    registry.register("Mine", force=True)(Other)
    assert registry.get("Mine") is Other


def test_a_class_that_data_cannot_describe(registry: ClassRegistry) -> None:
    @dataclass
    class Mute:
        std: float = 1.0

    @dataclass(frozen=True)
    class Clash(Mine):
        layer: str = ""

    with pytest.raises(TypeError, match="is not an initializer: it must be a dataclass with a method 'resolve'"):
        registry.register(Mute)
    with pytest.raises(TypeError, match="is not an initializer"):
        registry.register("Site")(type("Plain", (), {"resolve": None}))
    with pytest.raises(TypeError, match=r"Clash has an argument 'layer', which is a word of every recipe entry"):
        registry.register(Clash)


def test_an_unknown_name(registry: ClassRegistry) -> None:
    registry.register(Mine)
    with pytest.raises(KeyError, match=r"unknown initializer 'MINES'; did you mean 'Mine'\?"):
        registry.get("MINES")
    with pytest.raises(KeyError, match=r"test_registry\.Other is not registered as initializer"):
        registry.name_of(Other)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_is_loaded_when_it_is_named(registry: ClassRegistry) -> None:
    registry.register(Mine)
    assert registry.get("Mine") is Mine
    assert "Tiny" in registry
    with pytest.raises(KeyError, match=r"did you mean 'Tiny'\?"):
        registry.get("Tinny")
    assert "torchinit_tests_plugin" not in sys.modules
    assert registry.get("Tiny").__name__ == "Tiny"
    assert "torchinit_tests_plugin" in sys.modules
    assert tuple(registry) == ("Mine", "Tiny")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(("name", "error"), [("Gone", "AttributeError"), ("Absent", "ModuleNotFoundError")])
def test_a_broken_plugin_is_named(registry: ClassRegistry, name: str, error: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"the plug-in for initializer '{name}' \(.*\) cannot be loaded: {error}: .*"
    ):
        registry.get(name)


def test_known_initializers_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchinit.serialization.registry.entry_points", lambda **_: pytest.fail("looked up"))
    assert INITIALIZERS.get("Normal") is Normal
    assert "Kaiming" in INITIALIZERS
