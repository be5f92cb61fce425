"""Leftovers: what a file has and nobody takes is counted, and told by how near it lies to what is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchinit import (
    CheckpointError,
    Name,
    Normal,
    Plan,
    PlanError,
    Pretrained,
    Report,
    Rule,
    initialize,
    materialize,
    plan,
)
from torchinit.checkpoints.adapters import Fuse
from torchinit.cli import main
from torchinit.initializers import LoadReport
from torchinit.integrations.fsdp import param_init_fn
from torchinit.integrations.trainers import init_weights

MODEL = f"{Path(__file__).parents[2]}/examples/models.py:mlp"
TAKEN = "What they do in their layers is lost: take them by rename or adapt, or give the model these parts; expect_unex"


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12, bias=bias)


class Stack(nn.Module):
    def __init__(self, n: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(bias) for _ in range(n))


def rule(source: Any, **options: Any) -> Rule:
    return Rule(Name("**"), Pretrained(source, **options))


def account(model: nn.Module, state: Any, **options: Any) -> LoadReport:
    return plan(model, [Rule(Name("**"), Normal()), rule(state, **options)]).loads[0]


def deep(*more: str) -> dict[str, Tensor]:
    """The file of three layers, and more."""
    return {**Stack(3, False).state_dict(), **{key: torch.zeros(2) for key in more}}


# --- the grades -----------------------------------------------------------------------------------------------------


def test_a_deeper_model_with_biases(caplog: pytest.LogCaptureFixture) -> None:
    state = dict(Stack(12, True).state_dict())
    found = initialize(Stack(3, False), rule(state)).loads[0]
    assert found.beside == tuple(f"layers.{n}.qkv.bias" for n in range(3))
    assert (len(found.unexpected), found.elements, found.file_elements) == (21, (144, 144), (144, 720))
    assert found.headline() == (
        "dict in memory: 100 % of the elements loaded, 20.0 % of the file was used, 3 of 3 sites, 21 unexpected"
    )
    assert "\nunexpected, beside what is loaded: layers.0-2.qkv.bias ×3" in str(found)
    assert "\nunexpected: layers.3-11.qkv.weight ×9, layers.3-11.qkv.bias ×9" in str(found)
    beside, others = caplog.messages
    assert beside.startswith(
        "dict in memory: nothing takes 3 keys of the file beside what is loaded: layers.0.qkv.bias"
    )
    assert TAKEN in beside
    assert "nothing takes 18 keys of the file that the model has no part for: layers.3.qkv.weight" in others
    assert found.warnings == (beside, others)
    with pytest.raises(CheckpointError, match=r"(?s)nothing takes 3 keys .* nothing takes 18 keys"):
        initialize(Stack(3, False), rule(state), strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):  # as torch has it
        Stack(3, False).load_state_dict(state, strict=True)


BESIDE = ["layers.1.qkv.bias", "layers.1.qkv.weight_scale", "layers.1.qkv.lora_A.weight", "layers.1.qkv.running_mean",
          "layers.1.qkv.lora_B.default.weight", "layers.1.qkv.weight._data", "layers.2.qkv.weight_g"]  # fmt: skip
ELSEWHERE = ["layers.3.qkv.bias", "head.bias", "layers.1.norm.weight", "layers.1.gamma", "queue", "qkv.bias"]


@pytest.mark.parametrize("key", [*BESIDE, *ELSEWHERE])
def test_what_lies_beside(key: str) -> None:
    found = account(Stack(3, False), deep(key))
    assert found.unexpected == (key,)
    assert found.beside == ((key,) if key in BESIDE else ())
    prefixed = account(
        Stack(3, False), {f"net.module.{name}": value for name, value in deep(key).items()}, prefix="net"
    )
    assert len(prefixed.beside) == len(found.beside)
    with pytest.raises(CheckpointError, match=rf"nothing takes 1 key of the file .*: {key}\. "):
        plan(Stack(3, False), rule(deep(key)), strict=True)


@pytest.mark.parametrize(("key", "is_beside"), [("bias", True), ("lora_A.weight", True), ("weight.absmax", True)])
def test_a_model_that_is_one_layer(key: str, is_beside: bool) -> None:
    found = account(nn.Linear(2, 2, bias=False), {"weight": torch.zeros(2, 2), key: torch.zeros(2)})
    assert bool(found.beside) == is_beside


class Vit(nn.Module):
    """A model with a parameter of its own, beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.body = nn.Parameter(torch.zeros(1, 1, 2)), nn.Linear(2, 2)


