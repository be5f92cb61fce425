"""Keyed noise: the values belong to seed, name and position; shards, layouts and dtypes agree."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.noise.strategies import DISTRIBUTIONS, DTYPES, Boxed, boxes, destinations
from torchinit.errors import RunError
from torchinit.model.names import normalize
from torchinit.model.shards import Shard
from torchinit.noise import Distribution, DrawRequest, Keyed
from torchinit.noise.engines.torch_engine import key_of
from torchinit.noise.keyed import derive


def drawn(
    distribution: Distribution = "normal",
    params: tuple[float, ...] = (0.0, 1.0),
    shape: tuple[int, ...] = (1000,),
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    name: str = "weight",
    index: int = 0,
) -> Tensor:
    out = torch.empty(shape, dtype=dtype)
    Keyed(seed).fill(Shard.whole(name, out), distribution, params, index)
    return out


@given(data=st.data(), box=boxes(), what=st.sampled_from(DISTRIBUTIONS), dtype=st.sampled_from(DTYPES))
def test_any_box_into_any_layout_is_the_slice_of_the_whole(
    data: st.DataObject, box: Boxed, what: tuple[Distribution, tuple[float, ...]], dtype: torch.dtype
) -> None:
    whole = drawn(*what, box.shape, dtype)
    local = data.draw(destinations(box.size, dtype))
    Keyed(0).fill(Shard("weight", local, box.shape, box.start), *what)
    assert torch.equal(local, whole[box.slices])


@given(box=boxes(), dtype=st.sampled_from([torch.complex64, torch.complex128]))
def test_complex_boxes(box: Boxed, dtype: torch.dtype) -> None:
    whole = drawn("normal", (0.5, 2.0), box.shape, dtype)
    local = torch.empty(box.size, dtype=dtype)
    Keyed(0).fill(Shard("weight", local, box.shape, box.start), "normal", (0.5, 2.0))
    assert torch.equal(local, whole[box.slices])


def test_writes_nothing_around_the_destination() -> None:
    base = torch.full((10, 10), torch.nan)
    Keyed(0).fill(Shard("weight", base[2:5, 3:7], (100, 100), (50, 60)), "normal", (0.0, 1.0))
    assert int(base.isnan().sum()) == 100 - 12


@pytest.mark.parametrize("what", DISTRIBUTIONS)
def test_dtypes_are_one_model(what: tuple[Distribution, tuple[float, ...]]) -> None:
    single = drawn(*what)
    assert torch.equal(drawn(*what, dtype=torch.float64), single.double())
    for dtype in (torch.bfloat16, torch.float16):
        rounded, low = single.to(dtype), drawn(*what, dtype=dtype)
        if what[0] in ("normal", "bernoulli", "sign"):
            assert torch.equal(low, rounded)
        else:
            # Bounds that the dtype cannot hold are the only difference.
            differs = low != rounded
            assert torch.equal(low[differs], rounded[differs].clamp(low.min(), low.max()))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_rounded_once(dtype: torch.dtype) -> None:
    assert torch.equal(drawn(dtype=dtype).float(), drawn().to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [0.1, 1.0, 0.3, 3.0])
def test_no_value_outside_of_its_bounds(dtype: torch.dtype, bound: float) -> None:
    uniform = drawn("uniform", (-bound, bound), (100_000,), dtype).double()
    assert -bound <= float(uniform.min())
    assert float(uniform.max()) < bound
    cut = drawn("truncated", (0.05, 0.2, -bound, bound), (100_000,), dtype).double()
    assert -bound <= float(cut.min())
    assert float(cut.max()) <= bound


def test_complex_parts_are_neighbouring_normals() -> None:
    z = drawn("normal", (0.5, 2.0), (50, 3), torch.complex64)
    parts = drawn("normal", (0.5, 2.0 / math.sqrt(2)), (50, 3, 2))
    assert torch.equal(torch.view_as_real(z), parts)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (0, 5)])
def test_small_and_empty(shape: tuple[int, ...]) -> None:
    assert torch.equal(drawn(shape=shape).flatten(), drawn(shape=(5,))[: math.prod(shape)])


def test_far_beyond_what_memory_holds() -> None:
    shape = (2**32, 2**32)
    local = torch.empty(1, 40)
    Keyed(0).fill(Shard("weight", local, shape, (2**32 - 1, 2**32 - 40)), "uniform", (0.0, 1.0))
    again = torch.empty(1, 7)
    Keyed(0).fill(Shard("weight", again, shape, (2**32 - 1, 2**32 - 7)), "uniform", (0.0, 1.0))
    assert torch.equal(again, local[:, -7:])
    assert len(set(local.flatten().tolist())) == 40


def test_seed_name_and_index_each_make_other_values() -> None:
    first = drawn()
    others = [
        drawn(seed=1),
        drawn(seed=2**64 - 1),
        drawn(name="bias"),
        drawn(name="weight "),
        drawn(index=1),
        drawn(name="weight\x00"),
    ]
    for other in others:
        # 1000 independent pairs: |r| exceeds 6 / sqrt(1000) about once in 10**9.
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 6 / math.sqrt(1000)


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    drawn()
    Keyed(0).order(Shard.whole("weight", torch.empty(5, 5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_is_its_jobs() -> None:
    outs = [torch.empty(size) for size in (0, 1, 31, 1000, 70_000)]
    Keyed(3).fill_many(
        DrawRequest(Shard.whole(f"layers.{i}", out), "normal", (0.0, 1.0 + i)) for i, out in enumerate(outs)
    )
    for i, out in enumerate(outs):
        assert torch.equal(out, drawn("normal", (0.0, 1.0 + i), tuple(out.shape), seed=3, name=f"layers.{i}"))


NAMES = st.one_of(
    st.text(st.characters(), max_size=40),  # with NUL, lone surrogates and all
    st.integers(60, 260).map(lambda length: "layers." + "x" * length),  # around the ends of BLAKE2b's blocks
    st.integers(80, 95).map(lambda length: "é" + "y" * length),
)


@given(st.lists(st.tuples(NAMES, st.integers(0, 4), st.sampled_from((0, 1, 1 << 40))), max_size=8), st.booleans())
def test_keys_of_a_batch_are_those_of_hashlib(asked: list[tuple[str, int, int]], is_wide: bool) -> None:
    # Neighbours of one draw get their keys from the kernel, and a tensor in a call of its own from hashlib.
    dtype = torch.float64 if is_wide else torch.float32
    outs, alone = ([torch.full((size,), -1.0, dtype=dtype) for _, size, _ in asked] for _ in range(2))
    seed = (1 << 64) - 1
    Keyed(seed).fill_many(
        DrawRequest(Shard.whole(name, out), "uniform", (0.0, 1.0), index)
        for (name, _, index), out in zip(asked, outs, strict=True)
    )
    for (name, _, index), out in zip(asked, alone, strict=True):
        Keyed(seed).fill(Shard.whole(name, out), "uniform", (0.0, 1.0), index)
    assert all(map(torch.equal, outs, alone))


def test_batch_with_a_mistake_writes_nothing() -> None:
    good, bad = torch.zeros(5), torch.zeros(5)
    jobs = [
        DrawRequest(Shard.whole("a", good), "normal", (0.0, 1.0)),
        DrawRequest(Shard.whole("b", bad), "normal", (0.0, -1.0)),
    ]
    with pytest.raises(ValueError, match="normal needs a finite std"):
        Keyed(0).fill_many(jobs)
    assert not good.any()


def test_gradients_do_not_see_the_write_but_autograd_notices() -> None:
    weight = torch.nn.Parameter(torch.ones(5))
    product = (weight * weight).sum()
    Keyed(0).fill(Shard.whole("weight", weight), "normal", (0.0, 1.0))
    assert weight.requires_grad
    assert weight.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


class TestOrder:
    def test_every_column_is_a_permutation(self) -> None:
        order = Keyed(0).order(Shard.whole("weight", torch.empty(50, 20)))
        assert order.dtype == torch.int64
        assert torch.equal(order.sort(dim=0).values, torch.arange(50)[:, None].expand(50, 20))

    def test_any_shard_gets_the_order_of_its_region(self) -> None:
        whole = Shard.whole("weight", torch.empty(12, 8))
        part = Shard("weight", torch.empty(2, 3), (12, 8), (5, 1))
        assert torch.equal(Keyed(0).order(part), Keyed(0).order(whole))
        cut = whole.cut(0, 4, 8)
        assert Keyed(0).order(cut).shape == (4, 8)

    def test_order_is_independent_of_the_values(self) -> None:
        shard = Shard.whole("weight", torch.empty(4000, 1))
        Keyed(0).fill(shard, "normal", (0.0, 1.0))
        rank = Keyed(0).order(shard).argsort(dim=0)
        r = np.corrcoef(rank[:, 0].numpy(), shard.local[:, 0].numpy())[0, 1]
        assert abs(r) < 6 / math.sqrt(4000)

    def test_places_are_uniform(self) -> None:
        first = Keyed(0).order(Shard.whole("weight", torch.empty(10, 100_000)))[0]
        counts = torch.bincount(first, minlength=10).double()
        chi2 = float(((counts - 10_000) ** 2 / 10_000).sum())
        # Nine degrees of freedom: P(chi2 > 50) is 1e-7.
        assert chi2 < 50


def test_factors_are_computed_in_double_precision() -> None:
    assert Keyed(0).linalg_dtype(torch.bfloat16) == torch.float64
    assert Keyed(0).linalg_dtype(torch.complex64) == torch.complex128


def test_is_a_value() -> None:
    noise = Keyed(np.int64(5))  # type: ignore[arg-type]
    assert noise == Keyed(5) == eval(repr(noise)) == pickle.loads(pickle.dumps(noise))
    assert type(noise.seed) is int
    assert not noise.is_stateful


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("weight", "weight"),
        ("module.weight", "weight"),
        ("module.module.a.weight", "a.weight"),
        ("a._fsdp_wrapped_module.b._orig_mod.weight", "a.b.weight"),
        ("a._checkpoint_wrapped_module.weight", "a.weight"),
        ("a.parametrizations.weight.original", "a.weight"),
        ("module.parametrizations.weight.original0", "weight"),
        ("module", "module"),
        ("a.module", "a.module"),
        ("submodule.weight", "submodule.weight"),
        ("a.parametrizations.weight.0.scale", "a.parametrizations.weight.0.scale"),
    ],
)
def test_wrappers_do_not_enter_a_name(wrapped: str, bare: str) -> None:
    assert normalize(wrapped) == bare == normalize(bare)


@given(
    st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=8), st.integers(0, 2**64 - 1)),
    st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=8), st.integers(0, 2**64 - 1)),
)
def test_keys_differ(one: tuple[int, str, int], other: tuple[int, str, int]) -> None:
    assert (derive(*one) == derive(*other)) == (one == other)
    assert derive(*one) != derive(*one, "order")


def test_key_is_blake2b_of_the_written_message() -> None:
    import hashlib

    message = b"torchinit-stream-1\x00fill\x00" + (7).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"a.b"
    digest = hashlib.blake2b(message, digest_size=16).digest()
    assert derive(7, "a.b", 2) == digest
    assert key_of(digest) == tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_seed_of_a_wrong_type(seed: Any) -> None:
    with pytest.raises(TypeError, match="a seed is an int, got"):
        Keyed(seed)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=r"a seed is at least 0 and below 2\*\*64, got"):
        Keyed(seed)


def test_index_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"a draw index is at least 0 and below 2\*\*64, got -1"):
        drawn(index=-1)


@pytest.mark.parametrize("distribution", ["uniform", "truncated", "bernoulli", "integer", "sign"])
def test_complex_takes_normals_alone(distribution: Distribution) -> None:
    with pytest.raises(ValueError, match=f"weight is complex, and {distribution} has no complex form"):
        drawn(distribution, (), dtype=torch.complex64)


@pytest.mark.parametrize(
    ("shard", "text"),
    [
        (Shard.whole("w", torch.empty(2, dtype=torch.int32)), "w: torch.int32 cannot hold random numbers"),
        (Shard.whole("w", torch.empty(2, device="meta")), "w is on the meta device: there is no memory"),
        (Shard("w", torch.empty(2), (3,), (2,)), r"w: the part of shape \[2\] at \[2\] does not lie within \[3\]"),
        (Shard("w", torch.empty(2), (3,), (-1,)), "does not lie within"),
        (Shard("w", torch.empty(2), (3, 1), (0, 0)), "does not lie within"),
        (Shard("w", torch.empty(1, 1), (2**33, 2**32), (0, 0)), r"has more than 2\*\*64 numbers"),
    ],
)
def test_what_cannot_be_drawn(shard: Shard, text: str) -> None:
    with pytest.raises(RunError, match=text):
        Keyed(0).fill(shard, "normal", (0.0, 1.0))
