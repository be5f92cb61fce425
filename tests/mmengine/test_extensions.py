"""Extensions of an init_cfg: what MMEngine knows keeps its meaning whatever stands beside it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from torchinit import ConfigError, Constant, Normal, PlanError
from torchinit.mmengine import (
    WEIGHT_INITIALIZERS,
    BaseModule,
    KaimingInit,
    NormalInit,
    PretrainedInit,
    XavierInit,
    initialize,
)
from torchinit.mmengine.extensions import WORDS

LAYERS = ["Conv2d", "Linear", "Embedding", "LSTM", "MultiheadAttention"]


class Net(BaseModule):
    """What MMEngine writes and what it does not: a padding row, an LSTM, attention, a wrapped weight."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.table = nn.Embedding(5, 4, padding_idx=2)
        self.rnn = nn.LSTM(3, 2)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.wrapped = weight_norm(nn.Linear(4, 4))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    path = tmp_path / "teacher.pth"
    torch.save({name: torch.full_like(value, 3.0) for name, value in Net().state_dict().items()}, path)
    return str(path)


KINDS: dict[str, dict[str, Any]] = {
    "Constant": {"val": 0.3},
    "Xavier": {"distribution": "uniform"},
    "Normal": {"std": 0.1},
    "TruncNormal": {"std": 0.5},
    "Uniform": {"a": -1},
    "Kaiming": {"mode": "fan_in"},
    "Caffe2Xavier": {},
    "Pretrained": {},
}
DEFAULTS: list[tuple[str, Any]] = [
    ("fans", "torch"),
    ("label", ""),
    ("optional", False),
    ("subclasses", False),
    *((word, "") for word in ("name", "param", "within", "exclude")),
    *((word, []) for word in ("name", "param", "within", "exclude")),
    *((word, ()) for word in ("name", "param", "within", "exclude")),
    *((word, None) for word in ("name", "param", "within", "exclude")),
    ("regex", ""),
    ("regex", None),
    ("blocks", None),
    ("batch_axes", None),
    ("padding", False),
    ("buffers", False),
]


def test_every_word_has_a_default_in_the_table_and_every_type_of_mmengines() -> None:
    assert {word for word, _ in DEFAULTS} == WORDS
    assert WEIGHT_INITIALIZERS.module_dict.keys() >= KINDS.keys()


def outcome(entry: Any, caplog: pytest.LogCaptureFixture) -> tuple[dict[str, Tensor], list[str], Any, Tensor]:
    """The values, the log, what the report says of each, and where the generator stands."""
    torch.manual_seed(0)
    model = Net(entry)
    caplog.clear()
    with caplog.at_level(logging.INFO, "torchinit"):
        report = model.init_weights()
    assert report is not None
    said = [(record.name, record.rule, record.fill, record.over) for record in report]
    return dict(model.state_dict()), caplog.messages, (said, report.untouched, report.unused), torch.rand(4)


@pytest.mark.parametrize("layer", [LAYERS, "LSTM", "Conv2D"], ids=["several", "LSTM", "misspelt"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_added_default_changes_nothing(
    kind: str, layer: Any, teacher: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry: dict[str, Any] = {"type": kind, **KINDS[kind], "layer": layer}
    if kind == "Pretrained":
        entry = {"type": kind, "checkpoint": teacher}
    expected = outcome(entry, caplog)
    for word, default in DEFAULTS:
        found = outcome({**entry, word: default}, caplog)
        assert [name for name, value in expected[0].items() if not torch.equal(value, found[0][name])] == [], word
        assert found[1:3] == expected[1:3], word
        assert torch.equal(found[3], expected[3]), word


@pytest.mark.parametrize("fans", [{}, {"fans": "torch"}, {"fans": "true"}])
def test_a_recurrent_layer_is_not_written_whatever_is_said_beside_it(fans: dict[str, str]) -> None:
    rnn = nn.LSTM(2, 3)
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    report = initialize(rnn, {"type": "Xavier", "layer": "LSTM", **fans})
    assert all(torch.equal(before[name], value) for name, value in rnn.state_dict().items())
    assert len(report) == 0
    assert "matches none of" in report.unused[0]


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["Xavier", "Kaiming", "Normal", "Uniform"]),
    st.fixed_dictionaries({}, optional={word: st.just(default) for word, default in DEFAULTS}),
    st.lists(st.sampled_from(LAYERS), min_size=1, unique=True),
)
def test_any_defaults_together_change_nothing(kind: str, words: dict[str, Any], layer: list[str]) -> None:
    plain, extended = Net(), Net()
    extended.load_state_dict(plain.state_dict())
    for model, said in ((plain, {}), (extended, words)):
        torch.manual_seed(1)
        initialize(model, {"type": kind, "layer": layer, **said})
    found = extended.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in plain.state_dict().items())


