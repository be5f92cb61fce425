"""Constructors: what a layer's own numbers say of its tensors, whatever these are now."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from torchinit import (
    Leaf,
    Name,
    Normal,
    PlanError,
    Pretrained,
    ReportError,
    Rule,
    TorchinitError,
    assert_initialized,
    initialize,
    lint,
    materialize,
    plan,
    sites,
)
from torchinit.integrations.fsdp import param_init_fn
from torchinit.model.states import intent
from torchinit.plans import make_plan

NORMAL = Rule(Name("**"), Normal(std=0.02))
NOTHING = Rule(Name("nothing"), Normal(), optional=True)

LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(2, 3),
    lambda: nn.Linear(2, 3, bias=False, dtype=torch.bfloat16),
    lambda: nn.Bilinear(2, 3, 4),
    lambda: nn.Conv1d(4, 6, 3, groups=2),
    lambda: nn.Conv2d(2, 4, (3, 5), padding="same"),
    lambda: nn.ConvTranspose3d(2, 4, 3, stride=2),
    lambda: nn.Embedding(5, 3, padding_idx=0),
    lambda: nn.EmbeddingBag(5, 3, mode="sum"),
    lambda: nn.LayerNorm((3, 4)),
    lambda: nn.RMSNorm(4),
    lambda: nn.GroupNorm(2, 6),
    lambda: nn.BatchNorm2d(3),
    lambda: nn.InstanceNorm1d(3, affine=True),
    lambda: nn.SyncBatchNorm(3),
    lambda: nn.PReLU(3),
    lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    lambda: nn.GRU(3, 4, bias=False),
    lambda: nn.RNNCell(3, 4),
    lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
    lambda: nn.MultiheadAttention(4, 2),
]


@pytest.mark.parametrize("make", LAYERS)
def test_torchs_layers_tell_the_shapes_of_their_weights(make: Callable[[], nn.Module]) -> None:
    layer = make()
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters(recurse=False)}
    for parameter in layer.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        found = {name: intent(layer, name) for name in shapes}
        assert torch.equal(torch.get_rng_state(), before)
    assert {name: said and said.shape for name, said in found.items()} == shapes
    assert {said.layer.partition("(")[0] for said in found.values() if said} == {type(layer).__name__}
    for site in sites(layer):
        if site.kind == "parameter" and site.owner_name == "":
            assert f"has {math.prod(shapes[site.name]):,}: is it partitioned? gather it first" in site.missing


class Kept(nn.Module):
    """A layer that keeps what it was made with."""

    def __init__(self, rows: int, width: int = 4) -> None:
        super().__init__()
        self.rows, self.width = rows, width
        self.tokens = nn.Parameter(torch.zeros(rows, width))


class Lost(nn.Module):
    """One that does not."""

    def __init__(self, rows: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(rows, 4))


class Failing(Kept):
    """One that cannot be built a second time."""

    built: list[int] = []  # noqa: RUF012  # shared by all

    def __init__(self, rows: int) -> None:
        if self.built:
            raise OSError("once")
        super().__init__(rows)
        self.built.append(1)


class Subclass(nn.Linear):
    """One that is made in another way than the class above it."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__(*sizes)


class Planning(nn.Module):
    """One whose constructor makes a plan of it."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.tokens = nn.Parameter(torch.zeros(rows, 4))
        self.plan = make_plan(sites(self), [NORMAL])


KNOWN: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: Kept(2), "tokens", ("Kept(2)", (2, 4))),
    (lambda: Kept(0), "tokens", ("Kept(0)", (0, 4))),
    (lambda: Lost(0), "tokens", None),
    (lambda: Failing(3), "tokens", ("Failing(3)", (3, 4))),  # by the class above
    (lambda: Subclass((2, 3)), "weight", ("Subclass(2, 3)", (3, 2))),
    (lambda: Planning(2), "tokens", ("Planning(2)", (2, 4))),
    (lambda: weight_norm(nn.Linear(2, 3)), "bias", ("Linear(2, 3)", (3,))),
    (lambda: nn.Linear(2, 3), "scale", None),
    (nn.Module, "weight", None),
    (lambda: nn.ParameterList([nn.Parameter(torch.zeros(2))]), "0", None),
]


@pytest.mark.parametrize(("make", "leaf", "said"), KNOWN)
def test_other_layers(make: Callable[[], Any], leaf: str, said: Any) -> None:
    found = intent(make(), leaf)
    assert found == (said and (*said, torch.float32))


# -- a parameter without elements, all the way ---------------------------------------------------------------------


def partitioned(*, marked: bool) -> Any:
    """A model as DeepSpeed's ZeRO-3 leaves it between two uses."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), Lost())
    for parameter in model.parameters():
        shape = parameter.shape
        parameter.data = torch.empty(0)
        if marked:
            setattr(parameter, "ds_shape", shape)  # noqa: B010  # as DeepSpeed does
    return model


WHOLE: dict[str, tuple[str, tuple[int, ...]]] = {
    "0.weight": ("Linear(4, 8)", (8, 4)),
    "0.bias": ("Linear(4, 8)", (8,)),
    "1.weight": ("LayerNorm((8,))", (8,)),
    "1.bias": ("LayerNorm((8,))", (8,)),
    "2.tokens": ("", (3, 4)),
}


