"""What every fill can do, torchinit's or a plug-in's: be multiplied, stacked, looked into; and what is not a fill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.initializers.test_elementwise import assert_same_bits, drawn
from tests.strategies import elementwise_fills, kernel_fills, matrix_fills, part, slices
from torchinit import ConfigError, Constant, Name, Normal, Orthogonal, Plan, PlanError, Rule, RunError, Uniform
from torchinit.initializers import (
    Blocks,
    Blockwise,
    DeltaOrthogonal,
    DepthScaled,
    Dirac,
    Fill,
    Identity,
    Initializer,
    Opaque,
    Padded,
    Scaled,
    Sparse,
    Stacked,
)
from torchinit.initializers.base import ScaledFill, StackedFill, is_initializer
from torchinit.model import Shard, Site
from torchinit.noise import Keyed, Noise
from torchinit.plans import make_plan, run
from torchinit.recipes import INITIALIZERS

FACTORS = st.floats(0.01, 8)


@dataclass(frozen=True)
class Ramp(Fill):
    """A plug-in's fill that needs a drawn number for every element and knows nothing but how to write itself."""

    step: float = 1.0

    def write(self, shard: Shard, noise: Noise) -> None:
        noise.fill(shard, "uniform", (0.0, self.step))


@dataclass(frozen=True)
class Diagonal(Fill):
    """A plug-in's fill of matrices that depends on the row and the column."""

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if len(shape) != 2:
            raise ValueError(f"Diagonal needs 2 dimensions, but the shape is {shape}")

    def write(self, shard: Shard, noise: Noise) -> None:
        rows = torch.arange(shard.start[0], shard.start[0] + shard.local.shape[0])
        columns = torch.arange(shard.start[1], shard.start[1] + shard.local.shape[1])
        shard.local.copy_(10.0 * rows[:, None] + columns)


def any_fill() -> st.SearchStrategy[Fill]:
    """Fills of a 4 x 4 matrix, of all kinds, a plug-in's among them."""
    simple = elementwise_fills() | matrix_fills() | st.just(Ramp()) | st.just(Diagonal())
    padded = st.builds(Padded, simple, st.integers(0, 3))
    blocks = st.tuples(simple, simple).map(lambda pair: Blockwise(pair, (2, 2)))
    return simple | padded | blocks | st.builds(ScaledFill, simple, FACTORS)


# --- multiples ---------------------------------------------------------------------------------------------


@given(any_fill(), FACTORS)
def test_a_multiple_has_the_values_times_the_factor(fill: Fill, factor: float) -> None:
    values, multiple = drawn(fill, (4, 4), torch.float64), drawn(fill.scaled(factor), (4, 4), torch.float64)
    largest = float(values.abs().max())
    torch.testing.assert_close(multiple, values * factor, rtol=1e-5, atol=1e-6 * largest * factor)


@given(kernel_fills(), FACTORS)
def test_a_multiple_of_a_kernel(fill: Fill, factor: float) -> None:
    torch.testing.assert_close(drawn(fill.scaled(factor), (4, 4, 3)), drawn(fill, (4, 4, 3)) * factor)


@given(any_fill(), st.floats(-8, 8))
def test_a_multiple_has_the_moments_times_the_factor(fill: Fill, factor: float) -> None:
    before, after = fill.moments((4, 4)), fill.scaled(factor).moments((4, 4))
    assert (before is None) == (after is None)
    for then, now in zip(_known(before, factor), _known(after, 1.0), strict=True):
        assert now == pytest.approx(then, rel=1e-6, abs=1e-9)


def _known(moments: Any, factor: float) -> list[float]:
    """Mean and standard deviation, times a factor; nothing of what is not known."""
    known = moments is not None and moments.mean is not None and moments.std is not None
    return [moments.mean * factor, moments.std * abs(factor)] if known else []


@given(any_fill())
def test_no_fill_loses_its_class_by_a_factor(fill: Fill) -> None:
    """Only those that do not know what a factor does to them are wrapped."""
    own = isinstance(fill, (Ramp, Diagonal, ScaledFill))
    assert isinstance(fill.scaled(0.5), ScaledFill if own else type(fill))


