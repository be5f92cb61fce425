"""Arguments of recipes: declared, given in every way, bound into expressions and conditions, and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit import (
    ConfigError,
    Constant,
    Normal,
    Plan,
    PlanError,
    Report,
    Zeros,
    assert_initialized,
    initialize,
    lint,
    load_recipe,
    materialize,
    plan,
)
from torchinit.cli import main
from torchinit.initializers.expressions import bind, evaluate
from torchinit.integrations import trainers
from torchinit.recipes import decode_recipe, schemes
from torchinit.recipes.arguments import Argument
from torchinit.recipes.files import read_scheme

RECIPE: dict[str, Any] = {
    "arguments": {
        "beta": {"default": 0.1, "bounds": [0, 1], "meaning": "strength"},
        "layers": {"default": "depth", "bounds": [1, 100], "meaning": "number of blocks"},
        "heads": 4,
        "variant": {"default": "small", "choices": ["small", "large"]},
        "cut": False,
    },
    "rules": [
        {"type": "Normal", "std": "beta / sqrt(2 * layers)", "name": "**.weight", "when": {"variant": "small"}},
        {"type": "Normal", "std": "beta * heads", "name": "**.weight", "when": {"variant": ["large"], "cut": False}},
        {"type": "Zeros", "name": "**.weight", "when": {"cut": True}},
    ],
}


def blocks(depth: int = 2) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8, bias=False), nn.GELU()) for _ in range(depth)])


def std(recipe: Any, **given: Any) -> float:
    fill = plan(blocks(), recipe, **given)["0.0.weight"].fill
    assert isinstance(fill, Normal)
    return fill.std


# --- values -----------------------------------------------------------------------------------------------------------


def test_defaults_and_what_is_given() -> None:
    assert std(RECIPE) == 0.1 / 2  # two blocks
    assert std(RECIPE, beta=0.5) == 0.25
    assert std(RECIPE, layers=8) == 0.1 / 4
    assert std(RECIPE, arguments={"layers": 8, "beta": 1}) == 0.25
    assert std(RECIPE, beta="1/4") == 0.125
    assert std(RECIPE, variant="large") == 0.4
    assert plan(blocks(), RECIPE, variant="large", cut=True)["0.0.weight"].fill == Constant(0.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"beta": 2}, r"arguments.beta: must lie in \[0, 1\], but got 2 \(beta: strength\)"),
        ({"beta": float("nan")}, "arguments.beta: must be a number, but got nan"),
        ({"beta": True}, "arguments.beta: must be a number, but got True"),
        ({"beta": None}, "arguments.beta: must be a number, but got None"),
        ({"beta": "depth"}, "'depth' asks for a fact of each site, but an argument is one number"),
        ({"beta": "1 +"}, "'1 \\+' is not an arithmetic expression"),
        ({"heads": 2.5}, "arguments.heads: must be a whole number, but got 2.5"),
        ({"heads": float("inf")}, "arguments.heads: must be a whole number, but got inf"),
        ({"variant": "smal"}, "must be one of 'small', 'large', but got 'smal'; did you mean 'small'?"),
        ({"variant": 1}, "must be one of 'small', 'large', but got 1"),
        ({"cut": 1}, "arguments.cut: must be true or false, but got 1"),
        ({"bta": 1}, "there is no argument 'bta'; did you mean 'beta'\\? This recipe takes beta, cut, heads"),
    ],
)
def test_what_an_argument_cannot_be(values: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan(blocks(), RECIPE, arguments=values)


def test_numbers_of_numpy() -> None:
    numbers: Any = {"layers": np.int64(8), "beta": np.float32(0.5)}
    made = plan(nn.Linear(4, 4), RECIPE, arguments=numbers).arguments["recipe"]
    assert [(type(made[name]), made[name]) for name in numbers] == [(int, 8), (float, 0.5)]


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(blocks(), RECIPE, arguments={"beta": 2, "heads": 0.5})
    assert [text.partition(":")[0] for text in caught.value.problems] == ["arguments.beta", "arguments.heads"]


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        ({"depth": 1}, "arguments.depth: cannot be the name of an argument"),
        ({"name": 1}, "arguments.name: cannot be the name of an argument"),
        ({"a-b": 1}, "arguments.a-b: cannot be the name of an argument"),
        ({"a": {"default": 1, "bound": [0, 1]}}, "Argument has no argument 'bound'; did you mean 'bounds'?"),
        ({"a": {"default": 2, "bounds": [0, 1]}}, r"arguments.a: Argument: must lie in \[0, 1\], but got 2"),
        ({"a": {"default": "x", "choices": ["y"]}}, "must be one of 'y', but got 'x'"),
        ({"a": "width"}, "arguments.a: 'width': unknown name 'width'"),
        ({"a": "b", "b": 2}, "arguments.a: 'b': unknown name 'b'"),
        ([1], r"arguments: must be a table, but got \[1\]"),
    ],
)
def test_what_cannot_be_declared(declared: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        decode_recipe({"arguments": declared, "rules": [{"type": "Zeros", "name": "**"}]})


def test_a_default_may_ask_for_the_arguments_before() -> None:
    entry = {"type": "Constant", "val": "b", "name": "**"}
    recipe = {"arguments": {"a": {"default": 3}, "b": "a * depth"}, "rules": [entry]}
    assert plan(blocks(), recipe)["0.0.weight"].fill == Constant(6.0)
    assert plan(blocks(), recipe, a=5)["0.0.weight"].fill == Constant(10.0)
    assert plan(blocks(), recipe, a=5, b=1)["0.0.weight"].fill == Constant(1.0)


def test_an_argument_that_must_be_given() -> None:
    recipe = {"arguments": {"a": {"meaning": "width"}}, "rules": [{"type": "Constant", "val": "a", "name": "**"}]}
    with pytest.raises(ConfigError, match="a: must be given: width"):
        plan(blocks(), recipe)
    assert plan(blocks(), recipe, a=2)["0.0.weight"].fill == Constant(2.0)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"std": "bta"}, r"rules\[0\].std: 'bta': unknown name 'bta'; did you mean 'beta'?"),
        ({"std": "variant * 2"}, "variant is 'small', which is not a number"),
        ({"std": "cut"}, "cut is False, which is not a number"),
        ({"when": {"varient": "small"}}, r"rules\[0\].when.varient: the recipe has no such argument; did you mean"),
        ({"when": {"variant": "huge"}}, r"rules\[0\].when.variant: must be one of 'small', 'large', but got 'huge'"),
        ({"when": 3}, r"rules\[0\].when: must be a table of arguments, but got 3"),
        (
            {"when": {"variant": "large"}, "sdt": 1},
            r"rules\[0\].sdt: Normal has no argument 'sdt'",
        ),  # though not in use
    ],
)
def test_mistakes_of_entries(entry: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        decode_recipe({**RECIPE, "rules": [{"type": "Normal", "name": "**", **entry}]})


def test_a_fact_that_the_site_lacks() -> None:
    with pytest.raises(PlanError, match="there is no depth: 'weight' stands in no ModuleList"):
        plan(nn.Linear(2, 2, bias=False), RECIPE)
    assert plan(nn.Linear(2, 2, bias=False), RECIPE, layers=2)["weight"].fill == Normal(std=0.05)


_NAMES = st.sampled_from(["a", "b", "depth"])
_EXPRESSIONS = st.recursive(
    st.one_of(_NAMES, st.integers(0, 9).map(str)),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"),
        inner.map(lambda text: f"-{text}"),
        st.tuples(inner, inner).map(lambda parts: f"max({parts[0]}, {parts[1]})"),
    ),
    max_leaves=6,
)


@given(_EXPRESSIONS, st.integers(-9, 9), st.sampled_from(["2 - depth", "-depth", "depth * 3 - 1"]))
def test_binding_is_evaluating_with_more_names(text: str, a: int, b: str) -> None:
    """Python itself is the oracle, with the arguments as variables."""
    bound = evaluate(bind(text, {"a": a, "b": b}), {"depth": 5.0}.__getitem__)
    assert bound == eval(text, {"max": max}, {"a": a, "b": eval(b, {}, {"depth": 5}), "depth": 5})


# --- verbs ------------------------------------------------------------------------------------------------------------


def test_every_verb_takes_them() -> None:
    model = blocks()
    report = initialize(model, RECIPE, seed=0, beta=0.5)
    with torch.device("meta"):
        sketch = blocks()
    assert materialize(sketch, RECIPE, seed=0, beta=0.5).records[0].fill == report.records[0].fill
    assert lint(model, recipe=RECIPE, report=report, beta=0.5).codes == ()
    assert_initialized(model, recipe=RECIPE, report=report, arguments={"beta": 0.5})
    assert load_recipe("gpt2") == load_recipe("gpt2", arguments={})

    class Trained(nn.Sequential):
        init_weights = trainers.init_weights(RECIPE, seed=0, beta=0.5)

    trained = Trained(*blocks())
    trained.init_weights()
    assert torch.equal(trained.state_dict()["0.0.weight"], model.state_dict()["0.0.weight"])


@pytest.mark.parametrize(
    "call",
    [
        lambda **given: plan(blocks(), RECIPE, **given),
        lambda **given: initialize(blocks(), RECIPE, seed=0, **given),
        lambda **given: materialize(blocks().to("meta"), RECIPE, seed=0, **given),
        lambda **given: materialize(blocks(), seed=0, **given),
        lambda **given: lint(blocks(), recipe=RECIPE, **given),
        lambda **given: lint(blocks(), **given),
        lambda **given: trainers.init_weights(RECIPE, seed=0, **given),
        lambda **given: load_recipe("gpt2", **given),
    ],
)
def test_an_unknown_keyword(call: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"\(\) got an unexpected keyword argument 'layerz'"):
        call(layerz=2)


def test_the_near_name_may_be_the_verbs_or_the_recipes() -> None:
    with pytest.raises(TypeError, match=r"'sed'; did you mean 'seed'\?"):
        initialize(blocks(), RECIPE, sed=0)
    with pytest.raises(TypeError, match=r"'layer'; did you mean 'layers'\?"):
        initialize(blocks(), RECIPE, layer=2)
    with pytest.raises(TypeError, match=r"got the argument 'beta' twice, as a keyword and in arguments"):
        plan(blocks(), RECIPE, beta=1, arguments={"beta": 1})
    with pytest.raises(TypeError, match=r"arguments must be a mapping of names to values, but got \[1\]"):
        plan(blocks(), RECIPE, arguments=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'beta': this recipe takes none"):
        plan(blocks(), Zeros(), beta=1)


def test_lists_share_them() -> None:
    other = {"arguments": {"beta": 0.2}, "rules": [{"type": "Normal", "std": "beta", "name": "1.**.weight"}]}
    made = plan(blocks(), [RECIPE, other], beta=0.4)
    assert (made["0.0.weight"].fill, made["1.0.weight"].fill) == (Normal(std=0.2), Normal(std=0.4))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    model = ["torch.nn:Linear", "--arg", "in_features=4", "--arg", "out_features=4", "--arg", "bias=false"]
    assert main(["plan", model[0], str(recipe), *model[1:], "--set", "layers=8", "--set", "variant=small"]) == 0
    out = capsys.readouterr().out
    assert "N(0, 0.025)" in out
    assert "arguments of recipe: beta=0.1, layers=8, heads=4, variant=small, cut=False" in out
    assert main(["check", model[0], str(recipe), *model[1:], "--set", "layers=8"]) == 0
    saved = str(tmp_path / "out.safetensors")
    assert main(["apply", model[0], str(recipe), *model[1:], "--set", "layers=8", "-o", saved]) == 0
    capsys.readouterr()
    assert main(["plan", model[0], str(recipe), *model[1:], "--set", "layer=8"]) != 0
    assert "no argument 'layer'; did you mean 'layers'?" in capsys.readouterr().err
    assert main(["plan", model[0], str(recipe), *model[1:], "--set", "layers"]) != 0
    assert "--set takes key=value, but got 'layers'" in capsys.readouterr().err


# --- records ----------------------------------------------------------------------------------------------------------


def test_plans_and_reports_keep_them() -> None:
    made = plan(blocks(), RECIPE, beta=0.5)
    known = {"recipe": {"beta": 0.5, "layers": "depth", "heads": 4, "variant": "small", "cut": False}}
    assert made.arguments == known
    assert "arguments of recipe: beta=0.5, layers=depth" in made.summary()
    back = Plan.from_json(made.to_json())
    assert (back, back.arguments) == (made, known)
    report = initialize(blocks(), RECIPE, seed=0, beta=0.5)
    assert report.arguments == known
    assert "arguments of recipe: beta=0.5, layers=depth" in report.summary()
    assert Report.from_json(report.to_json()) == report
    before = json.loads(made.to_json())
    for step in before["steps"]:
        del step["rule"]["arguments"]  # as plans were written before there were any
    assert Plan.from_json(json.dumps(before)) == made


# --- schemes as entries -----------------------------------------------------------------------------------------------


def test_a_scheme_as_an_entry() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    entry = {"type": "scheme", "name": "bert", "within": "a", "optional": True}
    made = plan(model, [entry, {"type": "Zeros", "layer": "Linear", "within": "b"}], strict=True)
    assert (made["a.weight"].fill, made["b.weight"].fill) == (Normal(std=0.02), Constant(0.0))
    assert made.reach == ()  # a scheme for a part says nothing of the whole
    assert plan(model, {"rules": [{**entry, "within": "b"}]}).steps[0].site.name == "b.weight"
    base = {"name": "bert", "optional": True}
    assert plan(model, {"extends": base, "rules": [{"type": "Zeros", "name": "b.weight"}]})["b.weight"].over
    assert len(plan(model, {"extends": {**base, "within": "a"}})) == 2
    with pytest.raises(PlanError, match=r"the scheme 'bert' needs parameters of attn.\*, of mlp.\* or expert"):
        plan(model, {"extends": "bert"})


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"name": "gtp2"}, "name: must be the name of a scheme, but got 'gtp2'; did you mean 'gpt2'?"),
        ({"name": "/etc/recipe.toml"}, "name: must be the name of a scheme, but got '/etc/recipe.toml'"),
        ({}, "name: must be the name of a scheme, but got None"),
        ({"name": ["gpt2"]}, r"name: must be the name of a scheme, but got \['gpt2'\]"),
        ({"name": "gpt2", "layerz": 2}, r"rules\[0\].layerz: there is no such argument"),
        ({"name": "gpt2", "optional": 2}, r"rules\[0\].optional: must be true or false"),
        ({"name": "gpt2", "within": 2}, r"rules\[0\].within: must be text"),
        ({"name": "gpt2", "when": {"a": 2}}, r"rules\[0\].when.a: the recipe has no such argument"),
    ],
)
def test_what_is_no_scheme(entry: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        decode_recipe({"rules": [{"type": "scheme", **entry}]})
    if "name" in entry and "when" not in entry:
        with pytest.raises(ConfigError):
            decode_recipe({"extends": entry})


def test_no_shipped_argument_hides_a_keyword() -> None:
    verbs: list[Any] = [plan, initialize, materialize, lint, assert_initialized]
    keywords: set[str] = set().union(*(verb.__kwdefaults__ for verb in verbs))
    for name in schemes():
        declared = read_scheme(name).get("arguments", {})
        assert keywords.isdisjoint(declared)
        assert all(Argument(**(each if isinstance(each, dict) else {"default": each})) for each in declared.values())


def test_needs() -> None:
    rules = [{"type": "Zeros", "name": "**"}]
    assert plan(blocks(), {"needs": ["**"], "rules": rules}).unused == ()
    made = plan(blocks(), {"needs": ["attn.q", ["mlp.*", "expert.*"]], "rules": rules})
    assert [str(rule.where) for rule, _ in made.unused] == ["Roles('attn.q')", "Roles('mlp.*', 'expert.*')"]
    assert len(made) == 2
    for needs, text in (
        (["attn.querry"], r"needs: no rule gives the role 'attn.querry'; did you mean"),
        ("attn.q", r"needs: must be a list, but got 'attn.q'"),
        ([3], r"needs\[0\]: must be text or a list, but got 3"),
    ):
        with pytest.raises(ConfigError, match=text):
            decode_recipe({"needs": needs, "rules": rules})


def test_what_arguments_stand_for_is_bounded() -> None:
    doubled = {"a": "+".join(["depth"] * 30), "b": "+".join(["a"] * 40), "c": "+".join(["b"] * 40)}
    with pytest.raises(ConfigError, match=r"b: with its arguments, .* is too long"):
        decode_recipe({"arguments": doubled, "rules": [{"type": "Constant", "val": "c", "name": "**"}]})
    with pytest.raises(ConfigError, match="stands for more than 40,000 values"):
        decode_recipe([{"type": "scheme", "name": "gpt2"}] * 1000)
