"""What plan, initialize and materialize have in common: their keywords, and what each of these does in all of them."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard

from tests.ranks import each_rank, local_of
from torchinit import (
    BaseModule,
    ConfigError,
    Constant,
    Kaiming,
    Leaf,
    Name,
    Normal,
    Plan,
    PlanError,
    Pretrained,
    Report,
    ReportError,
    Rule,
    RunError,
    TruncNormal,
    Zeros,
    initialize,
    materialize,
    plan,
    seeded,
)
from torchinit.initializers import Sparse
from torchinit.mmengine import Sequential

VERBS: dict[str, Callable[..., Any]] = {"plan": plan, "initialize": initialize, "materialize": materialize}
WEIGHTS = Rule(Leaf("weight"), Normal(std=0.5))
ALL = [WEIGHTS, Rule(Leaf("bias"), Zeros())]
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "recipes.md"


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def meta(make: Callable[[], Any] = net) -> Any:
    with torch.device("meta"):
        return make()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = state(one), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- the keywords themselves -------------------------------------------------------------------------------


def table() -> str:
    """The arguments of the verbs as the page has them."""
    parameters = {name: inspect.signature(verb).parameters for name, verb in VERBS.items()}
    every = dict.fromkeys(key for said in reversed(parameters.values()) for key in said if key != "named")

    def cell(verb: str, key: str) -> str:
        said = parameters[verb].get(key)
        if said is None:
            return ""
        return "required" if said.default is said.empty else f"`{said.default!r}`".replace("'", '"')

    rows = [[f"`{key}`", *(cell(verb, key) for verb in VERBS)] for key in every]
    lines = [["argument", *(f"`{verb}`" for verb in VERBS)], ["---"] * 4, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_page_has_the_arguments_of_the_verbs() -> None:
    assert table() in PAGE.read_text("utf-8"), f"the page {PAGE.name} needs this table:\n\n{table()}"


def test_what_verbs_share_has_one_default() -> None:
    found: dict[str, set[object]] = {}
    for verb in VERBS.values():
        for key, said in inspect.signature(verb).parameters.items():
            if said.kind is said.KEYWORD_ONLY:
                found.setdefault(key, set()).add(said.default)
    assert {key: values for key, values in found.items() if len(values) > 1} == {}
    assert {"complete", "strict", "trainable"} <= inspect.signature(plan).parameters.keys()
    assert {"seed", "stats", "progress", "fingerprint"} <= inspect.signature(initialize).parameters.keys()
    assert inspect.signature(initialize).parameters.keys() <= inspect.signature(materialize).parameters.keys()


# --- seed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), torch.tensor(7)])
def test_whole_numbers_of_others_are_seeds(seed: Any) -> None:
    one, other, third = net(), net(), meta()
    initialize(one, ALL, seed=7)
    initialize(other, ALL, seed=seed)
    materialize(third, ALL, seed=seed)
    assert same(one, other) and same(one, third)


@pytest.mark.parametrize("seed", ["0", 0.5, True, torch.ones(2)])
def test_what_is_no_seed(seed: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: initialize(net(), ALL, seed=seed),
        lambda: materialize(meta(), ALL, seed=seed),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"a seed is an int|only integer tensors|one element"):
            call()
    with pytest.raises(ValueError, match=r"a seed is at least 0 and below 2\*\*64, got -1"):
        materialize(meta(), ALL, seed=-1)


RULES = [
    Rule(Leaf("weight"), Kaiming()),
    Rule(Name("0.bias"), TruncNormal()),
    Rule(Name("2.weight"), Sparse(0.5, std=1.0)),
    Rule(Name("2.bias"), lambda tensor: tensor.copy_(torch.randn(tensor.shape))),
    Rule(Name("1.weight"), Normal(1.0, 0.1)),
]


def linears() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 6))


@pytest.mark.parametrize("verb", ["initialize", "materialize"])
def test_a_generator_draws_as_torchs_own_would(verb: str) -> None:
    one, other = linears(), meta(linears) if verb == "materialize" else linears()
    torch.manual_seed(5)
    initialize(one, RULES)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    VERBS[verb](other, RULES, seed=generator)
    assert same(one, other)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own is left alone
    assert torch.equal(generator.get_state(), after)  # and the generator goes on from where it is


def test_without_a_seed_all_verbs_draw_from_torchs_generator() -> None:
    one, other = net(), meta()
    torch.manual_seed(5)
    initialize(one, [Rule(Leaf("weight"), Normal()), Rule(Leaf("bias"), Normal())])
    torch.manual_seed(5)
    report = materialize(other, [Rule(Leaf("weight"), Normal()), Rule(Leaf("bias"), Normal())])
    assert same(one, other)
    assert report["1.running_var"].fill == "BatchNorm1d.reset_running_stats()"
    materialize(third := meta(), [Rule(Leaf("weight"), Normal()), Rule(Leaf("bias"), Normal())])
    assert not torch.equal(third[0].weight, other[0].weight)


class Elsewhere(torch.Generator):
    """A generator of a device that this machine need not have."""

    device = torch.device("cuda:0")


def test_a_generator_on_another_device_is_refused() -> None:
    model, other = net(), meta()
    before = state(model)
    text = "the generator lies on cuda:0, and the model on cpu: give one of the same device"
    with pytest.raises(RunError, match=text):
        initialize(model, ALL, seed=Elsewhere())
    with pytest.raises(RunError, match=text):
        materialize(other, ALL, seed=Elsewhere())
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())
    assert all(parameter.is_meta for parameter in other.parameters())


def test_a_model_on_several_ranks_needs_a_seed() -> None:
    for mesh in each_rank(2):
        model = meta(lambda: nn.Linear(4, 6))
        model.weight = nn.Parameter(local_of(torch.empty(3, 4, device="meta"), mesh, Shard(0), 6, 4))
        for seed in (None, torch.Generator()):
            with pytest.raises(RunError, match="a model on several ranks needs a seed: give seed=, an int"):
                materialize(model, ALL, seed=seed)


class Random(nn.Module):
    """A buffer that its own code draws."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("basis", torch.empty(3, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.get_buffer("basis").normal_()


