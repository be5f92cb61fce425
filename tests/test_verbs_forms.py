"""The forms of a recipe: each gives the same in every verb, and what is none says what to write instead."""

from __future__ import annotations

import json
import logging
import re
from collections import UserDict, UserList
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchinit
from torchinit import (
    ConfigError,
    Kaiming,
    Layer,
    Leaf,
    Name,
    Normal,
    PlanError,
    Pretrained,
    Rule,
    Xavier,
    Zeros,
    assert_initialized,
    initialize,
    lint,
    materialize,
    plan,
)
from torchinit.cli import main
from torchinit.integrations.fsdp import param_init_fn
from torchinit.integrations.trainers import init_weights
from torchinit.plans import local_shards, make_plan
from torchinit.recipes import recipe_to_data, to_rules

ALL = Rule(Name("**"), Normal(std=0.5))
ENTRY: dict[str, Any] = {"type": "Normal", "std": 0.5, "name": "**"}
TOML = '[[rules]]\ntype = "Normal"\nstd = 0.5\nname = "**"\n'


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def meta(make: Callable[[], Any] = net) -> Any:
    with torch.device("meta"):
        return make()


def written(suffix: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / f"recipe{suffix}"
        path.write_text(text)
        return path

    return write


class Entries(UserDict[str, Any]):
    """A mapping that is no dict."""


FORMS: dict[str, Callable[[Path], Any]] = {
    "a file": written(".toml", TOML),
    "a file, as text": lambda folder: str(written(".toml", TOML)(folder)),
    "a file of one entry": written(".json", json.dumps(ENTRY)),
    "a file of a list of entries": written(".json", json.dumps([ENTRY])),
    "a file of entries by name": written(".toml", '["**"]\ntype = "Normal"\nstd = 0.5\n'),
    "a file in a list": lambda folder: [written(".toml", TOML)(folder)],
    "one rule": lambda _: ALL,
    "one rule, its glob as text": lambda _: Rule("**", Normal(std=0.5)),
    "one rule, several globs": lambda _: Rule(["0.*", "2.*"], Normal(std=0.5)),
    "one rule of a function": lambda _: Rule("**", partial(nn.init.normal_, std=0.5)),
    "rules": lambda _: [ALL],
    "a tuple of rules": lambda _: (ALL,),
    "rules that come one by one": lambda _: iter([ALL]),
    "rules that a generator makes": lambda _: (rule for rule in [ALL]),
    "the values of a dict": lambda _: {"all": ALL}.values(),
    "one entry": lambda _: ENTRY,
    "a list of entries": lambda _: [ENTRY],
    "a tuple of entries": lambda _: (ENTRY,),
    "entries and rules": lambda _: [{"type": "Ones", "name": "**"}, ALL],
    "entries, rules and names": lambda _: [Rule("**", Zeros()), {"0.*": Normal(std=0.5)}, {**ENTRY, "name": "2.*"}],
    "rules in a table": lambda _: {"rules": [ENTRY]},
    "a rule in a table": lambda _: {"rules": (ALL,)},
    "an entry written out": lambda _: recipe_to_data((ALL,))["rules"][0],
    "initializers by name": lambda _: {"0.*": Normal(std=0.5), "2.*": Normal(std=0.5)},
    "a function by name": lambda _: {"**": partial(nn.init.normal_, std=0.5)},
    "entries by name": lambda _: {"**": {"type": "Normal", "std": 0.5}},
    "initializers by selector": lambda _: {Layer("Linear"): Normal(std=0.5)},
    "an entry of another mapping": lambda _: Entries(ENTRY),
    "a sequence of mappings": lambda _: UserList([MappingProxyType(ENTRY)]),
    "mappings by name": lambda _: Entries({"**": Entries({"type": "Normal", "std": 0.5})}),
}


def with_cli(recipe: Any, tmp_path: Path) -> dict[str, Tensor]:
    """The command line takes files: whatever can be data is written to one."""
    path = recipe
    if not isinstance(recipe, (str, Path)):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(recipe_to_data(to_rules(recipe))))
    factory = tmp_path / "models.py"
    factory.write_text("from tests.test_verbs_forms import net\n")
    output = tmp_path / "out.safetensors"
    assert main(["apply", f"{factory}:net", str(path), "--seed", "3", "--complete", "-o", str(output), "--force"]) == 0
    model = net()
    initialize(model, Rule("**", Pretrained(str(output))))
    return dict(model.state_dict())