# --- what each word does -----------------------------------------------------------------------------------


def filled(model: nn.Module, entry: Any, **options: Any) -> dict[str, set[float]]:
    """The values of all parameters that an entry has written, by name, once all were -1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-1.0)
    initialize(model, entry, **options)
    found = {name: set(parameter.flatten().tolist()) for name, parameter in model.named_parameters()}
    return {name: values for name, values in found.items() if values != {-1.0}}


CONSTANT: dict[str, Any] = {"type": "Constant", "val": 2}
SELECTING: list[tuple[dict[str, Any], dict[str, set[float]]]] = [
    ({"layer": "Conv2d"}, {"conv.weight": {2.0}, "conv.bias": {0.0}}),
    ({"layer": "Conv2d", "bias": "keep"}, {"conv.weight": {2.0}}),
    ({"layer": "Conv2d", "bias": {"type": "Constant", "val": 5}}, {"conv.weight": {2.0}, "conv.bias": {5.0}}),
    ({"layer": "Conv2d", "bias": Constant(6.0)}, {"conv.weight": {2.0}, "conv.bias": {6.0}}),
    ({"layer": "Conv2d", "bias": "keep", "bias_prob": 0.5}, {"conv.weight": {2.0}, "conv.bias": {0.0}}),
    ({"layer": "_ConvNd", "subclasses": True, "bias": 3}, {"conv.weight": {2.0}, "conv.bias": {3.0}}),
    ({"layer": "Embedding"}, {"table.weight": {2.0}}),
    ({"layer": "Embedding", "padding": True}, {"table.weight": {0.0, 2.0}}),
    (
        {"layer": ["Linear"], "exclude": ["head.1.*", "attention.**", "wrapped.*"]},
        {"head.0.weight": {2.0}, "head.0.bias": {0.0}},
    ),
    ({"layer": ["Linear"], "within": "head", "name": "*.1.*"}, {"head.1.weight": {2.0}, "head.1.bias": {0.0}}),
    ({"layer": "Linear", "regex": r"head[.]0[.]weight"}, {"head.0.weight": {2.0}}),
    ({"layer": "LSTM", "param": ["weight_hh_l0"]}, {"rnn.weight_hh_l0": {2.0}}),
    ({"layer": "Linear", "param": "bias", "within": "head"}, {"head.0.bias": {2.0}, "head.1.bias": {2.0}}),
    ({"within": ["head", "rnn"], "exclude": "**.1.*"}, {"head.0.weight": {2.0}, "head.0.bias": {0.0}}),
    ({"name": "head.0.*"}, {"head.0.weight": {2.0}, "head.0.bias": {2.0}}),
    ({"name": "head.0.*", "bias": 4}, {"head.0.weight": {2.0}, "head.0.bias": {4.0}}),
    ({"name": "head.0.*", "bias": "keep"}, {"head.0.weight": {2.0}}),
    ({"regex": r"rnn[.]bias.*"}, {"rnn.bias_ih_l0": {2.0}, "rnn.bias_hh_l0": {2.0}}),
    ({"param": "in_proj_weight"}, {"attention.in_proj_weight": {2.0}}),
    (
        {"override": {"name": "head.1", "bias": 1, "type": "Constant", "val": 3}},
        {"head.1.weight": {3.0}, "head.1.bias": {1.0}},
    ),
    ({"bias": "keep", "override": {"name": "head.1"}}, {"head.1.weight": {2.0}}),
    (
        {"override": {"name": "head", "type": "Constant", "val": 3, "exclude": "0.*", "bias": "keep"}},
        {"head.1.weight": {3.0}},
    ),
    (
        {"name": "conv.weight", "override": {"name": "head.1"}},
        {"conv.weight": {2.0}, "head.1.weight": {2.0}, "head.1.bias": {0.0}},
    ),
]


@pytest.mark.parametrize(("words", "expected"), SELECTING, ids=[str(words) for words, _ in SELECTING])
@pytest.mark.parametrize("seed", [None, 0])
def test_selecting(words: dict[str, Any], expected: dict[str, set[float]], seed: int | None) -> None:
    assert filled(Net(), {**CONSTANT, **words}, seed=seed) == expected


def test_initializers_that_only_torchinit_has_are_for_layers_in_mmengines_way() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = initialize(model, {"type": "Orthogonal", "gain": 2.0, "layer": ["Linear", "LSTM", "MultiheadAttention"]})
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {
        *(f"head.{n}.{leaf}" for n in (0, 1) for leaf in ("weight", "bias")),
        "attention.out_proj.weight",  # whose class has Linear as its direct base; its bias was 0
        *("wrapped.bias", "wrapped.parametrizations.weight.original0", "wrapped.parametrizations.weight.original1"),
    }
    assert model.get_parameter("head.0.bias").unique().tolist() == [0.0]
    assert report["head.0.weight"].rule == "Orthogonal(gain=2), bias=0"
    torch.testing.assert_close(model.wrapped.weight @ model.wrapped.weight.T, 4 * torch.eye(4))


def test_words_beside_initializers_that_only_torchinit_has() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    report = initialize(
        nn.Sequential(layer), {"type": "LeCun", "distribution": "normal", "fans": "true", "layer": "Conv2d"}
    )
    assert report["0.weight"].fill == f"Normal(std={(1 / 18) ** 0.5:.6g})"
    with pytest.raises(TypeError, match="Orthogonal counts no connections"):
        initialize(layer, {"type": "Orthogonal", "fans": "true", "layer": "Conv2d"})
    with pytest.raises(ConfigError, match="1 mistake in Orthogonal\n  label: must be text"):
        initialize(layer, {"type": "Orthogonal", "label": 3, "layer": "Conv2d"})


def test_fans_choose_the_count() -> None:
    """A 3 by 3 convolution in 2 groups of 2 inputs and 3 outputs: torch counts 6 · 9 to an input, there are 3 · 9."""
    stds = {}
    for fans in ("torch", "true"):
        record = initialize(Net(), {"type": "Kaiming", "layer": "Conv2d", "fans": fans}, seed=0)["conv.weight"]
        stds[fans] = record.fill
        assert record.rule.endswith("bias=0" if fans == "torch" else "bias=0, fans=true")
    assert stds == {"torch": f"Normal(std={(2 / 54) ** 0.5:.6g})", "true": f"Normal(std={(2 / 27) ** 0.5:.6g})"}


def test_blocks_and_batch_axes_count_for_each_part() -> None:
    model = nn.Sequential(nn.Linear(4, 12))
    model.experts = nn.Parameter(torch.empty(8, 150, 50))
    report = initialize(
        model,
        [
            {"type": "Xavier", "layer": "Linear", "blocks": 3},
            {"type": "Xavier", "param": "experts", "batch_axes": 0},
        ],
        seed=0,
    )
    assert [record.fill for record in report] == ["Normal(std=0.5)", "Constant(0)", "Normal(std=0.1)"]


def test_a_label_names_the_log_text(teacher: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "torchinit"):
        Net(
            [
                {"type": "Normal", "layer": "Conv2d", "label": "stem as in the paper"},
                {"type": "Pretrained", "checkpoint": teacher, "name": "table.*", "label": "words"},
            ]
        ).init_weights()
    assert "\nconv.bias - torch.Size([6]): \nstem as in the paper \n " in caplog.messages
    assert f"\ntable.weight - torch.Size([5, 4]): \nwords: load from {teacher} \n " in caplog.messages


def test_optional_silences(caplog: pytest.LogCaptureFixture) -> None:
    for layer in ("Conv2D", "LSTM", ["Conv2d", "Linaer"]):
        assert initialize(Net(), {"type": "Normal", "layer": layer}).unused or caplog.messages
        caplog.clear()
        assert initialize(Net(), {"type": "Normal", "layer": layer, "optional": True}, strict=True).unused == ()
        assert caplog.messages == []


def test_buffers_are_written_where_they_are_named() -> None:
    model = Net()
    initialize(model, {"type": "Constant", "val": 4, "name": "norm.running_*", "buffers": True})
    assert model.get_buffer("norm.running_var").tolist() == [4.0] * 4


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        ({}, {"conv.weight", "conv.bias", "table.weight", "head.0.weight"}),
        ({"name": "conv.*"}, {"conv.weight", "conv.bias"}),
        ({"param": "weight", "exclude": "head.**"}, {"conv.weight", "table.weight"}),
        ({"within": "head"}, {"head.0.weight"}),
    ],
)
def test_what_a_checkpoint_gives_can_be_narrowed(words: dict[str, Any], loaded: set[str], teacher: str) -> None:
    model = Net({"type": "Pretrained", "checkpoint": teacher, **words})
    report = model.init_weights()
    names = ("conv.weight", "conv.bias", "table.weight", "head.0.weight")
    assert {name for name in names if model.get_parameter(name).eq(3).all()} == loaded
    assert report is not None
    assert [account.source for account in report.loads] == [teacher]


def test_initializers_take_the_words_in_python_too(teacher: str) -> None:
    model = Net()
    KaimingInit(layer="Conv2d", fans="true", bias=Normal(std=0.5), label="mine")(model)
    assert model.get_parameter("conv.bias").unique().numel() > 1
    NormalInit(mean=9, std=0, name="rnn.weight_hh_l0")(model)
    assert model.get_parameter("rnn.weight_hh_l0").unique().tolist() == [9.0]
    NormalInit(mean=9, std=0, name="wrapped.weight")(model)
    torch.testing.assert_close(model.wrapped.weight, torch.full((4, 4), 9.0))
    PretrainedInit(teacher, name="head.1.*")(model)
    assert model.get_parameter("head.1.weight").unique().tolist() == [3.0]


class Scaled(XavierInit):
    """A user's own, which has taken a word that torchinit took later, and hands on the others."""

    def __init__(self, label: float, **words: Any) -> None:
        super().__init__(**words)
        self.label = label


