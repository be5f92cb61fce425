"""Digests: two sums over bits and places, against the definition in plain whole numbers."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import torchinit.plans.digest as module
from tests.strategies import shapes, slices
from torchinit.model import Shard
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.plans.digest import LaneSums, digest, digests, is_small

ALL = (1 << 64) - 1
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


def plain(words: list[int], places: list[int]) -> LaneSums:
    """The definition, one element after the other."""
    first = second = 0
    for word, place in zip(words, places, strict=True):
        step = (place + 1) * 0x9E3779B97F4A7C15 & ALL
        x = word ^ step
        x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & ALL
        x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & ALL
        x ^= x >> 33
        y = x + step & ALL
        y = (y ^ y >> 30) * 0xBF58476D1CE4E5B9 & ALL
        y = (y ^ y >> 27) * 0x94D049BB133111EB & ALL
        first, second = first + x & ALL, second + (y ^ y >> 31) & ALL
    return LaneSums(first, second)


def words_of(tensor: Tensor) -> list[int]:
    """The bits of each element, the two halves of a complex number apart."""
    size = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
    data = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist()) if tensor.numel() else b""
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A tensor of any bits at all, NaN with its payloads among them."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    data = torch.randint(256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


def by_torch(shard: Shard) -> LaneSums:
    """The sums by torch operations, whether there is a kernel or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_compiled", lambda: None)
        return digest(shard)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 5), (0, 3)])
def test_both_ways_agree_with_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = random_bits(shape, dtype)
    words = words_of(values)
    expected = plain(words, list(range(len(words))))
    assert digest(Shard.whole("w", values)) == by_torch(Shard.whole("w", values)) == expected


@given(st.data(), shapes(0, 5), st.sampled_from(DTYPES))
def test_a_box_adds_its_elements_at_their_places(
    data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    values = random_bits(shape, dtype)
    box = data.draw(slices(shape))
    start = tuple(each.start for each in box)
    halves = 2 if dtype.is_complex else 1
    numbers = torch.arange(math.prod(shape)).reshape(shape)[box].flatten().tolist()
    places = [halves * number + half for number in numbers for half in range(halves)]
    expected = plain(words_of(values[box]), places)
    order = data.draw(st.permutations(range(len(shape))))
    back = tuple(order.index(axis) for axis in range(len(shape)))
    for local in (values[box], values[box].permute(order).contiguous().permute(back)):
        shard = Shard("w", local, shape, start)
        assert digest(shard) == by_torch(shard) == expected


@given(st.data(), shapes(1, 4), st.sampled_from(DTYPES))
def test_parts_add_up_to_the_whole(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Cut along every axis, unevenly: all boxes together are the whole."""
    values = random_bits(shape, dtype)
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    total = LaneSums()
    for box in itertools.product(*([slice(*pair) for pair in itertools.pairwise(each)] for each in cuts)):
        total += digest(Shard("w", values[box], shape, tuple(each.start for each in box)))
    assert total == digest(Shard.whole("w", values))


@given(st.data(), shapes(0, 3), st.sampled_from([one for one in DTYPES if one != torch.bool]))
def test_one_flipped_bit_shows(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = random_bits(shape, dtype)
    before = digest(Shard.whole("w", values))
    raw = values.flatten().view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    after = digest(Shard.whole("w", raw.view(dtype).reshape(shape)))
    assert before.first != after.first
    assert before.second != after.second


@given(st.data(), st.integers(2, 40))
def test_elements_in_another_order_show(data: st.DataObject, size: int) -> None:
    values = torch.arange(size, dtype=torch.float32)
    order = data.draw(st.permutations(range(size)).filter(lambda found: found != list(range(size))))
    assert digest(Shard.whole("w", values)) != digest(Shard.whole("w", values[order]))


def test_the_sums_have_no_collision_among_many_like_tensors() -> None:
    """One element of 4096 set, to each of 16 values: 65,536 tensors, none with a sum of another in either lane."""
    size, seen = 4096, set[tuple[int, int]]()
    place = torch.arange(1, size + 1) * module._signed(module._STEP)
    empty = module._mix(place, module._FIRST)
    blank = module._mix(empty + place, module._SECOND)
    for word in range(1, 17):
        first = module._mix(place ^ word, module._FIRST)
        second = module._mix(first + place, module._SECOND)
        seen |= {(0, each) for each in (first - empty).tolist()} | {(1, each) for each in (second - blank).tolist()}
    assert len(seen) == 2 * 16 * size


def test_nan_payloads_and_the_sign_of_zero_are_bits() -> None:
    nans = [torch.tensor(struct.unpack("<f", struct.pack("<I", bits))) for bits in (0x7FC00000, 0x7FC00001)]
    zeros = [torch.tensor([0.0]), torch.tensor([-0.0])]
    assert len({digest(Shard.whole("w", values)) for values in (*nans, *zeros)}) == 4


def test_views_that_change_values_when_read() -> None:
    """A lazy conjugate and a lazy negation are read as what they mean, not as what they hold."""
    values = random_bits((3, 4), torch.complex64)
    lazy = values.conj()
    assert lazy.is_conj()
    assert digest(Shard.whole("w", lazy)) == digest(Shard.whole("w", lazy.resolve_conj()))
    negated = lazy.imag
    assert negated.is_neg()
    assert digest(Shard.whole("w", negated)) == digest(Shard.whole("w", negated.resolve_neg()))


@pytest.mark.parametrize("shape", [(3 << 20,), (3, 1 << 20), (1 << 20, 3)])
def test_pieces_and_threads_do_not_show(shape: tuple[int, ...]) -> None:
    values = random_bits(shape, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = digest(Shard.whole("w", values))
    finally:
        torch.set_num_threads(threads)
    assert found == by_torch(Shard.whole("w", values)) == digest(Shard.whole("w", values))


def test_many_axes_go_the_slow_way() -> None:
    values = random_bits((2, 1, 2, 3, 1, 2, 2), torch.int16)
    assert digest(Shard.whole("w", values)) == digest(Shard("w", values.flatten(), (48,), (0,)))


def test_the_version_keeps_its_values() -> None:
    assert digest(Shard.whole("w", torch.arange(100.0))) == LaneSums(1092430137191179453, 9179826242956336984)


def test_sums_add_up_to_sums_only() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        LaneSums(1, 2) + 3


def test_many_small_tensors_by_one_call() -> None:
    """Each has the sums that it has alone, whatever lies before it; what is not ordinary is left to the other way."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    tensors = [torch.randn(n, 3).to(dtype) for n in (1, 7, 700) for dtype in dtypes] + [torch.randn(())]
    assert digests(tensors) == [digest(Shard.whole("w", tensor)) for tensor in tensors]
    assert digests([]) == []
    odd = [torch.zeros(0), torch.zeros(1 << 14), torch.zeros(2, 3).T, torch.zeros(2, device="meta")]
    odd += [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, 2).to_sparse(),
        torch._to_functional_tensor(odd[1][:2]),
    ]
    assert not any(map(is_small, odd))
    assert all(map(is_small, tensors)) == (chosen_kernel() is not None)