def test_multiples_that_are_known() -> None:
    assert Identity(3.0).scaled(0.5) == Identity(1.5)
    assert Dirac(2).scaled(-0.5) == Dirac(2, gain=-0.5)
    assert Sparse(0.5, 2.0).scaled(-0.5) == Sparse(0.5, 1.0)
    assert DeltaOrthogonal(2.0, 1).scaled(0.5) == DeltaOrthogonal(1.0, 1)
    assert Ramp().scaled(0.5).scaled(0.5) == ScaledFill(Ramp(), 0.25)
    assert Scaled(Identity(), 0.5).resolve(Site("w", (4, 4))) == Identity(0.5)
    assert DepthScaled(Dirac()).resolve(Site("w", (4, 4, 3), block=(0, 2))) == Dirac(gain=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_multiple_is_rounded_once(dtype: torch.dtype) -> None:
    """0.3 times a rounded number is not the rounded product."""
    fill = ScaledFill(Ramp(), 0.3)
    expected = (drawn(Ramp(), (40, 40)) * 0.3).to(dtype)
    assert torch.equal(drawn(fill, (40, 40), dtype).float(), expected.float())


def test_a_multiple_on_torchs_generator_is_what_code_would_write() -> None:
    def by_hand(tensor: Tensor) -> None:
        tensor.uniform_(0.0, 1.0).mul_(0.3)

    for dtype in (torch.float32, torch.bfloat16):
        assert_same_bits(ScaledFill(Ramp(), 0.3), by_hand, torch.zeros(30, 5, dtype=dtype))


def test_multiples_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"-1000 \* Uniform\(b=100\) goes beyond 65504, the largest .* float16"):
        ScaledFill(Uniform(0, 100), -1000.0).check((2,), torch.float16)
    with pytest.raises(ValueError, match=r"2 \* Ramp\(\) needs a floating dtype, but got int64"):
        ScaledFill(Ramp(), 2.0).check((2,), torch.int64)
    with pytest.raises(ValueError, match="factor must be finite"):
        Ramp().scaled(math.inf)
    with pytest.raises(ValueError, match="Diagonal needs 2 dimensions"):
        Scaled(Scaled(Diagonal(), 2.0), 2.0).resolve(Site("w", (4,)))


# --- stacks ------------------------------------------------------------------------------------------------

AXES = [(0, 2, 1), (0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1)]
EACH: list[Fill] = [Identity(2.0), Sparse(0.4, 1.0), Diagonal(), Blockwise((Normal(), Orthogonal()), (2, 3)), Ramp()]


def _shape(axis: int, in_axis: int, out_axis: int) -> tuple[int, ...]:
    shape = [0, 0, 0]
    shape[axis], shape[in_axis], shape[out_axis] = 4, 6, 5
    return tuple(shape)


@pytest.mark.parametrize("fill", EACH, ids=str)
@pytest.mark.parametrize(("axis", "in_axis", "out_axis"), AXES)
def test_each_matrix_of_a_stack_is_a_tensor_of_its_own(fill: Fill, axis: int, in_axis: int, out_axis: int) -> None:
    shape = _shape(axis, in_axis, out_axis)
    whole = Stacked(fill, axis, in_axis, out_axis).resolve(Site("w", shape))
    assert isinstance(whole, StackedFill)
    assert not whole.elementwise
    for index, matrix in enumerate(drawn(whole, shape).permute(axis, out_axis, in_axis)):
        alone = torch.empty(5, 6)
        fill.write(Shard.whole(f"w[{index}]", alone), Keyed(0))
        assert torch.equal(matrix, alone)


@given(st.data(), st.sampled_from(EACH), st.sampled_from(AXES))
def test_a_slice_of_a_stack_is_the_slice_of_the_whole(data: st.DataObject, fill: Fill, axes: tuple[int, ...]) -> None:
    shape = _shape(*axes)
    stack = ScaledFill(StackedFill(fill, axes[0], transposed=axes[1] < axes[2]), 0.5)
    box = data.draw(slices(shape))
    shard = part("w", shape, box)
    stack.write(shard, Keyed(0))
    assert torch.equal(shard.local, drawn(stack, shape)[box])


def test_stacks_of_identities_and_elementwise_fills() -> None:
    fill = Stacked(Identity()).resolve(Site("experts", (3, 4, 4)))
    assert isinstance(fill, Fill)
    assert torch.equal(drawn(fill, (3, 4, 4)), torch.eye(4).expand(3, 4, 4))
    moments = fill.moments((3, 4, 4))
    assert moments is not None
    assert moments.mean == 0.25
    assert Stacked(Blocks(Normal(), 2)).resolve(Site("experts", (3, 4, 4))) == Normal()
    assert str(fill) == "StackedFill(Identity(), 0)"


def test_a_stack_on_torchs_generator_matrix_by_matrix() -> None:
    def by_hand(stack: Tensor) -> None:
        for matrix in stack:
            torch.nn.init.sparse_(matrix, 0.5, 1.0)

    assert_same_bits(StackedFill(Sparse(0.5, 1.0), 0), by_hand, torch.zeros(3, 6, 4))


