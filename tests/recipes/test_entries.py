"""Entries: which rules one table of a recipe stands for, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import torchinit
from torchinit import (
    ConfigError,
    Constant,
    Kaiming,
    Kinds,
    Layer,
    Leaf,
    LeCun,
    Name,
    Normal,
    Plan,
    Regex,
    Rule,
    Shape,
    Uniform,
    Within,
    Xavier,
    Zeros,
    sites,
)
from torchinit.initializers import Blocks, Prior, Stacked
from torchinit.initializers.elementwise import Initializer
from torchinit.initializers.expressions import Computed
from torchinit.plans import make_plan
from torchinit.recipes import decode_recipe
from torchinit.recipes.entries import ENTRY_KEYS, OTHER_KEYS
from torchinit.rules import All, Dtype, Not, Selector
from torchinit.rules.rule import RESERVED

WEIGHT, BIAS = Kinds("weight"), Kinds("bias")


def decode(**entry: Any) -> list[tuple[object, object]]:
    return [(rule.where, rule.init) for rule in decode_recipe({"rules": [entry]})]


def mistakes(*entries: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        decode_recipe({"rules": list(entries)})
    return caught.value.problems


@pytest.mark.parametrize(
    ("entry", "rules"),
    [
        (
            {"type": "Kaiming", "layer": "Conv2d"},
            [(Layer("Conv2d") & WEIGHT, Kaiming()), (Layer("Conv2d") & BIAS, Constant(0.0))],
        ),
        (
            {"type": "Xavier", "layer": ["Linear", "Conv2d"], "subclasses": True, "bias": 0.1},
            [
                (Layer("Linear", "Conv2d", subclasses=True) & WEIGHT, Xavier()),
                (Layer("Linear", "Conv2d", subclasses=True) & BIAS, Constant(0.1)),
            ],
        ),
        ({"type": "Xavier", "layer": "Linear", "bias": None}, [(Layer("Linear") & WEIGHT, Xavier())]),
        ({"type": "Xavier", "layer": "Linear", "bias": "keep"}, [(Layer("Linear") & WEIGHT, Xavier())]),
        (
            {"type": "Xavier", "within": "head", "bias_prob": 0.01},
            [(Within("head") & WEIGHT, Xavier()), (Within("head") & BIAS, Prior(0.01))],
        ),
        (
            {"type": "Xavier", "layer": "Linear", "bias": {"type": "Uniform", "a": -1, "b": "1 / rows"}},
            [(Layer("Linear") & WEIGHT, Xavier()), (Layer("Linear") & BIAS, Computed(Uniform, a=-1.0, b="1 / rows"))],
        ),
        (
            {"type": "Xavier", "layer": "Linear", "bias": "log(rows)"},
            [(Layer("Linear") & WEIGHT, Xavier()), (Layer("Linear") & BIAS, Computed(Constant, val="log(rows)"))],
        ),
        ({"type": "Zeros", "name": "**"}, [(Name("**"), Zeros())]),
        ({"type": "Zeros", "name": ["a.*", "b"], "exclude": "a.c"}, [(Name("a.*", "b") & ~Name("a.c"), Zeros())]),
        ({"type": "Zeros", "regex": "a[.].*"}, [(Regex("a[.].*"), Zeros())]),
        (
            {"type": "Normal", "name": "a.**", "bias": 1},
            [(Name("a.**") & Not(BIAS), Normal()), (Name("a.**") & BIAS, Constant(1.0))],
        ),
        ({"type": "Normal", "regex": "a.*", "bias": "keep"}, [(Regex("a.*") & Not(BIAS), Normal())]),
        (
            {"type": "Normal", "layer": "Linear", "name": "a.**"},
            [
                (All(Layer("Linear"), Name("a.**"), WEIGHT), Normal()),
                (All(Layer("Linear"), Name("a.**"), BIAS), Constant(0.0)),
            ],
        ),
        (
            {"type": "Normal", "param": ["cls_token", "pos_embed"], "within": ["a", "b"]},
            [((Within("a") | Within("b")) & Leaf("cls_token", "pos_embed"), Normal())],
        ),
        ({"type": "Normal", "param": "bias", "layer": "Linear"}, [(Layer("Linear") & Leaf("bias"), Normal())]),
        ({"type": "LeCun", "param": "in_proj_weight", "blocks": 3}, [(Leaf("in_proj_weight"), Blocks(LeCun(), 3))]),
        ({"type": "LeCun", "param": "w", "blocks": [8, 2, 2]}, [(Leaf("w"), Blocks(LeCun(), (8, 2, 2)))]),
        ({"type": "LeCun", "param": "w", "batch_axes": 0}, [(Leaf("w"), Stacked(LeCun(), 0, 2, 1))]),
        ({"type": "LeCun", "param": "w", "batch_axes": [1]}, [(Leaf("w"), Stacked(LeCun(), 1, 2, 0))]),
        (
            {"type": "LeCun", "param": "w", "batch_axes": 2, "blocks": 2},
            [(Leaf("w"), Stacked(Blocks(LeCun(), 2), 2, 1, 0))],
        ),
        ({"type": "LeCun", "param": "w", "fans": "true"}, [(Leaf("w"), LeCun(fans="true"))]),
        (
            {"type": "Normal", "param": "w", "std": "1 / fan_in", "fans": "true"},
            [(Leaf("w"), Computed(Normal, std="1 / fan_in", fans="true"))],
        ),
        (
            {"type": "Blocks", "parts": 4, "init": [0, 1, {"type": "Zeros"}, "1/2"], "param": "b"},
            [(Leaf("b"), Blocks((Constant(0.0), Constant(1.0), Zeros(), Constant(0.5)), 4))],
        ),
        ({"where": {"type": "Shape", "ndim": 1}, "init": 0}, [(Shape(ndim=1), Constant(0.0))]),
        (
            {"type": "Normal", "override": {"name": "head", "type": "Zeros"}},
            [(Within("head") & WEIGHT, Zeros()), (Within("head") & BIAS, Constant(0.0))],
        ),
    ],
)
def test_rules_of_an_entry(entry: dict[str, Any], rules: list[tuple[Selector, Initializer]]) -> None:
    assert decode(**entry) == rules


def test_overrides_inherit_what_they_do_not_say() -> None:
    found = decode(
        type="Normal",
        std=0.02,
        layer="Linear",
        bias=0.5,
        override=[
            {"name": "head"},
            {"name": ["a.b", "c"], "std": 0.1, "bias_prob": 0.01},
            {"name": "d", "type": "Xavier"},
        ],
    )
    assert found[2:] == [
        (Within("head") & WEIGHT, Normal(std=0.02)),
        (Within("head") & BIAS, Constant(0.5)),
        ((Within("a.b") | Within("c")) & WEIGHT, Normal(std=0.1)),
        ((Within("a.b") | Within("c")) & BIAS, Prior(0.01)),
        (Within("d") & WEIGHT, Xavier()),
        (Within("d") & BIAS, Constant(0.0)),
    ]


def test_overrides_lie_within_what_the_entry_is_within() -> None:
    found = decode(type="Xavier", within=["left", "right"], override={"name": "head", "bias": "keep"})
    assert found[2] == ((Within("left.head") | Within("right.head")) & WEIGHT, Xavier())
    assert len(found) == 3


def test_settings_of_the_rules() -> None:
    entry = {
        "type": "Xavier", "layer": "Linear", "label": "heads", "optional": True, "padding": False, "buffers": True,
        "override": {"name": "a", "optional": False},
    }  # fmt: skip
    weight, bias, other, _ = decode_recipe({"rules": [entry]})
    assert [(rule.label, rule.optional, rule.padding, rule.buffers) for rule in (weight, bias, other)] == [
        ("heads", True, False, True),
        ("heads", True, False, True),
        ("heads", False, True, False),
    ]


def test_a_bias_rule_may_match_nothing() -> None:
    weight, bias = decode_recipe({"rules": [{"type": "Xavier", "layer": "Linear"}]})
    assert (weight.optional, bias.optional) == (False, True)


def test_origins_are_paths() -> None:
    entry = {"type": "Xavier", "layer": "Linear", "bias": "keep"}
    given = [entry, {**entry, "override": [{"name": "a"}, {"name": "b"}]}, Rule(Name("**"), Zeros())]
    given += [
        {"where": {"type": "Leaf", "names": ["w"]}, "init": {"type": "Zeros"}},
        {**entry, "override": {"name": "a"}},
    ]
    assert [rule.origin for rule in decode_recipe({"rules": given})] == [
        "rules[0]", "rules[1]", "rules[1].override[0]", "rules[1].override[1]", "rules[2]", "rules[3]",
        "rules[4]", "rules[4].override",
    ]  # fmt: skip


def plan(*entries: Any) -> Plan:
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 2)})
    return make_plan(sites(model), decode_recipe({"rules": list(entries)}))


def test_on_a_model() -> None:
    made = plan(
        {"type": "Kaiming", "layer": "_ConvNd"},
        {"type": "Ones", "layer": "BatchNorm2d"},
        {"type": "Constant", "val": 3, "param": "running_mean", "buffers": True},
        {"type": "Normal", "std": 0.01, "layer": "Linear", "bias_prob": 0.5},
    )
    fills = {step.site.name: step.fill for step in made}
    assert fills.pop("conv.weight") == Kaiming().resolve(made["conv.weight"].site)
    assert fills == {
        "conv.bias": Constant(0.0),
        "norm.weight": Constant(1.0),
        "norm.bias": Constant(0.0),
        "norm.running_mean": Constant(3.0),
        "head.weight": Normal(std=0.01),
        "head.bias": Constant(0.0),
    }
    assert not made.unused


def test_a_misspelt_override_is_said() -> None:
    made = plan({"type": "Kaiming", "layer": "Conv2d", "override": {"name": "haed"}})
    assert [rule.origin for rule, _ in made.unused] == ["rules[0].override"]
    assert "Within('haed') matches none" in made.unused[0][1]


SELECTS_NOTHING = "selects nothing: give layer, name, regex, within, param or role; name = '**' selects every parameter"
LEAF = {"type": "Leaf", "names": ["w"]}

MISTAKES: list[tuple[Any, str]] = [
    ({"name": "**", "trainable": "yes"}, ".trainable: must be true or false or nothing, but got 'yes'"),
    ({}, f": {SELECTS_NOTHING}"),
    ({"exclude": "a"}, f": {SELECTS_NOTHING}"),
    ({"exclude": "a", "override": {"name": "b"}}, f": {SELECTS_NOTHING}"),
    ({"type": "Zero", "layer": "Linear"}, ".type: unknown initializer 'Zero'; did you mean 'Zeros'?"),
    ({"type": ["Zeros"], "layer": "Linear"}, ".type: must be text, but got ['Zeros']"),
    ({"layr": "Linear", "name": "a"}, ".layr: Zeros has no argument 'layr'; did you mean 'layer'?"),
    ({"layer": 3}, ".layer: must be text or a list, but got 3"),
    ({"layer": ["a", 3]}, ".layer[1]: must be text, but got 3"),
    ({"layer": []}, ".layer: must not be empty"),
    ({"layer": ["Linear", ""]}, ".layer: must not be empty"),
    ({"within": ""}, ".within: must not be empty"),
    ({"name": "a..b"}, ".name: a name is dotted text such as 'layers.*.weight', but got 'a..b'"),
    ({"name": "a", "subclasses": True}, ".subclasses: means something only beside 'layer'"),
    ({"name": "a", "optional": "yes"}, ".optional: must be true or false, but got 'yes'"),
    ({"name": "a", "fans": "true"}, ".fans: Zeros has no argument 'fans'"),
    ({"name": "a", "bias": 1, "bias_prob": 0.1}, ": takes 'bias' or 'bias_prob', not both"),
    ({"name": "a", "bias": []}, ".bias: must be 'keep' or a number or an initializer or nothing, but got []"),
    ({"name": "a", "bias": {"type": "Oness"}}, ".bias.type: unknown initializer 'Oness'; did you mean 'Ones'?"),
    ({"name": "a", "bias": "keeep"}, ".bias: 'keeep': unknown name 'keeep'"),
    ({"name": "a", "bias_prob": 1.5}, ".bias_prob: Prior: prob must lie in (0, 1), but got 1.5"),
    ({"name": "a", "bias_prob": "half"}, ".bias_prob: 'half': unknown name 'half'"),
    ({"param": "a", "bias": 1}, ".param: names what is written; a bias needs an entry of its own"),
    ({"param": "a", "blocks": 0}, ".blocks: parts must be a whole number of at least 1, or a list of them, but got 0"),
    ({"param": "a", "batch_axes": [0, 1]}, ".batch_axes: a stack has one batch axis, 0, 1 or 2, but got [0, 1]"),
    ({"param": "a", "batch_axes": 3}, ".batch_axes: a stack has one batch axis, 0, 1 or 2, but got [3]"),
    ({"override": 3}, ".override: must be a table or a list of tables, but got 3"),
    ({"override": [3]}, ".override[0]: must be a table or a list of tables, but got 3"),
    ({"override": {"optional": True}}, ".override: an override needs 'name', the submodule that it is for"),
    ({"override": {"name": "a", "std": 1}}, ".override.std: Zeros has no argument 'std'"),
    (
        {"override": {"name": "a", "layer": "Linear"}},
        ".override.layer: an override has no 'layer'; it is for the whole submodule 'name'",
    ),
    ({"where": LEAF, "init": {"type": "Oness"}}, ".init.type: unknown initializer 'Oness'; did you mean 'Ones'?"),
    ({"where": LEAF, "init": 0, "labl": ""}, ".labl: Rule has no argument 'labl'; did you mean 'label'?"),
    ({"where": LEAF}, ": Rule needs 'init', a number or an initializer"),
    ("Zeros", ": must be a table, but got 'Zeros'"),
]


@pytest.mark.parametrize(("entry", "text"), MISTAKES)
def test_each_mistake(entry: Any, text: str) -> None:
    if isinstance(entry, dict) and "where" not in entry:
        entry = {"type": "Zeros", **entry}
    assert mistakes(entry) == (f"rules[0]{text}",)


def test_an_entry_needs_a_type() -> None:
    assert mistakes({"layer": "Linear"}) == ("rules[0]: needs 'type', the name of an initializer",)


def test_what_an_override_inherits_is_not_blamed_twice() -> None:
    found = mistakes({"type": "Normal", "sdt": 1, "layer": "Linear", "override": [{"name": "a"}, {"type": "Zeros"}]})
    assert [text.split(":")[0] for text in found] == ["rules[0].sdt", "rules[0].override[1]"]


def test_mistakes_of_all_entries_at_once() -> None:
    found = mistakes({"type": "Zeros"}, {"type": "Zeros", "name": "a"}, 3, {"type": "Zeroes", "layer": 1, "regex": "("})
    assert [text.split(": ")[0] for text in found] == ["rules[0]", "rules[2]", "rules[3].layer", "rules[3].type"]


def test_words_of_an_entry_are_kept_free_of_arguments() -> None:
    assert ENTRY_KEYS | OTHER_KEYS | {"where"} == RESERVED


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ({"trainable": True, "name": "**"}, ["0.weight", "0.bias"]),
        ({"trainable": False, "name": "**"}, ["1.weight"]),
        ({"trainable": False, "layer": "Linear"}, ["1.weight"]),
        ({"trainable": True, "layer": "Linear", "param": "weight"}, ["0.weight"]),
        ({"trainable": True, "role": "unsure", "bias": "keep"}, ["0.weight"]),
    ],
)
def test_those_that_learn(words: dict[str, Any], written: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[1].requires_grad_(False)
    assert [step.site.name for step in torchinit.plan(model, {"type": "Zeros", **words})] == written


def test_those_of_a_dtype() -> None:
    (rule,) = decode_recipe({"where": {"type": "Dtype", "names": ["half"]}, "init": {"type": "Zeros"}})
    assert rule.where == Dtype("float16")
    with pytest.raises(
        ConfigError, match=r"rules\[0\]\.where: Dtype: a dtype is one of torch, such as 'bfloat16', but got 'f16'"
    ):
        decode_recipe({"where": {"type": "Dtype", "names": ["f16"]}, "init": {"type": "Zeros"}})