def test_a_users_own_words_stay_the_users() -> None:
    assert (
        Scaled(label=3.0, layer="Linear", optional=True).rules()[0].label
        == "Scaled: gain=1, distribution=normal, bias=0"
    )


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lable": "x"}, TypeError, r"no argument 'lable'; did you mean 'label'\?"),
    ({"label": 3}, ConfigError, r"label: must be text, but got 3"),
    ({"fans": "all"}, ConfigError, "fans: must be one of 'torch', 'true', but got 'all'"),
    ({"fans": "true"}, TypeError, "ConstantInit counts no connections, so that it has no use for fans='true'"),
    ({"name": 3}, ConfigError, "name: must be text or"),
    ({"regex": "("}, ValueError, "is not a regular expression"),
    ({"blocks": 0}, ConfigError, "ConstantInit: parts must be a whole number"),
    ({"batch_axes": [0, 1]}, ConfigError, "ConstantInit: a stack has one batch axis"),
    ({"bias": {"type": "Nrmal"}}, ConfigError, r"unknown initializer 'Nrmal'; did you mean 'Normal'\?"),
    ({"param": "bias", "bias": 1}, TypeError, "param names what is written; a bias needs an entry of its own"),
]


@pytest.mark.parametrize(("words", "error", "text"), BAD)
def test_bad_words(words: dict[str, Any], error: type[Exception], text: str) -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=text):
        initialize(model, [{**CONSTANT, "layer": "Conv2d"}, {**CONSTANT, "layer": "Linear", **words}])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("word", ["fans", "subclasses", "blocks", "batch_axes", "padding"])
