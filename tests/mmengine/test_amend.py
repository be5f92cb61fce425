"""An init_cfg of a class, with some of it changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit.mmengine import BaseModule, amend

OWN: list[dict[str, Any]] = [
    {"type": "Kaiming", "layer": "Conv2d"},
    {"type": "Constant", "val": 1, "layer": ["BatchNorm2d", "LayerNorm"]},
]

CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "merged": (
        {"layer": "Conv2d", "mode": "fan_in"},
        [{"type": "Kaiming", "layer": ["Conv2d"], "mode": "fan_in"}, OWN[1]],
    ),
    "another type": (
        {"type": "Normal", "std": 0.1, "layer": "Conv2d"},
        [{"type": "Normal", "std": 0.1, "layer": ["Conv2d"]}, OWN[1]],
    ),
    "one of two layers": (
        {"layer": "LayerNorm", "val": 0},
        [
            OWN[0],
            {"type": "Constant", "val": 1, "layer": ["BatchNorm2d"]},
            {"type": "Constant", "val": 0, "layer": ["LayerNorm"]},
        ],
    ),
    "a layer of each entry": (
        {"layer": ["Conv2d", "LayerNorm"], "bias": 2},
        [
            {"type": "Kaiming", "layer": ["Conv2d"], "bias": 2},
            {"type": "Constant", "val": 1, "layer": ["BatchNorm2d"]},
            {"type": "Constant", "val": 1, "layer": ["LayerNorm"], "bias": 2},
        ],
    ),
    "added": ({"type": "Xavier", "layer": "Linear"}, [*OWN, {"type": "Xavier", "layer": ["Linear"]}]),
    "dropped": ({"type": None, "layer": "Conv2d"}, [OWN[1]]),
    "by type": ({"type": "Constant", "bias": 3}, [OWN[0], {**OWN[1], "bias": 3}]),
    "a checkpoint added": (
        {"type": "Pretrained", "checkpoint": "x"},
        [*OWN, {"type": "Pretrained", "checkpoint": "x"}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_amend(name: str) -> None:
    change, expected = CASES[name]
    assert amend(OWN, change) == expected
    assert OWN[0] == {"type": "Kaiming", "layer": "Conv2d"}


def test_a_single_entry_and_none() -> None:
    assert amend(OWN[0], {"layer": "Conv2d", "a": 1}) == [{"type": "Kaiming", "layer": ["Conv2d"], "a": 1}]
    assert amend(None, {"type": "Kaiming", "layer": "Conv2d"}) == [{"type": "Kaiming", "layer": ["Conv2d"]}]
    assert amend(OWN) == OWN


BAD: list[tuple[Any, type[Exception], str]] = [
    (
        {"layer": "Conv2D", "mode": "fan_in"},
        KeyError,
        r"for the layer 'Conv2D'; give a type to add one; did you mean 'Conv2d'\?",
    ),
    ({"mode": "fan_in"}, KeyError, "a change needs a layer or a type that an entry has"),
    ("Conv2d", TypeError, "a change of an init_cfg is a dict, but got 'Conv2d'"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_changes_that_fit_nothing(change: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        amend(OWN, change)


class InSignature(BaseModule):
    """Its own init_cfg is the default of the argument."""

    def __init__(self, width: int = 2, init_cfg: Any = OWN) -> None:
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(width, 2, 1)


class InConstructor(BaseModule):
    """Its own init_cfg is made where none is given."""

    def __init__(self, width: int = 2, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(width, 2, 1)
        if init_cfg is None:
            self.init_cfg = list(OWN)


@pytest.mark.parametrize("cls", [InSignature, InConstructor])
def test_the_class_keeps_what_is_not_amended(cls: Any) -> None:
    change = {"layer": "Conv2d", "bias": 4.0}
    assert cls(init_cfg={"amend": change}).init_cfg == amend(OWN, change)
    model = cls(3, init_cfg={"amend": [change]})
    report = model.init_weights()
    assert report["conv.bias"].rule.endswith("bias=4.0")
    assert model.conv.bias.tolist() == [4.0, 4.0]
    assert cls().init_cfg == OWN


def test_amend_stands_alone() -> None:
    with pytest.raises(TypeError, match="an init_cfg with 'amend' has no other key"):
        InSignature(init_cfg={"amend": {}, "type": "Normal"})


def test_amend_by_position_is_told_what_it_lacks() -> None:
    with pytest.raises(KeyError, match='must contain the key "type"'):
        InSignature(2, {"amend": {"layer": "Conv2d"}}).init_weights()


@given(st.lists(st.sampled_from(["Conv2d", "Linear", "LayerNorm", "BatchNorm2d"]), min_size=1, unique=True))
def test_every_layer_keeps_one_entry(layers: list[str]) -> None:
    made = amend(OWN, {"type": "Normal", "layer": layers})
    named = [
        layer for entry in made for layer in ([entry["layer"]] if isinstance(entry["layer"], str) else entry["layer"])
    ]
    assert sorted(named) == sorted({*layers, "Conv2d", "BatchNorm2d", "LayerNorm"})
    assert all(entry["type"] == "Normal" for entry in made if set(layers) & set(entry["layer"]))
