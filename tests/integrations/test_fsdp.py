"""A recipe for one module after the other: in memory that is there as on the meta device, or an error that says why."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from torchinit import ReportError, RunError, fingerprint, initialize, materialize
from torchinit.integrations.fsdp import param_init_fn
from torchinit.integrations.trainers import init_weights
from torchinit.plans.plan import LOADED

RULES = {"rules": [{"type": "Normal", "std": 0.02, "name": "**"}]}


class Features(nn.Module):
    """A layer with frequencies that its own code draws."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.frequencies.normal_()


class Table(nn.Module):
    """A buffer that nobody but this constructor can make, since it does not keep what it was given."""

    table: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(float(size)), persistent=False)


class Net(nn.Module):
    """Layers, a tie, a computed weight, a norm with statistics, drawn frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), Features()) for _ in range(2)
        )
        self.normed = weight_norm(nn.Linear(4, 3))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def meta(build: Callable[[], nn.Module] = Net) -> Any:
    with torch.device("meta"):
        return build()


def planned() -> dict[str, str]:
    model = meta()
    materialize(model, RULES, seed=0)
    return dict(fingerprint(model).sites)


def moved(model: Any) -> Any:
    """The model in memory that ``to_empty`` gave, tied again as a user does it."""
    model.to_empty(device="cpu")
    model.head.weight = model.embed.weight
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "on meta": meta,
    "built": Net,
    "emptied": lambda: moved(Net()),
    "emptied from meta": lambda: moved(meta()),
    "of zeros": lambda: zeroed(moved(meta())),
}


def zeroed(model: nn.Module) -> nn.Module:
    """What fresh memory holds on most systems, written as nobody sees it."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    return model


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("order", ["whole", "children first", "parents first"])
def test_the_values_are_those_of_one_materialization(make: Callable[[], Any], order: str) -> None:
    model = make()
    init = param_init_fn(model, RULES, seed=0)
    modules = list(model.modules())
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        for module in {"whole": [model], "children first": modules[::-1], "parents first": modules}[order]:
            init(module)
        assert torch.equal(torch.get_rng_state(), before)
    assert dict(fingerprint(model).sites) == planned()
    assert len(init.report) == len({record.name for record in init.report})
    assert init.report.assert_ok(complete=True).buffers == ()


def test_made_before_to_empty() -> None:
    """What was on the meta device and has memory now holds nothing, whoever gave it that memory."""
    model = meta()
    init = param_init_fn(model, RULES, seed=0)
    init(zeroed(moved(model)))
    assert dict(fingerprint(model).sites) == planned()


def test_what_a_broken_tie_leaves_gets_the_same_values() -> None:
    model = meta()
    init = param_init_fn(model, RULES, seed=0)
    model.to_empty(device="cpu")
    assert model.head.weight is not model.embed.weight
    init(model)
    assert torch.equal(model.head.weight, model.embed.weight)
    assert dict(fingerprint(model).sites).items() >= planned().items()


def test_again() -> None:
    model: Any = Net()
    init = param_init_fn(model, RULES, seed=0)
    init(model)
    report = init.report
    init(model)
    assert [record.name for record in init.report] == [record.name for record in report]
    for spoil in (
        lambda weight: weight.data.zero_(),
        lambda weight: weight.data[0, 0].fill_(5.0),
        lambda weight: setattr(weight, "data", torch.ones(4, 4)),
        lambda weight: weight.data.numpy().fill(1.0),
    ):
        spoil(model.blocks[0][0].weight)
        model.blocks[0][2].running_var.fill_(7.0)
        init(model.blocks[0])
        assert dict(fingerprint(model).sites) == planned()


def test_the_report_tells_what_still_waits() -> None:
    model = Net()
    init = param_init_fn(model, RULES, seed=0)
    init(model.blocks)
    assert sorted(init.report.untouched) == ["embed.weight", "normed.bias", "normed.weight"]
    with pytest.raises(ReportError, match=r"3 findings: .*\n  normed\.weight: not written"):
        init.report.assert_ok(complete=True)
    init(model.embed)
    init(model.normed)
    init.report.assert_ok(complete=True)


STRANGERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a copy": (copy.deepcopy, r"20 tensors of Net: not part of the model that this param_init_fn was made for\. Make"),
    "another": (lambda _: nn.Linear(2, 2), r"2 tensors of Linear: not part of the model .*\n  weight\n  bias"),
    "without tensors": (lambda _: nn.ReLU(), "^ReLU: not part of the model"),
    "a wrapper with more": (
        lambda model: nn.Sequential(model, nn.PReLU()),
        r"1 tensor of Sequential: not part of the model .*\n  1\.weight$",
    ),
    "a layer that was replaced": (
        lambda model: model.blocks[0].register_module("0", nn.Linear(4, 4)) or model,
        r"2 tensors of Net: .*\n  blocks\.0\.0\.weight\n  blocks\.0\.0\.bias$",
    ),
    "a tensor that was added": (
        lambda model: model.blocks[1].register_parameter("gate", nn.Parameter(torch.ones(1))) or model.blocks,
        r"1 tensor of ModuleList: .*\n  1\.gate$",
    ),
    "a tensor that is gone": (
        lambda model: model.embed.register_parameter("weight", None) or model.embed,
        r"1 tensor gone, or flattened by FSDP1, of the model that .*\n  embed\.weight$",
    ),
    "a tie that is new": (
        lambda model: model.blocks[0][0].register_parameter("weight", model.blocks[1][0].weight) or model,
        r"tensors have become one and were several in the model .*\n  blocks\.0\.0\.weight and blocks\.1\.0\.weight$",
    ),
}


@pytest.mark.parametrize(("change", "text"), STRANGERS.values(), ids=STRANGERS)
def test_what_is_not_part_of_the_model_is_named(change: Callable[[Any], Any], text: str) -> None:
    model = Net()
    init = param_init_fn(model, RULES, seed=0)
    strange = change(model)
    before = {name: tensor.clone() for name, tensor in strange.state_dict().items()}
    with pytest.raises(RunError, match=text):
        init(strange)
    assert all(torch.equal(tensor, before[name]) for name, tensor in strange.state_dict().items())
    assert len(init.report) == 0
    if strange is not model and strange is not model.embed:
        return
    again = param_init_fn(model, RULES, seed=0)  # the way out that the text names
    again(model)
    again.report.assert_ok(complete=True)


def test_a_parametrization_stands_for_the_layer_that_it_belongs_to() -> None:
    """Where a layer has no bias, whoever asks module by module may ask for nothing but the parametrization."""
    model = meta(lambda: nn.Sequential(weight_norm(nn.Linear(4, 3, bias=False))))
    init = param_init_fn(model, RULES, seed=0)
    init(model[0].parametrizations.weight)
    assert [record.name for record in init.report.assert_ok(complete=True)] == ["0.weight"]
    other = meta(lambda: nn.Sequential(weight_norm(nn.Linear(4, 3, bias=False))))
    materialize(other, RULES, seed=0)
    assert fingerprint(model).total == fingerprint(other).total


def test_a_wrapper_of_nothing_but_the_model_will_do() -> None:
    model = Net()
    param_init_fn(model, RULES, seed=0)(nn.Sequential(model))
    assert dict(fingerprint(model).sites) == planned()


# -- buffers -----------------------------------------------------------------------------------------------------


def test_a_buffer_that_nothing_makes_stays_and_is_named() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), Table(3))
    init = param_init_fn(model, RULES, seed=0)
    init(model)
    assert model[1].table.tolist() == [0.0, 1.0, 2.0]
    assert init.report.buffers == ("1.table",)


@pytest.mark.parametrize("way", ["made before to_empty", "stamped", "by its values"])
def test_a_buffer_that_holds_nothing_and_that_nothing_makes_is_an_error(way: str) -> None:
    model = meta(lambda: nn.Sequential(nn.Linear(2, 2), Table(3)))
    init = param_init_fn(model, RULES, seed=0)
    model.to_empty(device="cpu")
    if way != "made before to_empty":
        init = param_init_fn(model, RULES, seed=0)
        model[1].table.data.fill_(torch.nan if way == "by its values" else 1e-40)
    text = r"1 tensor of Table left unwritten\n  1\.table: a buffer of Table that no rule writes, .*buffers = true"
    for _ in range(2):  # it is not forgotten either
        with pytest.raises(RunError, match=text):
            init(model[1])
    model[1].table.copy_(torch.arange(3.0))  # seen where it was on meta, and by its values
    init(model)
    assert model[1].table.tolist() == [0.0, 1.0, 2.0]


