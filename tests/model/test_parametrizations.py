"""Parametrized tensors: found by the name they had, written so that the module computes the given values."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from tests.stats import assert_std
from torchinit import Constant, Leaf, Normal, Orthogonal, PlanError, Rule, sites
from torchinit.model.parametrizations import parametrized
from torchinit.noise import Global, Keyed
from torchinit.plans import local_shards, make_plan, run


@pytest.fixture(params=["new", "old"])
def weight_normed(request: pytest.FixtureRequest) -> nn.Module:
    module = nn.Conv1d(8, 16, 3)
    if request.param == "new":
        made: nn.Module = parametrizations.weight_norm(module)
        return made
    with pytest.warns(FutureWarning, match="deprecated"):
        return weight_norm(module)


def initialize(model: nn.Module, *rules: Rule, seed: int = 0) -> None:
    plan = make_plan(sites(model), rules).check()
    run(plan, local_shards(model), Keyed(seed)).assert_ok()


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def test_weight_norm_is_one_site_of_its_layer(weight_normed: nn.Module) -> None:
    weight, bias = sites(weight_normed)
    assert (weight.name, weight.shape, weight.owner.name, weight.parameter_kind) == (
        "weight",
        (16, 8, 3),
        "Conv1d",
        "weight",
    )
    assert weight.parametrized
    assert weight.fans() == (24, 48)
    assert bias.name == "bias"


def test_weight_norm_computes_the_values_written(weight_normed: nn.Module) -> None:
    rule = Rule(Leaf("weight"), Normal(std=0.02))
    initialize(weight_normed, rule)
    plain = nn.Conv1d(8, 16, 3)
    initialize(plain, rule)
    weight_normed(torch.zeros(1, 8, 5))  # the older hook renews the weight before each forward
    assert_std(weight_of(weight_normed), 0.02)
    torch.testing.assert_close(weight_of(weight_normed), weight_of(plain))


def test_weight_norm_of_a_recurrent_layer() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        layer = weight_norm(nn.LSTMCell(3, 2), "weight_hh")
    found = {site.name: site for site in sites(layer)}
    assert sorted(found) == ["bias_hh", "bias_ih", "weight_hh", "weight_ih"]
    assert found["weight_hh"].fans("true") == (2, 2)
    initialize(layer, Rule(Leaf("weight_hh"), Constant(0.5)))
    torch.testing.assert_close(layer.weight_hh, torch.full((8, 2), 0.5))


@pytest.mark.parametrize("make", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_divides_what_was_written_by_its_norm(make: Callable[[nn.Module], nn.Module]) -> None:
    module = make(nn.Linear(6, 8))
    names = {site.name for site in sites(module)}
    assert "weight" in names
    assert not names & {"weight_orig", "parametrizations.weight.original"}
    plan = make_plan(sites(module), [Rule(Leaf("weight"), Normal(std=3.0))]).check()
    record = run(plan, local_shards(module), Keyed(1))["weight"]
    assert "other values" in record.notes[0]
    assert record.expected is None
    module.eval()(torch.zeros(1, 6))
    weight = weight_of(module)
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.02)
    plain = nn.Linear(6, 8)
    initialize(plain, Rule(Leaf("weight"), Normal(std=3.0)), seed=1)
    cosine = torch.cosine_similarity(weight.flatten(), weight_of(plain).flatten(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


def test_looking_changes_nothing() -> None:
    module = parametrizations.spectral_norm(nn.Linear(6, 8)).train()
    before, mode = copy.deepcopy(module.state_dict()), [each.training for each in module.modules()]
    sites(module)
    local_shards(module)
    assert [each.training for each in module.modules()] == mode
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_orthogonal_takes_orthogonal_values(shape: tuple[int, int]) -> None:
    module = parametrizations.orthogonal(nn.Linear(shape[1], shape[0], bias=False))
    initialize(module, Rule(Leaf("weight"), Orthogonal()))
    plain = nn.Linear(shape[1], shape[0], bias=False)
    initialize(plain, Rule(Leaf("weight"), Orthogonal()))
    torch.testing.assert_close(weight_of(module), weight_of(plain), atol=1e-5, rtol=1e-5)


def test_orthogonal_leaves_torchs_generator_alone() -> None:
    """Its right_inverse draws the rest of a basis from the global generator."""
    modules = [parametrizations.orthogonal(nn.Linear(3, 6, bias=False)) for _ in range(2)]
    state = torch.get_rng_state()
    for module in modules:
        torch.rand(1)
        before = torch.get_rng_state()
        initialize(module, Rule(Leaf("weight"), Orthogonal()))
        assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(torch.get_rng_state(), state)
    one, other = (module.state_dict() for module in modules)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_on_torchs_generator_the_bits_of_hand_written_code(weight_normed: nn.Module) -> None:
    torch.manual_seed(0)
    plan = make_plan(sites(weight_normed), [Rule(Leaf("weight"), Normal(std=0.02))])
    run(plan, local_shards(weight_normed), Global())
    torch.manual_seed(0)
    weight_normed(torch.zeros(1, 8, 5))
    torch.testing.assert_close(weight_of(weight_normed), nn.init.normal_(torch.empty(16, 8, 3), std=0.02))


def test_values_that_an_orthogonal_layer_cannot_take_are_noted() -> None:
    module = parametrizations.orthogonal(nn.Linear(4, 4, bias=False))
    plan = make_plan(sites(module), [Rule(Leaf("weight"), Normal())]).check()
    assert run(plan, local_shards(module), Keyed(0))["weight"].notes == (
        "the parametrization made other values of these",
    )


class Doubled(nn.Module):
    """A parametrization that cannot be inverted."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Stubborn(Doubled):
    """It takes the values that it is registered with, and no others."""

    taken = False

    def right_inverse(self, value: Tensor) -> Tensor:
        if self.taken:
            raise RuntimeError("not today")
        self.taken = True
        return value / 2


def test_without_a_right_inverse_a_rule_is_a_problem() -> None:
    module = nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", Doubled())
    assert sites(module)[0].state == "fixed"
    assert "weight" not in local_shards(module)
    with pytest.raises(
        PlanError, match="matches 'weight', which is computed by a parametrization without right_inverse"
    ):
        make_plan(sites(module), [Rule(Leaf("weight"), Constant(1.0))]).check()


def test_a_right_inverse_that_fails_is_named() -> None:
    module = nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", Stubborn())
    with pytest.raises(RuntimeError, match="not today") as caught:
        initialize(module, Rule(Leaf("weight"), Constant(1.0)))
    assert caught.value.__notes__ == [
        "weight: the parametrization would not take the values",
        "0 of 1 site had been written by then; each of the others holds its old values, new ones or both: weight",
    ]


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley"])
def test_an_orthogonal_map_without_a_base_takes_no_values(kind: str) -> None:
    module = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=kind, use_trivialization=False)
    assert sites(module)[0].state == "fixed"


def test_householder_takes_values() -> None:
    module = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="householder", use_trivialization=False)
    initialize(module, Rule(Leaf("weight"), Orthogonal()))


def test_tied_through_one_original() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in model:
        parametrizations.weight_norm(layer)
    for name in ("original0", "original1"):
        one, other = (model.get_submodule(f"{at}.parametrizations.weight") for at in (0, 1))
        setattr(other, name, getattr(one, name))
    assert [view.name for view in sites(model)[0].views] == ["0.weight", "1.weight"]


def test_a_plain_module_has_none() -> None:
    assert parametrized(nn.Linear(2, 2)) == ()