def with_initialize(recipe: Any, _: Path) -> dict[str, Tensor]:
    model = net()
    report = initialize(model, recipe, seed=3, complete=True, strict=True)
    report.assert_ok(complete=True)
    return dict(model.state_dict())


def with_materialize(recipe: Any, _: Path) -> dict[str, Tensor]:
    model = meta()
    materialize(model, recipe, seed=3, complete=True, strict=True).assert_ok(complete=True)
    return dict(model.state_dict())


def with_plan(recipe: Any, _: Path) -> dict[str, Tensor]:
    model = net()
    made = plan(meta(), recipe, complete=True, strict=True)
    torchinit.plans.run(made, local_shards(model), torchinit.noise.Keyed(3))
    return dict(model.state_dict())


def with_lint(recipe: Any, _: Path) -> dict[str, Tensor]:
    """A model of the right values, of which nothing may be found, and one of wrong ones, of which something must."""
    rules = to_rules(recipe)
    model = net()
    initialize(model, rules, seed=3)
    assert not lint(model, recipe=rules, select=["TI7"], ignore=["TI702"])
    other = net()
    initialize(other, Rule("**", Normal(std=3.0)), seed=3)
    assert "TI704" in lint(other, recipe=rules, select=["TI7"]).codes
    return dict(model.state_dict())


def with_lint_itself(recipe: Any, _: Path) -> dict[str, Tensor]:
    model = net()
    initialize(model, ALL, seed=3)
    assert_initialized(model, recipe=recipe, select=["TI7"])
    return dict(model.state_dict())


def with_param_init_fn(recipe: Any, _: Path) -> dict[str, Tensor]:
    model = meta()
    param_init_fn(model, recipe, seed=3)(model)
    return dict(model.state_dict())


def with_init_weights(recipe: Any, _: Path) -> dict[str, Tensor]:
    write = init_weights(recipe, seed=3)
    for model in (meta(), net()):  # an iterator is taken once, and serves each call
        write(model)
    return dict(model.state_dict())


