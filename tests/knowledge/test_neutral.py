"""Neutral values: norms of every form say at which value they do nothing, and what is not a norm says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.knowledge.norms import NORMS, Flagged, Gemma, facts, rms
from tests.knowledge.not_norms import DECLINED
from torchinit import Name, Neutral, Rule, sites
from torchinit.knowledge import neutral
from torchinit.plans import make_plan


@pytest.mark.parametrize(("make", "expected"), NORMS.values(), ids=NORMS)
def test_a_norm_is_asked(make: Callable[[], nn.Module], expected: dict[str, float | None]) -> None:
    assert facts(make()) == expected


@pytest.mark.parametrize(("make", "expected"), NORMS.values(), ids=NORMS)
def test_on_the_meta_device_the_answer_is_the_same(
    make: Callable[[], nn.Module], expected: dict[str, float | None]
) -> None:
    with torch.device("meta"):
        assert facts(make()) == expected


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8),
        nn.BatchNorm2d(8), nn.BatchNorm3d(8), nn.SyncBatchNorm(8), nn.InstanceNorm1d(8, affine=True),
        nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm3d(8, affine=True), nn.LazyBatchNorm1d(),
        nn.LazyInstanceNorm2d(affine=True),
    ],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_torchs_own_are_known_and_not_asked(norm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neutral, "answer", _unreachable)
    known = {"weight": 1.0, "bias": 0.0}
    assert facts(norm) == {name: known[name] for name, _ in norm.named_parameters()}


def test_torchs_own_answer_as_the_table_says() -> None:
    for norm in (nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8), nn.BatchNorm3d(8)):
        shapes = {name: tuple(parameter.shape) for name, parameter in norm.named_parameters()}
        assert neutral.neutral_values(norm, shapes) == {n: {"weight": 1.0, "bias": 0.0}[n] for n in shapes}


def _unreachable(*_: object) -> None:
    raise AssertionError("nobody is asked")


# --- a law -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A norm put together from parts, so that its neutral value is known without running it."""

    normalize: str
    plus: int
    first: bool
    shift: bool
    gate: str
    act: str


class Built(nn.Module):
    def __init__(self, recipe: Recipe, width: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.recipe = recipe
        self.names = names
        self.register_parameter(names[0], nn.Parameter(torch.rand(width)))
        if recipe.shift:
            self.register_parameter(names[1], nn.Parameter(torch.rand(width)))

    def _normalized(self, x: Tensor) -> Tensor:
        if self.recipe.normalize == "rms":
            return rms(x)
        if self.recipe.normalize == "layer":
            return F.layer_norm(x, x.shape[-1:])
        return (x - x.mean((0, 1))) / x.std((0, 1), unbiased=False)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        scale = self.recipe.plus + getattr(self, self.names[0])
        y = self._normalized(x * scale) if self.recipe.first else self._normalized(x) * scale
        if self.recipe.shift:
            y = y + getattr(self, self.names[1])
        if self.recipe.gate != "none":
            y = y * getattr(torch, self.recipe.gate)(gate)
        return y if self.recipe.act == "none" else getattr(F, self.recipe.act)(y)


RECIPES = st.builds(
    Recipe,
    normalize=st.sampled_from(["rms", "layer", "batch"]),
    plus=st.sampled_from([0, 1]),
    first=st.booleans(),
    shift=st.booleans(),
    gate=st.sampled_from(["none", "sigmoid", "tanh"]),
    act=st.sampled_from(["none", "relu", "gelu"]),
)


@settings(deadline=None, max_examples=60)
@given(RECIPES, st.integers(8, 40), st.sampled_from([("weight", "bias"), ("gain", "beta"), ("scale", "bias")]))
def test_any_norm_made_of_these_parts_says_what_it_was_made_with(
    recipe: Recipe, width: int, names: tuple[str, str]
) -> None:
    norm = Built(recipe, width, names)
    expected = {names[0]: 1.0 - recipe.plus, **({names[1]: 0.0} if recipe.shift else {})}
    assert facts(norm) == expected


# --- what is not a norm, and what cannot be asked ---------------------------------------------------------------------


@pytest.mark.parametrize("make", DECLINED.values(), ids=DECLINED)
def test_no_norm_or_none_that_can_be_asked(make: Callable[[], nn.Module]) -> None:
    model = nn.ModuleDict({"norm": make()})
    assert {site.neutral for site in sites(model) if site.owner.name != "LayerNorm"} == {None}


# --- how layers stand in a model -------------------------------------------------------------------------------------


def test_a_parametrized_scale_is_asked_as_the_norm_sees_it() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs()

        def right_inverse(self, x: Tensor) -> Tensor:
            return x

    norm = Gemma()
    parametrize.register_parametrization(norm, "weight", Positive())
    model = nn.ModuleDict({"norm": norm})
    assert [(site.name, site.neutral) for site in sites(model)] == [("norm.weight", 0)]


def test_compiled_modules() -> None:
    norm = Gemma()
    norm.compile(backend="eager")
    assert facts(norm) == {"weight": 0}
    wrapped = nn.ModuleDict({"norm": torch.compile(Gemma(), backend="eager")})  # type: ignore[dict-item]
    assert [(site.name, site.neutral) for site in sites(wrapped)] == [("norm.weight", 0)]


def test_each_kind_is_asked_once_and_flags_make_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = neutral.neutral_values

    def counted(*args: Any) -> Any:
        asked.append(args)
        return real(*args)

    monkeypatch.setattr(neutral, "neutral_values", counted)
    model = nn.Sequential(*(Flagged(number % 2 == 0) for number in range(8)), Gemma(), Gemma(), Gemma(8))
    assert [site.neutral for site in sites(model)] == [0, 1] * 4 + [0, 0, 0]
    assert len(asked) == 4
    model[1].unit_offset = True  # type: ignore[assignment]
    assert [site.neutral for site in sites(model)] == [0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0]


def test_tied_scales_are_known_through_each_of_their_layers() -> None:
    first, second = Gemma(), Gemma()
    second.weight = first.weight
    (site,) = sites(nn.Sequential(first, second))
    assert [view.neutral for view in site.views] == [0, 0]
    other = Flagged(False)
    other.weight = first.weight
    made = make_plan(sites(nn.Sequential(first, other)), [Rule(Name("**"), Neutral())])
    assert len(made.problems) == 1
    assert "tied weights" in made.problems[0]
