"""Init configs: their errors, their warnings, what they can say beyond MMEngine's; one with some of it changed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit import Report, TorchinitError
from torchinit.mmengine import (
    BaseInit,
    BaseModule,
    Caffe2XavierInit,
    ConstantInit,
    KaimingInit,
    NormalInit,
    PretrainedInit,
    TruncNormalInit,
    UniformInit,
    XavierInit,
    amend,
    bias_init_with_prob,
    initialize,
)


def net() -> Any:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.add_module("head", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    return model


BAD: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "init_cfg must be a dict or a list of dict"),
    (({"type": "Constant", "val": 1},), TypeError, "init_cfg must be a dict or a list of dict"),
    ([3], TypeError, "cfg must be a dict, but got <class 'int'>"),
    ({"val": 1}, KeyError, 'must contain the key "type"'),
    ({"typ": "Constant", "val": 1}, KeyError, r"did you mean 'typ'\?"),
    ({"type": "Kaimng", "layer": "Conv2d"}, KeyError, r"did you mean 'Kaiming'\?"),
    ({"type": 3}, TypeError, "type must be a str or a callable"),
    ({"type": "Constant", "vall": 1}, TypeError, r"^Constant has no argument 'vall'; did you mean 'val'\?$"),
    ({"type": "Constant", "layer": "Conv2d"}, TypeError, "^Constant needs 'val'$"),
    (
        {"type": "Normal", "sdt": 1, "layr": "Conv2d"},
        TypeError,
        r"^Normal has no argument 'sdt'; did you mean 'std'\?; has no argument 'layr'; did you mean 'layer'\?$",
    ),
    ({"type": "Pretrained", "checkpoint": "a.pth", "prefx": "a."}, TypeError, r"'prefx'; did you mean 'prefix'\?$"),
    ({"type": "Pretrained", "checkpont": "a.pth"}, TypeError, r"'checkpont'; did you mean 'checkpoint'\?$"),
    ({"type": "Pretrained", "checkpoint": "a.pth", "prefix": 3}, TypeError, r"prefix must be text .* but got 3$"),
    ({"type": "Pretrained", "checkpoint": None}, TypeError, "checkpoint must be a path or an address, but got None"),
    ({"type": "Constant", "val": 1, "bias": "a"}, TypeError, "bias must be a number, but got a <class 'str'>"),
    ({"type": "Constant", "val": 1, "bias_prob": 1}, TypeError, "bias_prob type must be float"),
    ({"type": "Constant", "val": 1, "bias_prob": 1.5}, ValueError, r"a prior probability lies in \(0, 1\)"),
    ({"type": "Constant", "val": 1, "layer": ("Conv2d",)}, TypeError, "layer must be a str or a list of str"),
    ({"type": "Xavier", "distribution": "cauchy", "layer": "Conv2d"}, AssertionError, "distribution must be"),
    ({"type": "Kaiming", "mode": "fan", "layer": "Conv2d"}, ValueError, "mode must be fan_in or fan_out"),
    ({"type": "Kaiming", "nonlinearity": "rleu", "layer": "Conv2d"}, ValueError, r"did you mean 'relu'\?"),
    ({"type": "Kaiming", "layer": "BatchNorm2d"}, ValueError, "fans need at least 2 dimensions"),
    ({"type": "Normal", "std": -1, "layer": "Conv2d"}, ValueError, "std must be at least 0, but got -1"),
    ({"type": "TruncNormal", "std": 0, "layer": "Conv2d"}, ValueError, "a truncated normal needs std > 0"),
    ({"type": "Normal", "std": "a", "layer": "Conv2d"}, TypeError, "std must be a number"),
    ({"type": "Constant", "val": 1, "override": 3}, TypeError, "override must be a dict or a list of dict"),
    ({"type": "Constant", "val": 1, "override": [3]}, TypeError, "a list with <class 'int'>"),
    ({"type": "Constant", "val": 1, "override": {}}, ValueError, '`override` must contain the key "name"'),
    ({"type": "Constant", "val": 1, "override": {"name": "head", "val": 3}}, ValueError, '`override` need "type" key'),
    (
        {"type": "Constant", "val": 1, "override": {"name": "heed"}},
        RuntimeError,
        r"attribute heed, .*did you mean 'head'\?",
    ),
    ({"type": "Constant", "val": 1, "override": {"name": "training"}}, AttributeError, "training is a bool"),
    ({"type": "Orthogonal", "layer": "Linear", "gian": 2}, ValueError, r"init_cfg.gian: .* did you mean 'gain'\?"),
]


@pytest.mark.parametrize(("init_cfg", "error", "text"), BAD)
def test_bad_configs_write_nothing(init_cfg: Any, error: type[Exception], text: str) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = {"type": "Constant", "val": 9, "layer": "Conv2d"}
    said = [good, init_cfg] if isinstance(init_cfg, dict) else init_cfg
    with pytest.raises(error, match=text):
        initialize(model, said)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_errors_are_torchinits_too() -> None:
    with pytest.raises(TorchinitError, match="is not in the torchinit::weight initializer registry"):
        initialize(net(), {"type": "Nothing"})


def test_a_layer_that_matches_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    report = initialize(net(), [{"type": "Constant", "val": 1, "layer": "Conv2D"}] * 2)
    assert isinstance(report, Report)
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "did you mean 'Conv2d' (1 module)?" in message


def test_only_the_class_and_its_direct_bases_count() -> None:
    class Mine(nn.Conv2d):
        pass

    class Further(Mine):
        pass

    model: Any = nn.Sequential(Mine(1, 1, 1), Further(1, 1, 1))
    nn.init.zeros_(model[1].weight)
    initialize(model, {"type": "Constant", "val": 3, "layer": "Conv2d"})
    assert model[0].weight.item() == 3
    assert model[1].weight.item() == 0


def test_an_override_fills_norms_below_it_too() -> None:
    model = net()
    initialize(
        model,
        {"type": "Constant", "val": 1, "layer": "Linear", "override": {"name": "1", "type": "Constant", "val": 7}},
    )
    assert model[1].weight.unique().tolist() == [7.0]


BEYOND: list[tuple[dict[str, Any], str, float]] = [
    ({"type": "Constant", "val": 4, "name": "head.0.weight"}, "head.0.weight", 4.0),
    ({"type": "Constant", "val": 4, "within": "head"}, "head.1.weight", 4.0),
    ({"type": "Constant", "val": 4, "layer": "Linear", "bias": "keep", "label": "mine"}, "2.weight", 4.0),
    ({"type": "Constant", "val": 4, "layer": "Linear", "bias": {"type": "Constant", "val": 2.5}}, "2.bias", 2.5),
    ({"type": "Constant", "val": 4, "param": ["bias"], "layer": "BatchNorm2d"}, "1.bias", 4.0),
    ({"type": "Ones", "layer": "Linear", "exclude": "head.**"}, "2.weight", 1.0),
]


@pytest.mark.parametrize(("init_cfg", "name", "value"), BEYOND)
def test_words_of_recipes_work_in_an_init_cfg(init_cfg: dict[str, Any], name: str, value: float) -> None:
    model = net()
    report = initialize(model, init_cfg)
    assert model.state_dict()[name].unique().tolist() == [value]
    assert report[name].fill


def test_weight_and_bias_by_different_initializers() -> None:
    model = nn.Linear(400, 400)
    initialize(
        model, {"type": "Normal", "std": 0.02, "layer": "Linear", "bias": {"type": "Normal", "std": 0.5}}, seed=1
    )
    assert model.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.bias.std().item() == pytest.approx(0.5, rel=0.25)


def test_initializers_that_mmengine_does_not_have() -> None:
    model = nn.Linear(8, 8)
    initialize(model, {"type": "Orthogonal", "layer": "Linear", "gain": 2.0})
    torch.testing.assert_close(model.weight @ model.weight.T, 4 * torch.eye(8), atol=1e-5, rtol=1e-5)


INFOS: list[tuple[Any, str]] = [
    (ConstantInit(1, bias=2), "ConstantInit: val=1, bias=2"),
    (XavierInit(), "XavierInit: gain=1, distribution=normal, bias=0"),
    (NormalInit(std=0.1), "NormalInit: mean=0, std=0.1, bias=0"),
    (TruncNormalInit(), "TruncNormalInit: a=-2, b=2, mean=0, std=1, bias=0"),
    (UniformInit(bias_prob=0.01), f"UniformInit: a=0, b=1, bias={bias_init_with_prob(0.01)}"),
    (KaimingInit(), "KaimingInit: a=0, mode=fan_out, nonlinearity=relu, distribution =normal, bias=0"),
    (Caffe2XavierInit(), "Caffe2XavierInit: a=1, mode=fan_in, nonlinearity=leaky_relu, distribution =uniform, bias=0"),
    (PretrainedInit("a.pth"), "PretrainedInit: load from a.pth"),
    (BaseInit(bias=1), "BaseInit, bias=1"),
]


@pytest.mark.parametrize(("initializer", "text"), INFOS)
def test_texts(initializer: Any, text: str) -> None:
    assert initializer._get_init_info() == text


def test_odd_weights_are_filled_as_in_mmengine() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.zeros(3)
            self.register_buffer("bias", torch.zeros(2))

    odd: Any = Odd()
    initialize(odd, {"type": "Constant", "val": 4, "bias": 2, "layer": "Odd"})
    assert odd.weight.tolist() == [4.0] * 3
    assert odd.bias.tolist() == [2.0] * 2


def test_recurrent_layers_have_no_weight_of_that_name_and_are_left_alone() -> None:
    lstm = nn.LSTM(2, 3)
    before = {name: value.clone() for name, value in lstm.state_dict().items()}
    initialize(lstm, {"type": "Constant", "val": 1, "layer": "LSTM"})
    assert all(torch.equal(before[name], value) for name, value in lstm.state_dict().items())


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


UNFIT: list[tuple[Any, type[Exception], str]] = [
    (
        {"layer": "Conv2D", "mode": "fan_in"},
        KeyError,
        r"for the layer 'Conv2D'; give a type to add one; did you mean 'Conv2d'\?",
    ),
    ({"mode": "fan_in"}, KeyError, "a change needs a layer or a type that an entry has"),
    ("Conv2d", TypeError, "a change of an init_cfg is a dict, but got 'Conv2d'"),
]


@pytest.mark.parametrize(("change", "error", "text"), UNFIT)
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