VERBS = (
    with_plan,
    with_initialize,
    with_materialize,
    with_lint,
    with_lint_itself,
    with_param_init_fn,
    with_init_weights,
    with_cli,
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_values_in_every_verb(
    form: Callable[[Path], Any], verb: Callable[[Any, Path], dict[str, Tensor]], tmp_path: Path
) -> None:
    one = net()
    initialize(one, ALL, seed=3)
    found = verb(form(tmp_path), tmp_path)
    for name, expected in one.state_dict().items():
        assert torch.equal(found[name], expected), name


def test_a_scheme_and_what_goes_over_it() -> None:
    model, schemed = net(), net()
    initialize(schemed, "general", seed=0)
    initialize(model, ["general", {"2.bias": nn.init.ones_}], seed=0)
    assert torch.equal(model[0].weight, schemed[0].weight)
    assert model[2].bias.tolist() == [1, 1]
    made = plan(model, ["general", {"2.bias": nn.init.ones_}])
    assert made["2.bias"].rule.origin == "rules[1]['2.bias']"
    assert made["0.weight"].rule.origin.startswith("general rules[")
    assert made["0.weight"].rule.scheme == "general"


# --- one initializer ---------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A vector that mixes nothing, and is called a weight."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.gain


class SomeRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def zoo() -> Any:
    return nn.ModuleDict(
        {
            "conv": nn.Conv1d(4, 8, 3),
            "bn": nn.BatchNorm1d(8),
            "rnn": nn.LSTM(8, 4, proj_size=2),
            "attn": nn.MultiheadAttention(8, 2),
            "act": nn.PReLU(8),
            "ln": nn.LayerNorm((2, 8)),
            "rms": SomeRMSNorm(8),
            "scale": Scale(),
            "table": nn.Embedding(5, 8, padding_idx=0),
        }
    )


WEIGHTS = {
    "conv.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "rnn.weight_hr_l0",
    "attn.in_proj_weight",
    "attn.out_proj.weight",
    "table.weight",
}


def test_an_initializer_alone_is_for_the_weights_that_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    model = zoo()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = initialize(model, Xavier(), seed=0)
    assert {record.name for record in report} == WEIGHTS
    assert set(report.untouched) == {name for name, _ in model.named_parameters()} - WEIGHTS
    assert {"bn.weight", "bn.bias", "act.weight", "ln.weight", "rms.weight", "scale.gain"} <= set(report.untouched)
    assert report.buffers == ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in {*report.untouched, *report.buffers})
    assert caplog.messages == ["left alone scale.weight: Xavier() does not fit its shape"]
    assert not model["table"].weight[0].any()


def test_what_does_not_need_fans_fits_vectors_too() -> None:
    assert {step.site.name for step in plan(zoo(), Normal(std=0.02))} == WEIGHTS | {"scale.weight"}
    assert {step.site.name for step in plan(zoo(), nn.init.xavier_uniform_)} == WEIGHTS
    assert {step.site.name for step in plan(zoo(), lambda tensor: tensor.zero_())} == WEIGHTS | {"scale.weight"}


@pytest.mark.parametrize("initializer", [Kaiming(), nn.init.kaiming_normal_, torch.Tensor.normal_])
def test_an_initializer_alone_in_every_verb(initializer: Any) -> None:
    one, other = net(), meta()
    report = initialize(one, initializer, seed=0)
    assert [record.name for record in report] == ["0.weight", "2.weight"]
    assert [step.site.name for step in plan(other, initializer)] == ["0.weight", "2.weight"]
    assert lint(one, recipe=initializer, select=["TI7"]).codes == ()
    made = materialize(other, initializer, seed=0)
    assert torch.equal(other[0].weight, one[0].weight)
    assert made["0.bias"].rule == "own code"


def test_an_initializer_that_fits_nothing() -> None:
    with pytest.raises(PlanError, match=r"rules\[0\]: Dirac\(\) fits none of 2 weights: Dirac needs a kernel"):
        plan(net(), torchinit.initializers.Dirac())
    made = plan(nn.ModuleDict({"net": net(), "conv": nn.Conv1d(2, 2, 3)}), torchinit.initializers.Dirac())
    assert [step.site.name for step in made] == ["conv.weight"]
    assert made.left_alone == ["left alone net.0.weight, net.2.weight: Dirac() does not fit its shape"]
    with pytest.raises(PlanError, match="goes beyond 65504"):  # the dtype's fault is not the shape's
        plan(net().half(), Normal(std=1e6))
    with pytest.raises(PlanError, match="finds no weight of a layer that mixes its inputs among 5 sites"):
        plan(nn.BatchNorm1d(3), Kaiming(), strict=True)


def test_an_initializer_among_rules() -> None:
    made = plan(net(), [Kaiming(), {"2.weight": Zeros()}, Rule(Leaf("bias"), Zeros())], complete=True)
    assert made["0.weight"].rule.origin == "rules[0]"
    assert [str(step.rule) for step in made] == [
        "Kinds('weight') -> Kaiming()",
        "Name('2.weight') -> Zeros()",
        "Leaf('bias') -> Zeros()",
        "Leaf('bias') -> Zeros()",
    ]