def test_a_parameter_of_the_model_itself() -> None:
    state = dict(Vit().state_dict())
    assert account(Vit(), {**state, "dist_token": torch.zeros(1)}).beside == ("dist_token",)
    assert account(Vit(), {**state, "head.weight": torch.zeros(1)}).beside == ()


def test_what_is_left_to_other_rules_has_nothing_beside_it() -> None:
    state = {**deep("layers.0.qkv.bias"), "layers.0.qkv.weight": torch.zeros(3, 3)}
    assert account(Stack(3, False), state, on_shape="skip").beside == ()
    found = account(Stack(3, False), {f"layers.{n}.{one}.{leaf}": torch.zeros(4, 4)[: 4 if leaf == "weight" else 1]
                                      for n in range(3) for one in "qkv" for leaf in ("weight", "bias")},
                    adapt={"**": Fuse("qkv", ("q", "k", "v"))})  # fmt: skip
    assert len(found.beside) == len(found.unexpected) == 9  # the biases of q, k and v


def test_a_counter_of_batches_is_not_missed() -> None:
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    found = plan(norm, rule({**norm.state_dict(), "num_batches_tracked": torch.tensor(3)}), strict=True).loads[0]
    assert (found.unexpected, found.spare) == ((), ("num_batches_tracked",))


def test_nothing_is_told_of_a_file_of_which_nothing_fits() -> None:
    with pytest.raises(CheckpointError) as caught:
        plan(Stack(3, False), rule({f"x.{key}": value for key, value in deep().items()}), strict=True)
    assert "nothing takes" not in str(caught.value)
    assert "with prefix='x.' 3 of 3 match" in str(caught.value)


def test_what_is_outside_of_the_prefix_is_not_unexpected_and_not_used() -> None:
    state = {f"{part}.{key}": value for part in ("q", "k") for key, value in deep().items()}
    found = plan(Stack(3, False), rule(state, prefix="q"), strict=True).loads[0]
    assert (found.unexpected, found.file_elements) == ((), (144, 288))
    assert "50.0 % of the file was used" in found.headline()


# --- expect_unexpected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "globs", ["**", ["**.bias", "head.*"], ("layers.*.qkv.bias", "head.**"), ["net.layers.1.qkv.bias", "net.head.**"]]
)
@pytest.mark.parametrize("verb", [plan, initialize])
def test_what_is_expected_is_silent(globs: Any, verb: Any, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"net.{key}": value for key, value in deep("layers.1.qkv.bias", "head.weight").items()}
    found = verb(Stack(3, False), rule(state, prefix="net", expect_unexpected=globs), strict=True).loads[0]
    assert (found.unexpected, found.beside, found.warnings, caplog.messages) == ((), (), (), [])
    assert found.spare == ("net.layers.1.qkv.bias", "net.head.weight")
    assert "2 left as expected" in found.headline()


def test_globs_that_match_nothing_are_told() -> None:
    text = "expect_unexpected: 'haed.**' matches no key; did you mean 'head.x'?"
    found = account(Stack(3, False), deep("head.x"), expect_unexpected=["haed.**", "head.**"])
    assert found.unused_patterns == (text,)
    assert any(text in warning for warning in found.warnings)
    with pytest.raises(CheckpointError, match=r"expect_unexpected: 'haed.\*\*' matches no key"):
        plan(Stack(3, False), rule(deep(), expect_unexpected="haed.**"), strict=True)
    state = {f"{part}.{key}": value for part in ("q", "k") for key, value in deep().items()}
    assert plan(Stack(3, False), rule(state, prefix="q", expect_unexpected="k.**"), strict=True).loads[0].complete