def text(name: str, *, marked: bool) -> str:
    layer, shape = WHOLE[name]
    if not (layer or marked):
        return "has no elements: gather it first if it is partitioned, or register None in its place"
    known = f", but its {layer} has {math.prod(shape)}" if layer else ""
    if marked:
        return f"has no elements{known}: it is partitioned (ds_shape {shape}). Write it within deepspeed.zero.Gathered"
    return f"has no elements{known}: is it partitioned? gather it first"


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("rules", [[NORMAL], [Rule(Leaf("bias"), Normal())], [NOTHING]])
def test_nothing_that_is_complete_lets_a_partitioned_parameter_pass(rules: list[Rule], marked: bool) -> None:
    model = partitioned(marked=marked)

    def check(error: TorchinitError, between: str) -> None:
        problems = getattr(error, "problems", ())
        for name in WHOLE:
            said = f"{name}{between}{text(name, marked=marked)}"
            assert any(problem.startswith(said) for problem in problems), (said, problems)

    with pytest.raises(PlanError) as planned:
        plan(model, rules, complete=True)
    check(planned.value, " ")
    with pytest.raises(PlanError) as made:
        param_init_fn(model, rules, seed=0, strict=False)
    check(made.value, " ")
    if marked and rules != [NOTHING]:  # what DeepSpeed says is certain, and a rule means it
        with pytest.raises(PlanError, match=r"0\.bias has no elements, but .* \(ds_shape \(8,\)\)\. Write it within"):
            initialize(model, rules, seed=0)
    else:
        with pytest.raises(ReportError) as reported:
            initialize(model, rules, seed=0).assert_ok().assert_ok(complete=True)
        check(reported.value, ": ")
    with pytest.raises(
        ReportError, match=r"0\.weight: TI108 error: has no elements, but its Linear\(4, 8\) has 32; (is it|it is) p"
    ):
        assert_initialized(model, recipe=rules)
    if rules == [NORMAL]:
        with pytest.raises(ReportError, match=r"2\.tokens: TI108 error: has no elements; "):
            assert_initialized(model, recipe=rules, select=["no-values"])


@pytest.mark.parametrize("rule", [NORMAL, Rule(Leaf("bias"), Normal())])
def test_materialize(rule: Rule) -> None:
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(4, 8))
        model[0].weight = nn.Parameter(torch.empty(0))
    with pytest.raises(
        PlanError, match=r"0\.weight has no elements, but its Linear\(4, 8\) has 32: is it partitioned\?"
    ):
        materialize(model, [rule], seed=0)
    assert model[0].bias.is_meta


@pytest.mark.parametrize("make", [lambda: nn.Linear(0, 3), lambda: nn.Linear(3, 0), lambda: Kept(0)])
@pytest.mark.parametrize(
    "rules", [[NORMAL], [Rule(Leaf("bias", "bias_ih_l0", "bias_hh_l0", "weight_hh_l0"), Normal())]]
)
def test_what_is_empty_because_its_layer_is_needs_no_values(make: Callable[[], nn.Module], rules: list[Rule]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what has no elements
        model = nn.Sequential(make(), nn.Linear(2, 2))
    rules = [*rules, Rule(Name("1.weight"), Normal(std=0.1))]
    plan(model, rules, complete=True)
    initialize(model, rules, seed=0).assert_ok(complete=True)
    assert_initialized(model, recipe=rules)


def test_what_deepspeed_says_is_believed() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.empty(0)
    setattr(layer.weight, "ds_shape", (0, 2))  # noqa: B010  # as DeepSpeed does
    assert plan(layer, NORMAL, complete=True).skipped[0].why == "has no elements"


def test_empty_parameters_that_share_their_nothing_are_not_tied() -> None:
    model, nothing = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.empty(0)
    for parameter in model.parameters():
        parameter.data = nothing
    assert [site.name for site in plan(model, NOTHING).without_values] == ["0.weight", "0.bias", "1.weight", "1.bias"]


# -- other parameters that no fill can be written to ---------------------------------------------------------------


def coded() -> Any:
    model: Any = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    model.register_buffer("count", torch.tensor(3))
    return model


def test_whole_numbers_that_a_checkpoint_has_are_done() -> None:
    model = coded()
    load = Rule(Name("codes"), Pretrained({"codes": torch.tensor([5, 6])}))
    for rules in ([NORMAL, load], [load, Rule(Name("weight", "bias"), Normal())]):
        made = plan(model, rules, complete=True)
        assert made.skipped == ()
        report = initialize(model, rules, seed=0).assert_ok(complete=True)
        assert report.lacking == ()
        assert_initialized(model, recipe=rules)
    assert model.codes.tolist() == [5, 6]
    assert initialize(model, [NORMAL], seed=0).lacking == (
        ("codes", "holds whole numbers: load it (Pretrained), or make it a buffer"),
    )


def test_lint_tells_of_them_where_a_rule_means_them() -> None:
    model = coded()
    assert lint(model, select=["TI108"]).codes == ()
    assert lint(model, recipe=[Rule(Leaf("weight"), Normal())], select=["TI108"]).codes == ()
    found = lint(model, recipe=[NORMAL], select=["TI108"])
    assert [(one.site, one.message, one.remedy) for one in found] == [
        ("codes", "holds whole numbers", "load it (Pretrained), or make it a buffer")
    ]
    report = initialize(model, [NORMAL], seed=0)
    assert lint(model, report=report, select=["TI108"]).codes == ("TI108",)
    assert lint(model, recipe=[NORMAL], loaded={"codes": model.codes}, select=["TI108"]).codes == ()
    with pytest.raises(ReportError, match=r"codes: TI108 error: holds whole numbers; load it"):
        assert_initialized(model, recipe=[NORMAL])