# --- what is no recipe, and no model -----------------------------------------------------------------------


def generator() -> Iterator[Any]:
    yield 3


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a class": (Kaiming, TypeError, r"^Kaiming is a class; write Kaiming\(\)$"),
    "another class": (nn.Linear, TypeError, r"^Linear is a class; write Linear\(\)$"),
    "a class in a list": ([Kaiming], ConfigError, r"rules\[0\]: Kaiming is a class; write Kaiming\(\)"),
    "a class by name": ({"0.weight": Kaiming}, ConfigError, r"recipe\['0.weight'\]: Kaiming is a class; write Kaim"),
    "the name of an initializer": (
        "Kaiming",
        ConfigError,
        r"^'Kaiming' is the name of an initializer, not of a recipe; write Kaiming\(\) in Python, or \{'type'",
    ),
    "the name of an initializer, in small letters": ("kaiming", ConfigError, r"write Kaiming\(\) in Python"),
    "a misspelt scheme": ("genral", ConfigError, "no scheme of this name; did you mean 'general'?"),
    "the text of a file": (TOML, ConfigError, "not the text of a file: parse it first"),
    "a number": (3, TypeError, r"^3 is a number, not a recipe; write Constant\(3\), for"),
    "a number by name": ({"0.weight": 0}, ConfigError, r"0 is not an initializer; write Constant\(0\), or"),
    "text by name": ({"0.weight": "Kaiming"}, ConfigError, r"'Kaiming' is not an initializer; write Kaiming\("),
    "nothing": (None, TypeError, "^None is not a recipe; write the path of a file, the name of a scheme, rules"),
    "bytes": (b"gpt2", TypeError, "^b'gpt2' is not a recipe; write the path of a file"),
    "true": (True, TypeError, "^True is not a recipe"),
    "a tensor": (torch.ones(2), TypeError, "is not a recipe"),
    "an object": (object(), TypeError, "is not a recipe"),
    "a model": (
        nn.Linear(2, 2),
        TypeError,
        r"^a Linear is a model, not a recipe; .* Rule\('\*\*', Pretrained\(model\)",
    ),
    "a container": (nn.ModuleList(), TypeError, "^a ModuleList is a model, not a recipe"),
    "a state dict": (nn.Linear(2, 2).state_dict(), TypeError, "^this is a state dict, not a recipe; to load it, write"),
    "a selector": (
        Layer("Linear"),
        TypeError,
        r"^Layer\('Linear'\) says where, and not what; write Rule\(Layer\('Linear'\), Normal\(std=0\.02\)\)$",
    ),
    "a plan": (make_plan([], []), TypeError, r"^this is a plan, not a recipe; torchinit\.plans\.run\(plan, "),
    "a set": ({ALL}, TypeError, "has no order, and later rules win; write a list$"),
    "an empty list": ([], ConfigError, "the recipe is empty, so nothing would be written: give it a rule"),
    "an empty dict": ({}, ConfigError, "the recipe is empty"),
    "an empty table of rules": ({"rules": []}, ConfigError, "the recipe is empty"),
    "an empty iterator": (iter([]), ConfigError, "the recipe is empty"),
    "rules that are none": ({"rules": 3}, ConfigError, "a recipe is a table with a list 'rules'"),
    "a misspelt word": ({"rule": [ENTRY]}, ConfigError, r"recipe\['rule'\]: .*; did you mean 'rules'\?"),
    "a misspelt type": ({"typ": "Normal", "std": 1}, ConfigError, r"recipe\['typ'\]: .*; did you mean 'type'\?"),
    "an entry without a type": ({"layer": "Linear", "std": 1}, ConfigError, "needs 'type', the name of an init"),
    "a name twice": ({"0.*": {**ENTRY}}, ConfigError, r"recipe\['0.\*'\]\.name: the key is the name already"),
    "a number in a list": ([ALL, 3.0], ConfigError, r"rules\[1\]: must be a table, but got 3\.0"),
    "a number that a generator makes": (generator(), ConfigError, r"rules\[0\]: must be a table, but got 3"),
    "a module in a list": (
        [nn.Linear(1, 1)],
        ConfigError,
        r"rules\[0\]: a Linear is not an initializer; write Pretrained",
    ),
    "a glob that is none": ({"a..b": Zeros()}, ConfigError, r"recipe\['a\.\.b'\]: a name is dotted text"),
    "a key that is none": ({3: Zeros()}, ConfigError, r"recipe\[3\]: a selector is Name\('head\.\*\*'\) and the like"),
}