def test_buffers_that_draw_belong_to_the_seed_of_the_generator() -> None:
    """They are drawn before the parameters, and do not move what those are drawn from."""

    def made(seed: Any) -> Any:
        model = meta(Random)
        materialize(model, ALL, seed=seed)
        return model

    one, other = made(torch.Generator().manual_seed(3)), made(torch.Generator().manual_seed(3))
    assert same(one, other)
    assert not torch.equal(one.basis, made(torch.Generator().manual_seed(4)).basis)
    plain = nn.Linear(2, 2)
    initialize(plain, ALL, seed=torch.Generator().manual_seed(3))
    assert torch.equal(plain.weight, one.fc.weight)
    torch.manual_seed(3)
    assert torch.equal(made(None).basis, one.basis)
    assert torch.equal(made(3).basis, one.basis)


# --- complete ----------------------------------------------------------------------------------------------


def test_complete_is_an_error_in_every_verb() -> None:
    for verb in VERBS.values():
        with pytest.raises(PlanError, match=r"no rule for 0\.bias"):
            verb(meta() if verb is not initialize else net(), WEIGHTS, complete=True)


def test_what_no_rule_covers_keeps_or_gets_its_layers_values() -> None:
    kept, model = net(), meta()
    before = state(kept)
    report = initialize(kept, WEIGHTS, seed=0)
    assert report.untouched == ("0.bias", "1.bias", "2.bias")
    assert torch.equal(kept[0].bias, before["0.bias"])
    report = materialize(model, WEIGHTS, seed=0).assert_ok(complete=True)
    assert report.untouched == ()
    assert (report["0.bias"].fill, report["0.bias"].rule) == ("Linear.reset_parameters()", "own code")
    assert torch.equal(model[0].weight, kept[0].weight)
    expected = net()
    with seeded(expected, 0):
        for layer in expected:
            layer.reset_parameters()
    assert torch.equal(model[0].bias, expected[0].bias)
    assert torch.equal(model[2].bias, expected[2].bias)


