"""Values far narrower than planned: found where a dtype or a mistake made them so, and never where chance did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import torchinit
from tests.initializers.test_elementwise import drawn
from torchinit import Name, Normal, Orthogonal, ReportError, Rule, TruncNormal, Uniform
from torchinit.initializers import Blocks, Fill, Moments, Scaled, Sparse, Stacked
from torchinit.initializers.statistics import deviations, measure, too_fine

COLLAPSED: list[tuple[Any, torch.dtype]] = [
    (Normal(std=1e-50), torch.float64),
    (Normal(1.0, 1e-9), torch.float32),
    (Normal(10.0, 1e-3), torch.bfloat16),
    (Normal(std=3e-9), torch.float16),
    (Uniform(1e10, 1e10 + 1e-3), torch.float64),
    (Uniform(1.0, 1.0 + 1e-9), torch.float32),
    (TruncNormal(5.0, 1e-3, 4.9, 5.1), torch.bfloat16),
    (Scaled(Normal(1.0, 1e-2), 1e-7), torch.float16),
    (Normal(-3.0, 1e-4), torch.float16),
    (Normal(1.0, 1e-9), torch.complex64),
    (Blocks(Normal(1.0, 1e-9), parts=2), torch.float32),
    (Stacked(Sparse(0.1, std=1e-9)), torch.float16),
    (Orthogonal(gain=3e-8), torch.float16),
]


class Weight(nn.Module):
    def __init__(self, *shape: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(("init", "dtype"), COLLAPSED, ids=str)
def test_a_draw_that_came_out_as_one_number_is_not_as_planned(init: Any, dtype: torch.dtype) -> None:
    shape = (4, 32, 32) if isinstance(init, Stacked) else (64, 64)
    model, rule = Weight(*shape, dtype=dtype), Rule(Name("**"), init)
    report = torchinit.initialize(model, rule, seed=0)
    with pytest.raises(ReportError, match=r"weight: (all [48],[01]9[26] values are|std is) .*, planned with std .*"):
        report.assert_ok()
    assert torchinit.lint(model, recipe=rule, select=["TI704"]).errors


@pytest.mark.parametrize("fill", [Normal(), Uniform(-1, 1), TruncNormal(), Normal(3.0, 0.5)], ids=str)
def test_narrow_for_another_reason(fill: Fill) -> None:
    """A tenth of the deviation, without any rounding."""
    values = drawn(fill, (50, 50), torch.float32, seed=3)
    mean = fill.moments().mean or 0.0  # type: ignore[union-attr]
    (problem,) = deviations(fill.moments(), measure(mean + (values - mean) / 10), 2500, torch.float32)  # type: ignore[arg-type]
    assert problem.startswith("std is")


@pytest.mark.parametrize(("number", "found"), [(1, False), (2, False), (64, False), (120, False), (200, True)])
def test_too_few_values_are_not_judged(number: int, found: bool) -> None:
    """At a bound of 1e-9 for any distribution of the kurtosis of a normal."""
    assert bool(deviations(Moments(1.0, 1e-9), Moments(1.0, 0.0, 1.0, 1.0), number, torch.float32)) == found


@pytest.mark.parametrize("numel", [130, 400, 5000])
@pytest.mark.parametrize("kurtosis", [1.8, 3.0, 9.0, 60.0])
def test_the_bound_holds_for_rare_values(numel: int, kurtosis: float) -> None:
    """Among the hardest of a kurtosis: a few large values among zeros."""
    share = 1 / kurtosis  # of +-1/sqrt(share), which have this kurtosis and variance 1
    generator, narrow = np.random.default_rng(numel), 0
    for _ in range(500):
        values = (generator.random(numel) < share) * generator.choice([-1, 1], numel) * share**-0.5
        seen = Moments(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))
        expected = Moments(0.0, 1.0, kurtosis=kurtosis)
        narrow += any("planned with std" in text for text in deviations(expected, seen, numel, torch.float32))
    assert narrow == 0


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(["normal", "uniform", "truncated"]),
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 10.0, 3.1, -100.0]),
    st.floats(0.3, 40),
    st.integers(2, 3000),
    st.integers(0, 1 << 30),
)
def test_no_alarm_where_the_dtype_can_tell_the_values_apart(
    dtype: torch.dtype, kind: str, mean: float, steps: float, numel: int, seed: int
) -> None:
    """For any deviation from a third of the dtype's spacing around the mean on, and any number of values."""
    # What keeps within ends that are nearer than two spacings has three numbers left, or fewer, and is told rightly.
    assume(kind == "normal" or steps * {"uniform": 1, "truncated": 2}[kind] >= 2)
    info = torch.finfo(dtype if dtype.itemsize <= 2 else torch.float32)
    least = info.smallest_normal * (info.eps if dtype.itemsize <= 2 else 1)  # a draw's numbers are float32, too
    std = steps * (max(2.0 ** np.floor(np.log2(abs(mean))) * info.eps, least) if mean else least)
    fill: Fill = {
        "normal": Normal(mean, std),
        "uniform": Uniform(mean - std, mean + std),
        "truncated": TruncNormal(mean, std, -2, 2, unit="sigma"),
    }[kind]
    expected = fill.moments((numel,))
    assert expected is not None
    seen = measure(drawn(fill, (numel,), dtype, seed=seed))
    assert seen is not None
    assert not [text for text in deviations(expected, seen, numel, dtype) if "planned with std" in text]
    assert not too_fine(expected, dtype) or steps < 0.5  # a uniform of half this width has a smaller deviation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "init", [Normal(std=0.02), Uniform(-0.1, 0.1), TruncNormal(std=0.02), Orthogonal(), Sparse(0.9)]
)
def test_models_as_they_are_made(init: Any, dtype: torch.dtype) -> None:
    """Shapes of biases, heads and projections, under many seeds."""
    for shape in ((130, 2), (16, 16), (64, 300)):
        for seed in range(20):
            model = Weight(*shape, dtype=dtype)
            torchinit.initialize(model, Rule(Name("**"), init), seed=seed).assert_ok(complete=True)