@pytest.mark.parametrize(("recipe", "error", "text"), WRONG.values(), ids=WRONG)
def test_what_is_no_recipe_says_what_to_write(recipe: Any, error: type[Exception], text: str) -> None:
    verbs: list[Callable[[Any], object]] = [
        lambda recipe: plan(net(), recipe),
        lambda recipe: initialize(net(), recipe),
        lambda recipe: param_init_fn(net(), recipe, seed=0),
    ]
    if recipe is not None:  # which is no recipe for materialize, and none to compare with for lint
        verbs.append(lambda recipe: materialize(meta(), recipe))
    if recipe is not None and not isinstance(recipe, torchinit.Plan):
        verbs.append(lambda recipe: lint(net(), recipe=recipe))
    for verb in [] if isinstance(recipe, Iterator) else verbs:
        with pytest.raises(error, match=text):
            verb(recipe)
    with pytest.raises(error, match=text):
        init_weights(recipe, seed=0)  # when it is given, not when it is called


WRONG_MODELS: dict[str, tuple[Any, Any, str]] = {
    "a state dict": (net().state_dict(), ALL, "^this is a state dict; give the model, and load the state dict by Rule"),
    "a class": (nn.Linear, ALL, r"^Linear is a class; write Linear\(\.\.\.\)$"),
    "the recipe": (ALL, net(), "^the arguments are in the wrong order: the model comes first, then the recipe$"),
    "nothing": (None, ALL, "^None is not a model; give a torch.nn.Module$"),
    "a list of modules": ([nn.Linear(2, 2)], ALL, "is not a model; give a torch.nn.Module$"),
    "an optimizer": (torch.optim.SGD(net().parameters()), ALL, "is not a model; give a torch.nn.Module$"),
}


class Runner:
    """What holds a model, and is none."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


@pytest.mark.parametrize(("model", "recipe", "text"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_what_is_no_model_says_what_to_give(model: Any, recipe: Any, text: str) -> None:
    for verb in (plan, initialize, materialize):
        with pytest.raises(TypeError, match=text):
            verb(model, recipe)
    if not isinstance(recipe, nn.Module):
        with pytest.raises(TypeError, match=text):
            lint(model, recipe=recipe)


def test_what_holds_a_model() -> None:
    with pytest.raises(TypeError, match=r"is not a model; give its \.model$"):
        initialize(Runner(model=net()), ALL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is not a model; give its \.module$"):
        plan(Runner(module=net()), ALL)  # type: ignore[arg-type]


class LightningLike(nn.Module):
    """A module around the model, some of whose properties only work while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net()

    @property
    def trainer(self) -> None:
        raise RuntimeError("not attached to a trainer")


def test_a_wrapper_that_is_a_module() -> None:
    model = LightningLike()
    initialize(model, {"model.0.weight": Zeros()}, seed=0)
    assert not model.model[0].weight.any()


@pytest.mark.parametrize("recipe", [Kaiming(), {"0.weight": Zeros()}, {"type": "Zeros", "layer": "Linear"}, "general"])
def test_a_lazy_module_that_was_not_run(recipe: Any) -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    for verb in (plan, initialize):
        with pytest.raises(PlanError, match=r"[Rr]un the model once on an example"):
            verb(model, recipe)
    model(torch.zeros(1, 4))
    initialize(model, recipe, seed=0)