@pytest.mark.parametrize(
    ("globs", "text"),
    [(3, "expect_unexpected must be text or a list"), ([3], "expect_unexpected: a name is text"),
     ("a..b", "expect_unexpected: a name is dotted text")],
)  # fmt: skip
def test_globs_are_checked(globs: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        Pretrained("a.pth", expect_unexpected=globs)


@pytest.mark.parametrize("form", ["toml", "json", "yaml"])
def test_in_recipes_and_saved_plans(form: str, tmp_path: Path) -> None:
    torch.save(deep("head.x"), path := tmp_path / "a.pth")
    entry = {"type": "Pretrained", "name": "**", "checkpoint": str(path), "expect_unexpected": ["head.**"]}
    texts = {
        "toml": "[[rules]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items()),
        "json": json.dumps({"rules": [entry]}),
        "yaml": "rules:\n- " + "\n  ".join(f"{key}: {json.dumps(value)}" for key, value in entry.items()),
    }
    (recipe := tmp_path / f"r.{form}").write_text(texts[form])
    made = plan(Stack(3, False), recipe, strict=True)
    assert made.loads[0].spare == ("head.x",)
    assert Plan.from_json(made.to_json()) == made
    report = initialize(Stack(3, False), recipe, strict=True)
    assert Report.from_json(report.to_json()).loads == made.loads
    wide = plan(Stack(3, False), rule(str(path)))
    assert Plan.from_json(wide.to_json()).loads[0].warnings == wide.loads[0].warnings != ()


# --- several rules --------------------------------------------------------------------------------------------------


def test_what_another_rule_takes_is_not_left(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    state = {f"{part}.{key}": torch.ones(2, 2)[: 2 if key == "weight" else 1].squeeze() for part in ("x", "y")
             for key in ("weight", "bias")}  # fmt: skip
    torch.save(state, path := tmp_path / "a.pth")

    def moved(source: Any, old: str, new: str) -> Rule:
        return Rule(Name(f"{new}.**"), Pretrained(source, rename=((f"^{old}[.]", f"{new}."),)))

    for source in (state, str(path)):
        for found in plan(net, [moved(source, "x", "a"), moved(source, "y", "b")], strict=True).loads:
            assert (found.unexpected, found.file_elements) == ((), (12, 12))
        with pytest.raises(CheckpointError, match=r"nothing takes 2 keys of the file .*: y.weight, y.bias"):
            plan(net, [moved(source, "x", "a"), Rule(Name("b.**"), Normal())], strict=True)
    other = {**{key: value for key, value in state.items() if key[0] == "x"}, "y.bias": torch.ones(2)}
    found, _ = plan(net, [moved(other, "x", "a"), moved(state, "y", "b")]).loads
    assert found.unexpected == ("y.bias",)  # the other rule takes that of another file


# --- strict, asked for and by default -------------------------------------------------------------------------------


def test_strict_of_the_verbs() -> None:
    rules = rule(deep("head.x"))
    for verb in (plan, initialize, materialize):
        with pytest.raises((CheckpointError, PlanError), match=r"nothing takes 1 key of the file"):
            verb(Stack(3, False).to("meta") if verb is materialize else Stack(3, False), rules, strict=True)
    assert plan(Stack(3, False), rules, strict="model").loads[0].warnings
    lacking = [Rule(Name("**"), Normal()), rule({key: value for key, value in deep("x").items() if "1" not in key})]
    with pytest.raises(CheckpointError, match=r"1 site not in the file"):
        plan(Stack(3, False), lacking, strict="model")
    with pytest.raises(ValueError, match=r"strict must be true, false or 'model', but got 'file'"):
        plan(Stack(3, False), rules, strict="file")  # type: ignore[arg-type]


def test_where_strict_is_a_default_it_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Model(Stack):
        pass

    rules = rule(deep("layers.0.qkv.bias"))
    Model.init_weights = init_weights(rules, seed=0)  # type: ignore[attr-defined]
    assert Model(3, False).init_weights().loads[0].beside == ("layers.0.qkv.bias",)  # type: ignore[operator]
    assert "nothing takes 1 key of the file beside what is loaded" in caplog.messages[0]
    param_init_fn(Model(3, False), rules, seed=0)
    Model.init_weights = init_weights(rules, seed=0, strict=True)  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="nothing takes 1 key"):
        Model(3, False).init_weights()  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="nothing takes 1 key"):
        param_init_fn(Model(3, False), rules, seed=0, strict=True)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A file for the example model that has more than that."""
    from examples.models import mlp

    more = {key: torch.ones(2) for key in ("0.weight_g", "8.x", "9.x")}
    torch.save({**mlp().state_dict(), **more}, path := tmp_path / "wide.pth")
    return path


def test_check_ckpt_fails_where_a_strict_load_would(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check-ckpt", str(wide), "--model", MODEL]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "unexpected, beside what is loaded: 0.weight_g" in text
    offer = "--expect-unexpected '*.weight_g' --expect-unexpected '*.x'"
    assert f"try {offer}, in a rule expect_unexpected=['*.weight_g', '*.x']" in text
    assert main([*command, "--json"]) == 1
    assert [text for text in json.loads(capsys.readouterr().out)["problems"] if "nothing takes 2 keys" in text]
    globs = ["--expect-unexpected", "*.weight_g", "--expect-unexpected", "*.x"]
    assert main([*command, *globs]) == 0
    assert main([*command, *globs, "--expect-unexpected", "z.*"]) == 1
    assert main([*command, "--expect-unexpected", "a..b"]) == 2


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--lenient"], 0), (["--strict"], 1)])
def test_strict_on_the_command_line(options: list[str], code: int, wide: Path, tmp_path: Path, capsys: Any) -> None:
    (recipe := tmp_path / "r.toml").write_text(f'[[rules]]\ntype = "Pretrained"\ncheckpoint = "{wide}"\nname = "**"\n')
    for command in (
        ["plan", MODEL, str(recipe)],
        ["apply", MODEL, str(recipe), "-o", f"{tmp_path}/{code}.safetensors"],
    ):
        assert main([*command, *options, *(["--force"] if "apply" in command else [])]) == code
        printed = capsys.readouterr()
        assert "unexpected, beside what is loaded" in printed.out or "nothing takes" in printed.err


# --- laws -----------------------------------------------------------------------------------------------------------

KEYS = st.lists(
    st.sampled_from(["layers", "0", "1", "qkv", "weight", "bias", "head", "lora_A", "x"]), min_size=1, max_size=5
)


@given(st.sets(KEYS.map(".".join), max_size=8))
def test_strict_fails_exactly_where_torch_does(keys: set[str]) -> None:
    """The oracle is torch: a file with all of the model's keys and more is refused there exactly if it is here."""
    model = Stack(3, False)
    state = {**{key: torch.zeros(2) for key in keys}, **deep()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError:
        with pytest.raises(CheckpointError, match="nothing takes"):
            plan(model, rule(state), strict=True)
        assert {*account(model, state).beside} <= {*account(model, state).unexpected} == {*state} - {*deep()}
        assert plan(model, rule(state, expect_unexpected=sorted(keys)), strict=True).loads[0].warnings == ()
    else:
        plan(model, rule(state), strict=True)


# --- two checkpoints for one site -----------------------------------------------------------------------------------

ENTRY = {"type": "Pretrained", "name": "**"}


@pytest.mark.parametrize("as_entries", [False, True])
def test_between_two_checkpoints_each_wish_has_its_line(as_entries: bool, tmp_path: Path) -> None:
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    for number, path in enumerate((first, second)):
        torch.save({key: torch.full_like(value, number) for key, value in deep().items()}, path)

    def rules(one: dict[str, Any], two: dict[str, Any], names: tuple[str, str] = ("**", "**")) -> Any:
        if as_entries:
            return {"rules": [{**ENTRY, "checkpoint": str(path), "name": name, **options} for path, name, options
                              in zip((first, second), names, (one, two), strict=True)]}  # fmt: skip
        return [Rule(Name(name), Pretrained(str(path), **options)) for path, name, options
                in zip((first, second), names, (one, two), strict=True)]  # fmt: skip

    with pytest.raises(PlanError) as caught:
        plan(Stack(3, False), rules({}, {}))
    _, start, *wishes = str(caught.value).splitlines()
    assert "rules[0] loads 3 sites, and rules[1] (Name('**') -> Pretrained(" in start
    assert [wish.strip() for wish in wishes] == [
        "To keep what rules[0] loads, exclude them from rules[1].",
        "To keep what rules[1] loads, exclude them from rules[0], or say lock = false in rules[0].",
    ]
    ways: list[tuple[dict[str, Any], tuple[str, str], float]] = [
        ({}, ("**", "x.**"), 0.0), ({}, ("x.**", "**"), 1.0), ({"lock": False}, ("**", "**"), 1.0),
    ]  # fmt: skip
    for one, names, value in ways:  # every way out that is named works, to the values that are wished
        recipe = rules(one, {}, names)
        initialize(model := Stack(3, False), recipe)
        assert {value} == {*torch.cat([weight.flatten() for weight in model.state_dict().values()]).tolist()}


def test_among_three_checkpoints() -> None:
    three = [rule({key: torch.full_like(value, n) for key, value in deep().items()}) for n in range(3)]
    with pytest.raises(PlanError) as caught:
        plan(Stack(3, False), three)
    text = str(caught.value)
    assert "rules[0] and rules[1] load 3 sites, and rules[2] (" in text
    assert "To keep what rules[1] loads, exclude them from rules[0] and rules[2]." in text
    assert "exclude them from rules[0] and rules[1], or say lock = false in rules[0] and rules[1]." in text


def test_between_a_checkpoint_and_a_drawing_the_order_may_change() -> None:
    with pytest.raises(PlanError, match=r"Put rules\[0\] last, exclude them from rules\[1\], or say lock = false in r"):
        plan(Stack(3, False), [rule(deep()), Rule(Name("**"), Normal())])