def test_resets_without_a_seed_draw_from_torchs_generator() -> None:
    model, expected = meta(lambda: nn.Linear(4, 3)), nn.Linear(4, 3)
    torch.manual_seed(2)
    expected.reset_parameters()
    for seed in (None, torch.Generator().manual_seed(2)):
        torch.manual_seed(2)
        materialize(model := meta(lambda: nn.Linear(4, 3)), Rule("weight", Zeros()), seed=seed)
        assert torch.equal(model.bias, expected.bias)
        assert not model.weight.any()


class Bare(nn.Module):
    """A parameter that nothing but the constructor fills."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.fc = nn.Linear(2, 2)


class Broken(nn.Linear):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            raise KeyError("no such luck")


def test_what_has_no_code_of_its_own_is_named() -> None:
    model = meta(Bare)
    with pytest.raises(RunError, match=r"token: a parameter of Bare that no rule writes, and Bare has no reset_para"):
        materialize(model, Rule("fc.*", Zeros()), seed=0)
    assert all(parameter.is_meta for parameter in model.parameters())
    materialize(model, {"token": Zeros()}, seed=0).assert_ok(complete=True)
    with pytest.raises(RunError, match=r"bias: .*, and Broken\.reset_parameters\(\) raised KeyError: 'no such luck'"):
        materialize(meta(lambda: Broken(2, 2)), Rule("weight", Zeros()), seed=0)


def test_tied_weights_that_no_rule_covers() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
            self.head.weight = self.table.weight

    model = meta(Tied)
    report = materialize(model, {"head.bias": Zeros()}, seed=0).assert_ok(complete=True)
    assert model.head.weight is model.table.weight
    assert sorted(record.name for record in report) == ["head.bias", "table.weight"]


# --- strict ------------------------------------------------------------------------------------------------


def test_strict_is_an_error_in_every_verb_and_else_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rules = [*ALL, Rule(Name("haed.weight"), Zeros())]
    for verb in VERBS.values():
        make = net if verb is initialize else meta
        with pytest.raises(PlanError, match=r"Name\('haed\.weight'\) matches none of"):
            verb(make(), rules, strict=True)
        caplog.clear()
        made = verb(make(), rules)
        assert len(made.unused) == 1
        assert bool(caplog.messages) == (verb is not plan)


# --- trainable ---------------------------------------------------------------------------------------------


def frozen(make: Callable[[], Any] = net, names: tuple[str, ...] = ("0.weight", "0.bias")) -> Any:
    model = make()
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def test_frozen_parameters_are_written_and_told() -> None:
    made = plan(frozen(meta), ALL)
    assert "2 frozen parameters to write: 0.weight, 0.bias" in made.summary().splitlines()
    assert "frozen: requires_grad is false" in made.table()
    for model in (frozen(), frozen(meta)):
        verb: Any = materialize if model[0].weight.is_meta else initialize
        report = verb(model, ALL, seed=0)
        assert "2 frozen parameters written: 0.weight, 0.bias" in report.summary().splitlines()
        assert Report.from_json(report.to_json()).summary() == report.summary()
    assert Plan.from_json(made.to_json()).summary() == made.summary()


def test_frozen_parameters_are_left_alone_and_told() -> None:
    model = frozen()
    before = state(model)
    made = plan(model, ALL, trainable=True, complete=True, strict=True)
    assert [step.site.name for step in made] == ["1.weight", "2.weight", "1.bias", "2.bias"]
    assert "skipped 0.weight, 0.bias: frozen: requires_grad is false" in made.summary().splitlines()
    report = initialize(model, ALL, seed=0, trainable=True, complete=True, strict=True)
    assert "skipped 0.weight, 0.bias: frozen: requires_grad is false" in report.summary().splitlines()
    report.assert_ok(complete=True)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_frozen_parameters_without_memory_get_their_layers_values() -> None:
    model = frozen(meta)
    report = materialize(model, ALL, seed=0, trainable=True).assert_ok(complete=True)
    assert report["0.weight"].fill == "Linear.reset_parameters()"
    assert "skipped 0.weight, 0.bias: frozen: requires_grad is false" in report.summary().splitlines()
    assert not model[0].weight.requires_grad
    with pytest.raises(RunError, match=r"0\.weight: a parameter of Linear that no rule writes"):
        materialize(frozen(meta), ALL, seed=0, trainable=True, complete=True)


def test_a_rule_for_frozen_parameters_alone_is_not_in_vain() -> None:
    made = plan(frozen(), [*ALL, Rule("0.*", Constant(1.0))], trainable=True, strict=True)
    assert made.unused == ()


def test_loads_leave_frozen_parameters_alone() -> None:
    source, model = net(), frozen()
    before = state(model)
    report = initialize(model, Rule("**", Pretrained(source)), trainable=True)
    assert torch.equal(model[2].weight, source[2].weight)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert report.loads[0].problems == ()


def test_frozen_whole_numbers_are_no_lack_of_what_is_trained() -> None:
    model = net()
    model.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(PlanError, match="codes holds whole numbers"):
        plan(model, ALL, complete=True)
    plan(model, ALL, complete=True, trainable=True)


def test_an_initializer_alone_with_frozen_parameters() -> None:
    assert [step.site.name for step in plan(frozen(), Kaiming(), trainable=True)] == ["2.weight"]


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_trainable(verb: str) -> None:
    model = (meta if verb == "materialize" else net)().requires_grad_(False)
    text = r"trainable=True leaves frozen parameters alone, and all 6 are \(requires_grad is false\)"
    with pytest.raises(PlanError, match=text):
        VERBS[verb](model, ALL, trainable=True)
    VERBS[verb](model, ALL)


# --- stats and progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [initialize, materialize])
def test_stats_and_progress(verb: Any) -> None:
    seen: list[str] = []
    model = meta() if verb is materialize else net()
    report = verb(model, ALL, seed=0, stats=False, progress=lambda step: seen.append(step.site.name))
    assert seen == ["0.weight", "1.weight", "2.weight", "0.bias", "1.bias", "2.bias"]
    assert {record.measured for record in report} == {None}


# --- a model's own start -----------------------------------------------------------------------------------


class Own(BaseModule):
    def __init__(self) -> None:
        super().__init__({"type": "TruncNormal", "std": 0.5, "layer": "Linear"})
        self.fc, self.conv = nn.Linear(3, 4), nn.Conv1d(2, 2, 3)

    def init_weights(self) -> None:  # type: ignore[override]
        super().init_weights()
        nn.init.normal_(self.conv.bias)  # type: ignore[arg-type]


def test_the_models_own_start_without_a_seed() -> None:
    expected = Own()
    torch.manual_seed(9)
    expected.fc.reset_parameters()
    expected.conv.reset_parameters()
    expected.init_weights()
    after = torch.get_rng_state()
    torch.manual_seed(9)
    materialize(one := meta(Own))
    assert same(one, expected)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(9)
    materialize(other := meta(Own), seed=generator)
    assert same(other, expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), after)


def test_complete_and_trainable_are_for_recipes() -> None:
    """Without one there is nothing that could leave a parameter out: the layers reset what nothing else writes."""
    materialize(meta(lambda: Sequential(Own())), seed=0).assert_ok(complete=True)
    with pytest.raises(ConfigError, match="trainable is for a recipe; without one every parameter starts as its model"):
        materialize(meta(Own), seed=0, trainable=True)


def test_reports_that_lack_something_say_so() -> None:
    report = initialize(net(), WEIGHTS, seed=0)
    with pytest.raises(ReportError, match=re.escape("0.bias: not written")):
        report.assert_ok(complete=True)


def test_nothing_is_said_of_what_is_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torchinit"):
        initialize(net(), ALL, seed=0)
        materialize(meta(), ALL, seed=0)
    assert caplog.messages == []