def test_stacks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"a stack of matrices along axis 0 needs 3 dimensions, but the shape is \(2,"):
        StackedFill(Identity(), 0).check((2, 2), torch.float32)
    with pytest.raises(ValueError, match=r"along axis 3 needs 3 dimensions"):
        StackedFill(Identity(), 3).check((2, 2, 2), torch.float32)
    with pytest.raises(ValueError, match=r"Dirac needs a kernel of 3 to 5 dimensions, but the shape is \(4, 4\)"):
        Stacked(Dirac()).resolve(Site("w", (2, 4, 4)))


# --- regions -----------------------------------------------------------------------------------------------


@given(any_fill())
def test_regions_put_together_are_the_tensor(fill: Fill) -> None:
    """Each region's fill, told which box of the whole it is for, writes what the fill as a whole writes there."""
    tensor = torch.full((4, 4), math.nan, dtype=torch.float64)
    for box, inner in fill.regions((4, 4)):
        inner.write(Shard("w", box.of(tensor), (4, 4), box.start, box), Keyed(0))
    torch.testing.assert_close(tensor, drawn(fill, (4, 4), torch.float64))


def test_regions_of_a_stack_are_its_matrices() -> None:
    assert [box.shape for box, _ in StackedFill(Diagonal(), 1).regions((3, 2, 4))] == [(3, 1, 4)] * 2
    assert len(Stacked(Orthogonal()).resolve(Site("w", (3, 2, 4))).regions((3, 2, 4))) == 3  # type: ignore[union-attr]


# --- plug-ins ----------------------------------------------------------------------------------------------


class Lookalike:
    """It writes, but is not a fill."""

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None: ...

    def write(self, shard: Shard, noise: Noise) -> None: ...


@dataclass(frozen=True)
class Odd:
    """An initializer that gives anything."""

    gives: Any

    def resolve(self, site: Site) -> Any:
        return self.gives


@pytest.mark.parametrize(
    "init", [Odd(Lookalike()), Scaled(Odd(Lookalike()), 2.0), Stacked(Odd(Lookalike())), Blocks(Odd(Lookalike()), 2)]
)
def test_what_is_not_a_fill_is_refused_by_name(init: Initializer) -> None:
    plan = make_plan([Site("w", (2, 2, 2))], [Rule(Name("w"), init)])
    with pytest.raises(
        PlanError, match=r"rules\[0\] at 'w': Odd gives a Lookalike, which is not a torchinit.initializers.Fill"
    ):
        plan.check()
    assert "it has no resolve, no obstacle, no locked, no content, no prepare" in plan.problems[0]
    assert "no scaled, no stacked, no regions" in plan.problems[0]
    assert "no write," not in plan.problems[0]


@pytest.mark.parametrize("gives", [0.5, torch.zeros(2), "zeros"])
def test_numbers_and_tensors_are_not_fills(gives: Any) -> None:
    plan = make_plan([Site("w", (2,))], [Rule(Name("w"), Odd(gives))])
    assert f"Odd gives a {type(gives).__name__}, which is not a torchinit.initializers.Fill" in plan.problems[0]


def test_a_fill_that_cannot_write_is_refused_where_it_is_registered() -> None:
    @dataclass(frozen=True)
    class Silent(Fill):
        pass

    with pytest.raises(TypeError, match=r"Silent.* is not finished: it has no method 'write'"):
        INITIALIZERS.register(Silent)
    with pytest.raises(TypeError, match=r"abstract method .?write"):
        Silent()  # type: ignore[abstract]


def test_a_plug_in_in_a_recipe_a_plan_and_its_json(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(INITIALIZERS, "_registered", {**INITIALIZERS._registered, "Ramp": Ramp})
        plan = make_plan([Site("w", (3, 4, 4))], [Rule(Name("w"), Scaled(Stacked(Ramp()), 0.5))])
        assert plan["w"].fill == StackedFill(ScaledFill(Ramp(), 0.5), 0)
        assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(ConfigError, match=r"Ramp\(\) cannot be written as data"):
        plan.to_json()


def test_what_no_run_can_write_stays_so_by_a_factor() -> None:
    fill = ScaledFill(Opaque(("copy_ at model.py:3",)), 2.0)
    assert "only its own code can write it (copy_ at model.py:3)" in fill.obstacle
    with pytest.raises(RunError, match="w: only its own code can write it"):
        run(make_plan([Site("w", (2,))], [Rule(Name("w"), fill)]), {"w": Shard.whole("w", torch.empty(2))}, Keyed(0))
    assert not Constant(1.0).obstacle


class _NoFormula:
    resolve = None


@pytest.mark.parametrize(
    "value",
    [Normal(), Normal, _NoFormula(), _NoFormula, Path(), Path, "resolve", 0.0, None, {}, [], torch.empty(2), len],
)
def test_what_an_initializer_is_told_by_is_what_isinstance_asks(value: object) -> None:
    assert is_initializer(value) is isinstance(value, Initializer)
