"""Registries: registering, finding across scopes, building, and what goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from torchinit.mmengine import Registry, build_from_cfg


def test_names_lists_and_force() -> None:
    shapes = Registry("shape", scope="mine")

    @shapes.register_module(name=["Round", "Circular"])
    class Circle:
        pass

    assert shapes.get("Round") is shapes.get("Circular") is Circle
    assert len(shapes) == 2
    assert "Round" in shapes
    with pytest.raises(KeyError, match="Round is already registered in shape"):
        shapes.register_module(name="Round", module=dict)
    shapes.register_module(name="Round", module=dict, force=True)
    assert shapes.get("Round") is dict
    assert "Circular" in repr(shapes)


def test_wrong_arguments() -> None:
    shapes = Registry("shape", scope="mine")
    with pytest.raises(TypeError, match="force must be a boolean"):
        shapes.register_module(force=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be None, a str or a sequence of str"):
        shapes.register_module(name=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="module must be Callable"):
        shapes.register_module(module=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a name in a registry is a str"):
        shapes.get(3)  # type: ignore[arg-type]


def test_scopes_of_parents_and_children() -> None:
    root = Registry("shape", scope="root", aliases=("older",))
    child = Registry("shape", parent=root, scope="child")
    sibling = Registry("shape", parent=root, scope="sibling")
    root.register_module(name="A", module=dict)
    child.register_module(name="B", module=list)
    assert child.get("A") is dict
    assert root.get("B") is None
    assert root.get("child.B") is list
    assert sibling.get("child.B") is list
    assert child.get("older.A") is dict
    assert root.build({"type": "B", "_scope_": "child"}) == []
    with pytest.raises(AssertionError, match="scope 'child' exists"):
        Registry("shape", parent=root, scope="child")


def test_full_names_of_what_is_imported() -> None:
    assert Registry("shape", scope="mine").get("collections.OrderedDict") is __import__("collections").OrderedDict
    assert Registry("shape", scope="mine").get("not_imported_anywhere.Thing") is None


BAD: list[tuple[Any, type[Exception], str]] = [
    (3, TypeError, "cfg must be a dict"),
    ({}, KeyError, 'must contain the key "type"'),
    ({"type": "Sqare"}, KeyError, r"Sqare is not in the mine::shape registry; did you mean 'Square'\?"),
    ({"type": 3}, TypeError, "type must be a str or a callable"),
]


@pytest.mark.parametrize(("cfg", "error", "text"), BAD)
def test_configs_that_cannot_be_built(cfg: Any, error: type[Exception], text: str) -> None:
    shapes = Registry("shape", scope="mine")
    shapes.register_module(name="Square", module=dict)
    with pytest.raises(error, match=text):
        shapes.build(cfg)


class Shape:
    """One that takes any name, and is wrong inside for some."""

    def __init__(self, side: int = 1, **names: int) -> None:
        if "inner" in names:
            dict.fromkeys(names, other=1)  # type: ignore[call-overload]
        if "sde" in names:
            raise TypeError("sides are numbers")


@pytest.mark.parametrize(
    ("cfg", "text"),
    [
        ({"type": "Shape", "inner": 3}, "keyword argument"),
        ({"type": "Shape", "sde": 3}, "^sides are numbers$"),
        ({"type": Exception, "a": 3}, "takes no keyword arguments"),
    ],
)
def test_errors_of_another_kind_stay_as_they_are(cfg: Any, text: str) -> None:
    shapes = Registry("shape", scope="mine")
    shapes.register_module(module=Shape)
    with pytest.raises(TypeError, match=text) as caught:
        shapes.build(cfg)
    assert type(caught.value) is TypeError


def test_arguments_of_functions() -> None:
    def square(side: int, *, unit: str = "m") -> int:
        return side**2

    with pytest.raises(TypeError, match=r"square has no argument 'unti'; did you mean 'unit'\?"):
        Registry("shape", scope="mine").build({"type": square, "side": 2, "unti": "cm"})


def test_wrong_arguments_of_build_from_cfg() -> None:
    with pytest.raises(TypeError, match="registry must be a Registry"):
        build_from_cfg({"type": "a"}, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="default_args must be a dict or None"):
        build_from_cfg({"type": dict}, Registry("a", scope="mine"), default_args=3)  # type: ignore[arg-type]
    assert build_from_cfg({"type": dict, "a": 1}, Registry("a", scope="mine"), {"a": 2, "b": 3}) == {"a": 1, "b": 3}