# --- the reading of MMEngine -------------------------------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


DIFFERING: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "an LSTM": (lambda: nn.LSTM(2, 2), {"type": "Xavier", "layer": "LSTM"}, "4 tensors .*: weight_ih_l0, weight_hh_l0"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), {"type": "Xavier", "layer": "MultiheadAttention"}, "2 tensors"),
    "a padding row": (lambda: nn.Embedding(4, 2, padding_idx=0), {"type": "Normal", "layer": "Embedding"}, "1 tensor "),
    "a parametrized weight": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        {"type": "Normal", "layer": "Linear"},
        "1 tensor .*: weight",
    ),
    "in a list": (lambda: nn.LSTM(2, 2), [{"type": "Xavier", "layer": "LSTM"}], "4 tensors"),
    "an override": (
        lambda: nn.ModuleDict({"rnn": nn.GRU(2, 2), "fc": nn.Linear(2, 2)}),
        {"type": "Xavier", "layer": "Linear", "override": {"name": "rnn"}},
        "4 tensors",
    ),
    "truncated normals": (lambda: nn.Linear(2, 2), {"type": "TruncNormal", "layer": "Linear"}, "1 tensor .*: weight"),
}


@pytest.mark.parametrize(("make", "entries", "text"), DIFFERING.values(), ids=DIFFERING)
def test_one_warning_where_an_init_cfg_would_give_other_values(
    make: Callable[[], Any], entries: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    initialize(make(), entries)
    (said,) = warned(caplog)
    assert said.endswith("If one is meant, call torchinit.mmengine.initialize")
    assert re.search(text, said)


def names_mmengine(texts: list[str]) -> list[str]:
    return [text for text in texts if "torchinit.mmengine.initialize" in text]


class Buffered(nn.Module):
    """Its weight is a buffer, which MMEngine writes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))


def test_buffers_that_an_init_cfg_writes(caplog: pytest.LogCaptureFixture) -> None:
    initialize(Buffered(), {"type": "Normal", "layer": "Buffered"})
    (said,) = names_mmengine(warned(caplog))
    assert said.startswith("1 tensor would get other values from an init_cfg of these words: weight")


@pytest.mark.parametrize(
    ("make", "entries"),
    [
        (net, {"type": "Xavier", "layer": "Linear"}),
        (net, [{"type": "Normal", "std": 0.1, "layer": ["Linear"], "bias": 1}]),
        (lambda: nn.Embedding(4, 2, padding_idx=0), {"type": "Constant", "val": 0, "layer": "Embedding"}),
        (lambda: nn.LSTM(2, 2), {"type": "Normal", "name": "**.weight_*"}),  # a word of recipes
        (lambda: nn.LSTM(2, 2), {"rules": [{"type": "Xavier", "layer": "LSTM"}]}),
        (lambda: nn.LSTM(2, 2), {"**": {"type": "Normal"}}),
    ],
)
def test_no_warning_where_both_readings_agree_or_only_one_can_be_meant(
    make: Callable[[], Any], entries: Any, caplog: pytest.LogCaptureFixture
) -> None:
    initialize(make(), entries)
    assert names_mmengine(warned(caplog)) == []


def test_truncated_normals_with_a_seed_are_the_same(caplog: pytest.LogCaptureFixture) -> None:
    initialize(net(), {"type": "TruncNormal", "layer": "Linear"}, seed=0)
    assert warned(caplog) == []


def test_an_init_cfg_that_is_no_recipe_names_its_reader() -> None:
    with pytest.raises(
        ConfigError, match=r"1 mistake in recipe \(an init_cfg is for torchinit\.mmengine\.initialize\)"
    ):
        initialize(net(), {"type": "Pretrained", "checkpoint": "a.pth"})
