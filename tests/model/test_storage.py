"""Memory: which tensors are one, which lie in part of each other, which overlap themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchinit.model.storage import entangled, identity, overlaps


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=3))
def test_overlap_is_never_missed(dims: list[tuple[int, int]]) -> None:
    """Against a count of the addresses; a false alarm is allowed, a miss is not."""
    sizes, strides = zip(*dims, strict=True)
    tensor = torch.zeros(100).as_strided(sizes, strides)
    places = torch.arange(100).as_strided(sizes, strides)
    if len(places.unique()) < tensor.numel():
        assert overlaps(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4).T,
        torch.zeros(3, 4)[:, 1:3],
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(10)[::3],
        torch.zeros(0, 3).T,
        torch.zeros(1).expand(1, 1),
    ],
)
def test_views_with_memory_for_each_element_do_not_overlap(tensor: Tensor) -> None:
    assert not overlaps(tensor)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ties_by_data_are_seen(device: str) -> None:
    one, other = nn.Linear(3, 3, device=device), nn.Linear(3, 3, device=device)
    assert identity(one.weight) != identity(other.weight)
    other.weight.data = one.weight.data
    assert identity(one.weight) == identity(other.weight)
    assert identity(one.weight) != identity(one.bias)


def test_empty_tensors_are_not_one() -> None:
    assert identity(torch.empty(0)) != identity(other := torch.empty(0)) == identity(other)


def test_a_sparse_tensor_is_itself() -> None:
    sparse = torch.eye(3).to_sparse()
    assert identity(sparse) == identity(sparse) != identity(torch.eye(3).to_sparse())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_entangled_views(device: str) -> None:
    memory = torch.zeros(4, 6, device=device)
    tensors = {
        "left": memory[:, :3],
        "right": memory[:, 3:],
        "corner": memory[2:, 2:4],
        "other": torch.zeros(4, 6, device=device),
        "none": memory[:0],
    }
    assert entangled(tensors) == {"left": ("corner",), "corner": ("left", "right"), "right": ("corner",)}


def test_another_dtype_in_the_same_bytes() -> None:
    memory = torch.zeros(4)
    assert entangled({"a": memory, "b": memory.view(torch.bfloat16)}) == {"a": ("b",), "b": ("a",)}
    assert entangled({"a": memory[:2], "b": memory.view(torch.bfloat16)[4:]}) == {}


def test_the_flat_memory_of_an_lstm_is_not_shared() -> None:
    """What cuDNN's weights look like: views side by side in one memory."""
    flat = torch.zeros(30)
    assert entangled({str(at): flat[at : at + 10] for at in (0, 10, 20)}) == {}


def test_views_too_large_to_look_at_are_taken_to_share() -> None:
    memory = torch.empty(1 << 15, 1 << 15, device="meta")
    assert entangled({"even": memory[:, ::2], "odd": memory[:, 1::2]}) == {"even": ("odd",), "odd": ("even",)}