def test_a_rule_writes_a_buffer_as_well() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), Table(3))
    init = param_init_fn(model, {"rules": [{"type": "Zeros", "name": "**", "buffers": True}]}, seed=0)
    init(model[1])
    assert model[1].table.tolist() == [0.0] * 3
    assert [record.name for record in init.report] == ["1.table"]


class Pretrained(nn.Module):
    """A model that asks for its weights module by module, as those of transformers do, and keeps what gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.stats = nn.BatchNorm1d(4)
        self.calls = 0
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        self.calls += 1
        param_init_fn(self, RULES, seed=0)(module)


def test_own_code_that_calls_it_is_no_way_to_make_buffers() -> None:
    """Such a method is among those that are tried for buffers, and has to be left alone then."""
    model: Any = Pretrained()
    assert model.calls == 3
    assert model.stats.running_var.tolist() == [1.0] * 4
    other = Pretrained().to("meta")
    materialize(other, RULES, seed=0)
    assert fingerprint(other).total == fingerprint(model).total


# -- what was loaded ---------------------------------------------------------------------------------------------


def flagged(model: nn.Module, *names: str) -> nn.Module:
    """The model with tensors marked as transformers marks those that it has loaded."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in names:
            setattr(tensor, "_is_hf_initialized", True)  # noqa: B010  # no attribute of a tensor's own
    return model


LOADED_NAMES = ("embed.weight", "blocks.0.0.bias", "blocks.1.2.running_var")


@pytest.mark.parametrize("way", ["module by module", "whole", "by the method"])
def test_what_was_loaded_is_left_alone(way: str) -> None:
    class Own(Net):
        init_weights = init_weights(RULES, seed=0)

    model: Any = flagged(Own(), *LOADED_NAMES)
    model.blocks[1][2].running_var.fill_(7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if way == "by the method":
        report = model.init_weights()
    else:
        init = param_init_fn(model, RULES, seed=0)
        for module in model.modules() if way == "module by module" else [model]:
            init(module)
        report = init.report
    report.assert_ok(complete=True)
    assert {name: why for name, why in report.skipped if why == LOADED} == dict.fromkeys(LOADED_NAMES, LOADED)
    now = dict(fingerprint(model).sites)
    assert {name for name, digest in planned().items() if now[name] != digest} == {*LOADED_NAMES}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in LOADED_NAMES)


def test_a_tensor_that_is_marked_and_has_no_memory_gets_none() -> None:
    """Transformers marks what it will tie to another tensor, and leaves it on the meta device until then."""
    model: Any = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": meta(lambda: nn.Linear(2, 5, bias=False))})
    flagged(model, "head.weight")
    init = param_init_fn(model, RULES, seed=0)
    init(model)
    assert model["head"].weight.is_meta
    assert [record.name for record in init.report] == ["embed.weight"]
    init.report.assert_ok(complete=True)


def test_a_computed_weight_that_was_loaded_in_half_is_named() -> None:
    model = flagged(Net(), "normed.parametrizations.weight.original0")
    with pytest.raises(RunError, match=r"loaded in part, which a recipe would write over\n  normed\.weight$"):
        param_init_fn(model, RULES, seed=0)(model)


def test_the_method_is_not_for_single_modules() -> None:
    class Own(Net):
        _init_weights = init_weights(RULES, seed=0)

    model = Own()
    before = dict(fingerprint(model).sites)
    text = r"writes a whole model, but was called for a Embedding\. Give Own _init_weights = torchinit"
    with pytest.raises(RunError, match=text):
        model._init_weights(model.embed)
    assert dict(fingerprint(model).sites) == before


# -- copies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_that_keeps_it_can_be_copied(again: Callable[[Any], Any]) -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.init = param_init_fn(model, RULES, seed=0)
    model.init(model)
    other = again(model)
    initialize(other, {"rules": [{"type": "Zeros", "name": "**"}]}, seed=0)
    other.init(other)
    assert fingerprint(other).total == fingerprint(model).total
    assert other.init.model is other
