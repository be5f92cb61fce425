"""Global noise: the same bits, and the same use of torch's generator, as the calls that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from torchinit.errors import RunError
from torchinit.model.shards import Shard
from torchinit.noise import Distribution, Global, seeded_generators

CALLS: list[tuple[Distribution, tuple[float, ...], Callable[[Tensor], Any]]] = [
    ("normal", (0.1, 0.5), lambda t: nn.init.normal_(t, 0.1, 0.5)),
    ("uniform", (-0.3, 0.2), lambda t: nn.init.uniform_(t, -0.3, 0.2)),
    ("truncated", (0.0, 1.0, -2.0, 2.0), nn.init.trunc_normal_),
    ("truncated", (0.5, 0.1, 0.4, 3.0), lambda t: nn.init.trunc_normal_(t, 0.5, 0.1, 0.4, 3.0)),
    ("bernoulli", (0.3,), lambda t: t.bernoulli_(0.3)),
    ("integer", (-2.0, 9.0), lambda t: t.random_(-2, 9)),
    ("sign", (), lambda t: t.copy_(torch.empty_like(t).bernoulli_(0.5) * 2 - 1)),
]


@pytest.mark.parametrize(("distribution", "params", "call"), CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bits_and_generator_are_torchs(
    distribution: Distribution, params: tuple[float, ...], call: Callable[[Tensor], Any], dtype: torch.dtype
) -> None:
    ours, theirs = torch.empty(33, 17, dtype=dtype), torch.empty(33, 17, dtype=dtype)
    torch.manual_seed(5)
    Global().fill(Shard.whole("weight", ours), distribution, params)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    call(theirs)
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.get_rng_state(), after)


def test_complex_normal_is_torchs() -> None:
    ours, theirs = torch.empty(50, dtype=torch.complex64), torch.empty(50, dtype=torch.complex64)
    torch.manual_seed(5)
    Global().fill(Shard.whole("weight", ours), "normal", (0.0, 2.0))
    torch.manual_seed(5)
    assert torch.equal(ours, nn.init.normal_(theirs, 0.0, 2.0))


def test_own_generator() -> None:
    before = torch.get_rng_state()
    ours, theirs = torch.empty(50), torch.empty(50)
    source = torch.Generator().manual_seed(3)
    Global(source).fill(Shard.whole("weight", ours), "normal", (0.0, 1.0))
    nn.init.normal_(theirs, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.get_rng_state(), before)


def test_inverse_cdf_is_a_monotone_map_of_one_uniform_an_element() -> None:
    ours = torch.empty(10_000, dtype=torch.float64)
    torch.manual_seed(5)
    Global(truncation="inverse_cdf").fill(Shard.whole("weight", ours), "truncated", (0.1, 0.5, -0.4, 0.9))
    after = torch.get_rng_state()
    torch.manual_seed(5)
    unit = torch.rand(10_000, dtype=torch.float64).numpy()
    low, high = special.ndtr((-0.4 - 0.1) / 0.5), special.ndtr((0.9 - 0.1) / 0.5)
    expected = 0.1 + 0.5 * special.ndtri(low + unit * (high - low))
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), after)
    cut = stats.truncnorm(-1.0, 1.6, loc=0.1, scale=0.5)
    assert stats.kstest(ours.numpy(), cut.cdf).pvalue > 1e-6


def test_inverse_cdf_warns_of_a_far_mean() -> None:
    shard = Shard.whole("weight", torch.empty(10))
    with pytest.warns(UserWarning, match=r"the mean 3.0 is more than 2 std outside of \[-1.0, 0.5\]"):
        Global(truncation="inverse_cdf").fill(shard, "truncated", (3.0, 1.0, -1.0, 0.5))
    assert float(shard.local.min()) >= -1.0
    assert float(shard.local.max()) <= 0.5


def test_order_is_one_randperm_a_column() -> None:
    torch.manual_seed(5)
    order = Global().order(Shard.whole("weight", torch.empty(9, 4)))
    torch.manual_seed(5)
    assert torch.equal(order, torch.stack([torch.randperm(9) for _ in range(4)], dim=1))
    assert Global().order(Shard.whole("weight", torch.empty(9, 0))).shape == (9, 0)


def test_cut_that_is_wholly_here_is_drawn() -> None:
    whole = Shard.whole("weight", torch.zeros(6, 2))
    torch.manual_seed(5)
    Global().fill(whole.cut(0, 2, 4), "normal", (0.0, 1.0))
    torch.manual_seed(5)
    assert torch.equal(whole.local[2:4], torch.empty(2, 2).normal_())
    assert not whole.local[:2].any()


def test_part_of_a_tensor_is_refused() -> None:
    part = Shard("layer.weight", torch.empty(2, 3), (4, 3), (2, 0))
    with pytest.raises(RunError, match=r"layer.weight: only \[2, 3\] of \[4, 3\] is here.*give a seed"):
        Global().fill(part, "normal", (0.0, 1.0))
    with pytest.raises(RunError, match="give a seed"):
        Global().order(part)


def test_complex_takes_normals_alone() -> None:
    shard = Shard.whole("weight", torch.empty(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="weight is complex, and uniform has no complex form; use a normal"):
        Global().fill(shard, "uniform", (0.0, 1.0))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown distribution 'cauchy'"):
        Global().fill(Shard.whole("weight", torch.empty(3)), "cauchy", ())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="truncation is 'rejection' or 'inverse_cdf', got 'icdf'"):
        Global(truncation="icdf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.complex64, torch.complex64),
        (torch.complex32, torch.complex64),
    ],
)
def test_factors_are_computed_where_torch_can(dtype: torch.dtype, factor: torch.dtype) -> None:
    assert Global().linalg_dtype(dtype) == factor


def test_gradients_do_not_see_the_write() -> None:
    weight = nn.Parameter(torch.zeros(5))
    Global(truncation="inverse_cdf").fill(Shard.whole("weight", weight), "truncated", (0.0, 1.0, -2.0, 2.0))
    assert weight.grad_fn is None
    assert bool(weight.any())
    assert bool(weight.detach().isfinite().all())


def test_a_state_for_a_while() -> None:
    """Inside it is the state of that seed, also within another one; afterwards, or after an error, the old one."""
    before = torch.get_rng_state()
    expected = torch.rand(5, generator=torch.Generator().manual_seed(7))
    with seeded_generators(7, torch.device("cpu"), torch.device("meta")):
        with seeded_generators(8):
            assert not torch.equal(torch.rand(5), expected)
        assert torch.equal(torch.rand(5), expected)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), seeded_generators(7):
        _ = torch.rand(1) / (1 // int(torch.zeros(1)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_state_of_a_gpu_for_a_while() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    expected = torch.rand(5, device=device, generator=torch.Generator(device).manual_seed(7))
    for place in (device, torch.device("cuda", 0)):
        with seeded_generators(7, place, torch.device("cpu")):
            assert torch.equal(torch.rand(5, device=device), expected)
    assert torch.equal(torch.cuda.get_rng_state(), before)
