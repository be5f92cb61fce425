"""Lint: what it takes, what it leaves out, and models that are odd but not wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.nn.utils import parametrizations

import torchinit
from tests.linting.models import Net
from tests.ranks import fake_rank
from torchinit import ConfigError, Kaiming, Layer, Leaf, Normal, ReportError, Rule, assert_initialized, lint
from torchinit.linting import CHECKS


def test_the_model_they_are_planted_in_is_clean() -> None:
    assert tuple(lint(Net())) == ()


def test_nothing_is_written() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Embedding(9, 4, padding_idx=0))
    before = copy.deepcopy(model.state_dict())
    versions = [parameter._version for parameter in model.parameters()]
    lint(model, recipe=Rule(Leaf("weight"), Normal()), loaded=before)
    assert [parameter._version for parameter in model.parameters()] == versions
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_that_nobody_knows_what_follows_is_no_finding() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.ConvTranspose2d(4, 8, 3)])
    rule = Rule(Leaf("weight"), Kaiming(nonlinearity="auto"))
    torchinit.initialize(model, rule, seed=0)
    assert [(one.code, one.site) for one in lint(model, recipe=rule, select=["TI7"])] == [("TI703", "1.weight")]


def test_a_sketch_is_checked_for_what_needs_no_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3), nn.Linear(4, 4))
    findings = lint(model, recipe=Rule(Layer("ConvTranspose2d") & Leaf("weight"), Kaiming()))
    assert [(one.code, one.severity) for one in findings] == [
        ("TI703", "warning"), ("TI102", "note"), ("TI106", "note")
    ]  # fmt: skip
    assert "all 4 tensors are on the meta device" in findings[1].message
    assert ("TI103", "values (the model is on the meta device)") in findings.skipped


def test_an_initialized_model_is_as_planned() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8))
    report = torchinit.initialize(model, "general", seed=0)
    assert tuple(lint(model, recipe="general", report=report, loaded=model.state_dict())) == ()


def test_select_and_ignore() -> None:
    model = nn.Sequential(nn.Embedding(9, 8, padding_idx=0))
    nn.init.constant_(model.get_parameter("0.weight"), float("nan"))
    assert lint(model).codes == ("TI103",)
    assert lint(model, ignore=["TI1"]).codes == ()
    assert lint(model, select=["padding-row"]).codes == ()
    with pytest.raises(ConfigError, match="'TI8' is not a check"):
        lint(model, select=["TI8"])


def test_assert_initialized_tells_everything() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(9, 8, padding_idx=0))
    assert_initialized(model)
    nn.init.normal_(model.get_parameter("1.weight"))
    assert_initialized(model)
    with pytest.raises(
        ReportError, match=r"1 finding: the model is not initialized as it should be\n  1.weight: TI405"
    ):
        assert_initialized(model, fail_on="warning")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    with pytest.raises(AssertionError, match="3 findings") as caught:
        assert_initialized(model)
    assert isinstance(caught.value, ReportError)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["0.weight", "0.bias", "1.weight"]


def test_loaded_values_are_not_judged() -> None:
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64))
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    state["1.weight"][0, 0] = 1e3
    state["1.weight"][3] = 0
    model.load_state_dict(state)
    assert set(lint(model).codes) == {"TI303", "TI402", "TI403", "TI404"}
    assert tuple(lint(model, loaded=state)) == ()


def test_a_mask_is_no_finding_and_a_shared_layer_a_note() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("causal", torch.full((8, 8), float("-inf")).triu(1))
            self.register_buffer("floor", torch.full((8, 8), torch.finfo(torch.float32).min).triu(1))
            self.first = nn.Linear(8, 8)
            self.second = self.first

    assert [(one.code, one.severity, one.site) for one in lint(Masked())] == [("TI605", "note", "first")]


def test_sparse_and_structured_weights_are_no_findings() -> None:
    model = nn.ModuleList(nn.Linear(40, 40) for _ in range(4))
    for layer, init in zip(model, (nn.init.eye_, nn.init.orthogonal_), strict=False):
        assert isinstance(layer, nn.Linear)
        init(layer.weight)
    nn.init.sparse_(model[2].get_parameter("weight"), 0.9)
    assert tuple(lint(model)) == ()


def test_odd_tensors_do_not_stop_it() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.empty = nn.Parameter(torch.empty(0, 4))
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.complex = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
            self.whole = nn.Parameter(torch.arange(4), requires_grad=False)
            self.small = nn.Parameter(torch.randn(8, 8).to(torch.float8_e4m3fn), requires_grad=False)
            self.spread = nn.Parameter(torch.zeros(1).expand(3), requires_grad=False)
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("flags", torch.ones(3, dtype=torch.bool))
            self.lazy = nn.LazyLinear(3)
            self.orthogonal = parametrizations.orthogonal(nn.Linear(8, 8))
            self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))

    assert [(one.code, one.site) for one in lint(Odd())] == [("TI109", "lazy.weight"), ("TI109", "lazy.bias")]


def test_without_parameters() -> None:
    assert len(lint(nn.Identity())) == 0


def test_what_was_not_run_is_said() -> None:
    skipped = dict(lint(nn.Linear(2, 2)).skipped)
    assert skipped == {code: skipped[code] for code, one in CHECKS.items() if one.needs not in ("sites", "values")}
    assert skipped["TI706"] == "a report"
    assert skipped["TI203"] == "loaded weights or a trace"


def test_sharded_tensors_are_judged_by_what_is_here() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Embedding(12, 8, padding_idx=0), nn.Linear(8, 8))
    nn.init.normal_(model.get_parameter("2.weight"), std=9.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    whole = lint(model)
    assert [(one.code, one.site) for one in whole] == [("TI404", "2.weight")]
    with fake_rank(1, 2):
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("lint1",))
        for name, parameter in list(model.named_parameters()):
            axis = Shard(0) if name.endswith("bias") or name.startswith("1") else Shard(1)
            owner = model.get_submodule(name.partition(".")[0])
            owner.register_parameter(
                name.partition(".")[2],
                nn.Parameter(distribute_tensor(parameter.detach(), mesh, [axis], src_data_rank=None)),
            )
        assert [(one.code, one.site) for one in lint(model)] == [("TI404", "2.weight")]
        assert tuple(lint(model, loaded=state)) == ()
        state["0.weight"][:, :8] += 1  # the other rank's columns
        assert tuple(lint(model, loaded=state)) == ()
        state["0.weight"][3, 9] += 1
        (found,) = lint(model, loaded=state)
        assert (found.code, found.message) == ("TI203", "1 of 64 values are not those that were loaded")
        rules = [Rule(Leaf("weight") & Layer("Linear"), Normal(std=9.0))]
        assert lint(model, recipe=rules, select=["TI704"])[0].site == "0.weight"
        total = DTensor.from_local(torch.full((4,), float("nan")), mesh, [Partial()], run_check=False)
        assert tuple(lint(nn.ParameterList([nn.Parameter(total)]))) == ()