def test_words_that_mean_nothing_beside_a_checkpoint(word: str, teacher: str) -> None:
    value: Any = {"fans": "true", "blocks": 2, "batch_axes": 0}.get(word, True)
    with pytest.raises(TypeError, match=f"{word} means nothing beside Pretrained"):
        PretrainedInit(teacher, **{word: value})
    with pytest.raises(TypeError, match="unexpected keyword argument 'bias'"):
        PretrainedInit(teacher, bias=0)


# --- the arguments of initialize ---------------------------------------------------------------------------


UNMATCHED: list[dict[str, Any]] = [
    {"type": "Normal", "layer": "Conv2D"},
    {"type": "Normal", "layer": "LSTM"},
    {"type": "Normal", "name": "haed.**"},
    {"type": "Normal"},
    {"type": "Orthogonal", "layer": "Linaer"},
    {"type": "Normal", "layer": "Linear", "exclude": "**"},
]


@pytest.mark.parametrize("entry", UNMATCHED, ids=str)
def test_strict_makes_an_entry_that_matches_nothing_an_error(entry: dict[str, Any]) -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanError, match=r"matches none of|matches only|initializes nothing|without weight or bias"):
        initialize(model, [{**CONSTANT, "layer": "Conv2d"}, entry], strict=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert initialize(Net(), [{**CONSTANT, "layer": "Conv2d"}, entry]).records


def test_strict_takes_what_matches_something() -> None:
    entries: list[dict[str, Any]] = [
        {**CONSTANT, "layer": ["Conv2d", "GroupNorm"]},
        {"type": "Normal", "override": {"name": "head"}},
    ]
    assert len(initialize(Net(), entries, strict=True)) == 6


def test_strict_wants_a_checkpoint_to_fit_somewhere(tmp_path: Path) -> None:
    path = str(tmp_path / "other.pth")
    torch.save({"other": torch.ones(2)}, path)
    entry = {"type": "Pretrained", "checkpoint": path}
    assert initialize(Net(), entry).loads[0].found == 0
    with pytest.raises(RuntimeError, match="0 of 22 tensors match the model"):
        initialize(Net(), entry, strict=True)
    initialize(Net(), {**entry, "optional": True}, strict=True)


def test_stats_are_measured_unless_not_asked_for() -> None:
    entry = {"type": "Normal", "std": 0.5, "layer": "Linear"}
    report = initialize(nn.Linear(64, 64), entry)
    assert report.assert_ok()["weight"].measured.std == pytest.approx(0.5, rel=0.1)  # type: ignore[union-attr]
    assert initialize(nn.Linear(64, 64), entry, stats=False)["weight"].measured is None


def test_progress_is_called_with_each_step() -> None:
    steps: list[str] = []
    initialize(
        Net(),
        [{"type": "Normal", "layer": "Conv2d"}, {"type": "Xavier", "layer": "Linear", "within": "head"}],
        progress=lambda step: steps.append(step.site.name),
    )
    assert steps == ["conv.weight", "conv.bias"] + [f"head.{n}.{leaf}" for leaf in ("weight", "bias") for n in (0, 1)]


@WEIGHT_INITIALIZERS.register_module(name="TestHalf")
class Half:
    """A user's own initializer."""

    def __call__(self, module: Any) -> None:
        nn.init.constant_(module.conv.weight, 0.5)


def test_the_report_knows_what_other_code_wrote_over_a_rule() -> None:
    entries: list[dict[str, Any]] = [{"type": "Normal", "layer": ["Conv2d", "Linear"]}, {"type": "TestHalf"}]
    report = initialize(Net(), entries)
    record = report["conv.weight"]
    assert (record.rule, record.fill, record.over) == ("Half", "", ("NormalInit: mean=0, std=1, bias=0",))
    assert record.measured is not None
    assert record.measured.std == 0.0
    assert report["head.0.weight"].fill == "Normal()"
    assert "conv.weight" not in report.untouched


def test_a_call_within_init_weights_has_arguments_of_its_own() -> None:
    class Calling(Net):
        def init_weights(self, **_: Any) -> Any:
            with pytest.raises(PlanError, match="matches none of"):
                initialize(self, {"type": "Normal", "layer": "Conv2D"}, strict=True)
            seen: list[Any] = []
            report = initialize(self, {"type": "Normal", "layer": "Conv2d"}, progress=seen.append)
            assert len(seen) == 2
            assert report["conv.weight"].measured is not None

    report: Any = Calling().init_weights()
    assert report["conv.weight"].measured is None
