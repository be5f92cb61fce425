"""Shards: cutting out a block by its place in the whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import shapes, slices
from torchinit.model import Box, Shard


def test_a_tensor_that_is_wholly_here() -> None:
    shard = Shard.whole("w", torch.empty(2, 3))
    assert shard.is_whole
    assert shard.region == Box((0, 0), (2, 3))
    assert shard.region.numel == 6
    assert not Shard("w", torch.empty(1, 3), (2, 3), (1, 0)).is_whole


@given(st.data(), shapes(1, 3))
def test_a_cut_holds_the_elements_of_the_whole_that_are_here(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Against plain indexing: number all elements, keep a part, cut a block out of it."""
    numbers = torch.arange(Box((), shape).numel).reshape(shape)
    here = data.draw(slices(shape))
    axis = data.draw(st.integers(0, len(shape) - 1))
    low = data.draw(st.integers(0, shape[axis]))
    high = data.draw(st.integers(low, shape[axis]))

    cut = Shard("w", numbers[here], shape, tuple(each.start for each in here)).cut(axis, low, high)

    among = set(numbers.narrow(axis, low, high - low).flatten().tolist())
    assert set(cut.local.flatten().tolist()) == among & set(numbers[here].flatten().tolist())
    if cut.local.numel():
        assert cut.local.flatten()[0] == numbers[cut.start]
    assert cut.region.start == tuple(low if each == axis else 0 for each in range(len(shape)))
    assert cut.region.shape == tuple(high - low if each == axis else size for each, size in enumerate(shape))


def test_a_cut_is_a_view() -> None:
    whole = torch.zeros(4, 2)
    Shard.whole("w", whole).cut(0, 1, 3).local.fill_(1.0)
    assert whole.sum(1).tolist() == [0, 2, 2, 0]


def test_a_cut_of_a_cut_keeps_its_place() -> None:
    numbers = torch.arange(24).reshape(4, 6)
    twice = Shard.whole("w", numbers).cut(0, 1, 3).cut(1, 2, 4)
    assert twice.start == twice.region.start == (1, 2)
    assert twice.region.shape == (2, 2)
    assert torch.equal(twice.local, numbers[1:3, 2:4])
