"""Names registered with mmengine, here a stand-in of it, are found by scope; nothing is imported for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from torchinit.mmengine.registry import registered_with_mmengine


class Theirs:
    """A registry as far as it is looked at; without entries it is false, as mmengine's."""

    def __init__(self, scope: str, names: tuple[str, ...], parent: Theirs | None = None) -> None:
        self.scope, self.parent, self.children = scope, parent, dict[str, Theirs]()
        self.module_dict = {name: f"{scope}'s {name}" for name in names}
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
    assert registered_with_mmengine(key) == found


def test_nothing_is_found_where_mmengine_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmengine.registry")
    assert registered_with_mmengine("Root") is None
    assert "mmengine.registry" not in sys.modules
