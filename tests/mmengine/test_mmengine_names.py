"""Names registered with mmengine, here a stand-in of it, are found by scope; nothing is imported for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torchinit.mmengine import Registry
from torchinit.mmengine.registry import default_scope


class Theirs:
    """A registry as far as it is looked at; without entries it is false, as mmengine's."""

    def __init__(self, scope: str, names: tuple[str, ...], parent: Theirs | None = None) -> None:
        self.scope, self.parent, self.children = scope, parent, dict[str, Theirs]()
        self.module_dict = {name: f"{scope}'s {name}" for name in names}
        self._locations: tuple[str, ...] = ()
        if parent is not None:
            parent.children[scope] = self

    def __len__(self) -> int:
        return len(self.module_dict)


@pytest.fixture
def default() -> dict[str, str]:
    return {}


@pytest.fixture(autouse=True)
def mmengine(monkeypatch: pytest.MonkeyPatch, default: dict[str, str]) -> None:
    root = Theirs("mmengine", ("Both", "Root"))
    Theirs("det", ("Both", "Det"), root)
    Theirs("small", ("Small",), Theirs("empty", (), root))

    class DefaultScope:
        @staticmethod
        def get_current_instance() -> Any:
            return SimpleNamespace(scope_name=default["scope"]) if default else None

    fake: Any = SimpleNamespace(WEIGHT_INITIALIZERS=root, DefaultScope=DefaultScope)
    monkeypatch.setitem(sys.modules, "mmengine.registry", fake)


@pytest.mark.parametrize(
    ("scope", "key", "found"),
    [
        (None, "Both", "mmengine's Both"),
        (None, "Det", None),
        (None, "det.Both", "det's Both"),
        (None, "det.Root", "mmengine's Root"),
        (None, "small.Small", "small's Small"),
        (None, "empty.Root", "mmengine's Root"),
        (None, "mmengine.Root", "mmengine's Root"),
        (None, "nobodys.Root", None),
        (None, "", None),
        ("det", "Both", "det's Both"),
        ("det", "Root", "mmengine's Root"),
        ("empty", "Small", None),
        ("nobodys", "Both", "mmengine's Both"),
    ],
)
def test_a_name_is_found_by_scope(default: dict[str, str], scope: str | None, key: str, found: str | None) -> None:
    if scope:
        default["scope"] = scope
    assert ours().find(key, default_scope()) == found


def ours() -> Registry:
    """A registry of torchinit's that looks through mmengine's, too."""
    tree = "WEIGHT_INITIALIZERS"
    return Registry("thing", scope="own", elsewhere=lambda: getattr(sys.modules.get("mmengine.registry"), tree, None))


def test_nothing_is_found_where_mmengine_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmengine.registry")
    assert ours().find("Root", default_scope()) is None
    assert "mmengine.registry" not in sys.modules


def made(name: str, module: str = "users_code") -> type:
    return type(name, (), {"__module__": module})


@pytest.mark.parametrize(
    ("scope", "own", "theirs", "found"),
    [
        # a root's: what a user registered over what is built in, torchinit's over mmengine's
        ("", {"own": made("AInit", "torchinit.x")}, {"mmengine": made("AInit", "mmengine.x")}, "own"),
        ("", {"own": made("AInit", "torchinit.x")}, {"mmengine": made("AInit")}, "mmengine"),
        ("", {"own": made("AInit", "torchinit.x")}, {"mmengine": made("BInit", "mmengine.x")}, "mmengine"),
        ("", {"own": made("BInit", "torchinit.x")}, {"mmengine": made("AInit", "mmengine.x")}, "own"),
        ("", {"own": made("AInit")}, {"mmengine": made("AInit")}, "own"),
        # a package's over that of either root, whichever tree has it
        ("det", {"own": made("AInit")}, {"det": made("AInit")}, "det"),
        ("det", {"own": made("AInit", "torchinit.x")}, {"det": made("BInit", "mmengine.x")}, "det"),
        ("child", {"own": made("AInit"), "child": made("AInit")}, {"mmengine": made("AInit")}, "child"),
        ("child", {"own": made("AInit", "torchinit.x")}, {"mmengine": made("AInit")}, "mmengine"),
        ("small", {"own": made("AInit")}, {"empty": made("AInit")}, "empty"),
        ("nobodys", {"own": made("AInit"), "child": made("AInit")}, {"det": made("AInit")}, "own"),
    ],
)
def test_whose_of_several_is_found(
    default: dict[str, str], scope: str, own: dict[str, type], theirs: dict[str, type], found: str
) -> None:
    registry = ours()
    child = Registry("thing", parent=registry, scope="child")
    for each in (registry, child):
        each.register_module(name="A", module=own[each.scope]) if each.scope in own else None
    their_root = registry._elsewhere()
    by_scope = {each.scope: each for each in (their_root, *their_root.children.values())}
    for name, cls in theirs.items():
        by_scope[name].module_dict["A"] = cls
    expected = {**theirs, **own}[found]
    default.update({"scope": scope} if scope else {})
    assert registry.resolve("A") is expected
    default.clear()
    assert registry.resolve("A", scope or None) is expected
    if scope not in ("", "nobodys"):
        assert registry.resolve(f"{scope}.A") is expected


def test_a_scope_that_nobody_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    registry = ours()
    registry.register_module(name="A", module=dict)
    Registry("thing", parent=registry, scope="child")
    assert registry.build({"type": "A", "_scope_": "chidl"}) == {}
    assert caplog.messages == ["_scope_ 'chidl' has no registry of things, and does nothing; did you mean 'child'?"]
    caplog.clear()
    assert registry.build({"type": "A", "_scope_": "det"}) == {}
    assert caplog.messages == []


def test_modules_that_a_package_names_are_imported_before_it_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = ours()
    child = Registry("thing", parent=registry, scope="lazily", locations=["registers_things"])
    monkeypatch.setattr(sys, "lazily", child, raising=False)
    code = "import sys\nsys.lazily.register_module(name='Late', module=dict)\n"
    (tmp_path / "registers_things.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.find("Late") is None
    assert registry.resolve("lazily.Late") is dict
    assert registry.resolve("Late", "lazily") is dict
