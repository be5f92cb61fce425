"""Observers beside what happened: tensors are compared before and after each way to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from torchinit.model.storage import extent
from torchinit.tracing import MemoryIndex, Observer
from torchinit.tracing.regions import storage_of


def flat(layer: nn.Linear) -> Tensor:
    return torch.arange(1.0, 1 + layer.weight.numel() + layer.bias.numel())


def swap(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other


def add_row(tensor: Tensor) -> None:
    row = tensor.data[1]
    row += 1


WAYS: dict[str, Callable[[nn.Linear], object]] = {
    "nn.init": lambda layer: nn.init.normal_(layer.weight),
    "nn.init in torch's own function": lambda layer: nn.init.orthogonal_(layer.weight),
    "data, in place": lambda layer: layer.weight.data.fill_(7),
    "data, an index": lambda layer: layer.weight.data.__setitem__((0, 1), 7.0),
    "data, a slice": lambda layer: layer.weight.data[:, 1:].add_(1),
    "a row, augmented": lambda layer: add_row(layer.weight),
    "a transposed view": lambda layer: layer.weight.data.t().mul_(3),
    "a flattened view": lambda layer: layer.weight.data.view(-1)[3:].neg_(),
    "detach": lambda layer: layer.weight.detach().zero_(),
    "copy_": lambda layer: layer.weight.data.copy_(torch.ones(3, 3)),
    "a reset": lambda layer: layer.reset_parameters(),
    "foreach": lambda layer: torch._foreach_add_([layer.weight.data, layer.bias.data], 1.0),
    "out=": lambda layer: torch.add(torch.ones(3, 3), 1, out=layer.weight.data),
    "out= with normal": lambda layer: torch.normal(0.0, 1.0, (3, 3), out=layer.weight.data),
    "new data": lambda layer: swap(layer.weight, torch.ones(3, 3)),
    "new data, by the module": lambda layer: layer.bias.__setattr__("data", torch.ones(3)),
    "set_": lambda layer: cast("Any", layer.weight.data).set_(torch.ones(3, 3)),
    "load_state_dict": lambda layer: layer.load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(3)}),
    "vector_to_parameters": lambda layer: vector_to_parameters(flat(layer), layer.parameters()),
    "mapped": lambda layer: [nn.init.ones_(cast("Any", module).bias) for module in layer.modules()],
    "a cast and back": lambda layer: layer.double().float(),
    "looks alone": lambda layer: (layer.weight.mean(), layer.weight.t() @ layer.bias, layer(torch.ones(3))),
    "clones alone": lambda layer: layer.weight.clone().zero_(),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_told_is_what_has_changed(way: str) -> None:
    layer = nn.Linear(3, 3)
    seen: set[int] = set()
    index = MemoryIndex()
    before = {}
    for key, tensor in enumerate(layer.parameters()):
        index.add(key, tensor)
        before[key] = (tensor.detach().clone(), tensor.data_ptr())
    with torch.no_grad(), Observer(index, lambda event: seen.add(event.key)):
        WAYS[way](layer)
    changed = {
        key
        for key, tensor in enumerate(layer.parameters())
        if not torch.equal(tensor, before[key][0]) or tensor.data_ptr() != before[key][1]
    }
    # set_ on .data moves an alias: the parameter itself keeps its memory and its values.
    assert seen == changed or (way == "set_" and seen == {0} and not changed)


def test_equal_values_written_again_are_a_write() -> None:
    layer, index = nn.BatchNorm1d(3), MemoryIndex()
    seen: list[int] = []
    index.add(1, layer.weight)
    with Observer(index, lambda event: seen.append(event.key)):
        nn.init.ones_(layer.weight)
    assert seen == [1]


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6))
def test_parts_of_one_memory_are_told_apart(start: int, size: int, at: int, count: int) -> None:
    memory, index = torch.zeros(12), MemoryIndex()
    seen: list[int] = []
    index.add(1, memory[start : start + size])
    with Observer(index, lambda event: seen.append(event.key)):
        memory[at : at + count] = 1
    assert bool(seen) == bool(memory[start : start + size].any())


def test_memory_that_is_left_is_no_longer_watched() -> None:
    layer, index = nn.Linear(2, 2), MemoryIndex()
    seen: list[int] = []
    index.add(1, layer.weight)
    old = layer.weight.data
    with Observer(index, lambda event: seen.append(event.key)):
        layer.weight.data = torch.ones(2, 2)
        seen.clear()
        old.zero_()
    assert seen == []


def test_set_on_the_parameter_itself_is_followed() -> None:
    layer, index = nn.Linear(2, 2), MemoryIndex()
    seen: list[int] = []
    index.add(1, layer.weight)
    with torch.no_grad(), Observer(index, lambda event: seen.append(event.key)):
        cast("Any", layer.weight).set_(torch.ones(2, 2))
        layer.weight.data.add_(1)
    assert seen == [1, 1]


def test_sparse_tensors_are_known_by_identity() -> None:
    sparse, index = torch.eye(2).to_sparse(), MemoryIndex()
    seen: list[int] = []
    index.add(1, sparse)
    assert storage_of(sparse) is None
    with Observer(index, lambda event: seen.append(event.key)):
        sparse.mul_(2)
    assert seen == [1]


def test_registrations_are_told_while_the_observer_is_entered_and_no_longer() -> None:
    layer = nn.Linear(2, 2)
    seen: list[tuple[object, str, type]] = []

    def registered(module: nn.Module, name: str, value: object) -> None:
        seen.append((module, name, type(value)))

    with Observer(MemoryIndex(), lambda event: None, registered):
        layer.weight = nn.Parameter(torch.ones(2, 2))
        layer.register_buffer("mask", torch.ones(2))
        layer.child = nn.Identity()
        cast("Any", layer).bias = None
    layer.after = nn.Parameter(torch.ones(1))
    assert seen == [(layer, "weight", nn.Parameter), (layer, "mask", Tensor), (layer, "child", nn.Identity)]


def test_nothing_is_left_entered_after_an_exception() -> None:
    layer, index = nn.Linear(2, 2), MemoryIndex()
    seen: list[int] = []
    index.add(1, layer.weight)
    with pytest.raises(ZeroDivisionError), Observer(index, lambda event: seen.append(event.key), lambda *_: None):
        _ = 1 / 0
    nn.init.zeros_(layer.weight)
    layer.weight = nn.Parameter(torch.ones(2, 2))
    assert seen == []


@pytest.mark.parametrize(
    ("tensor", "low", "high"),
    [
        (torch.zeros(2, 3), 0, 24),
        (torch.zeros(6)[2:4], 8, 16),
        (torch.zeros(4, 4).t()[1:], 4, 64),
        (torch.zeros(3, dtype=torch.float64)[::2], 0, 24),
        (torch.zeros(0), 0, 0),
        (torch.zeros(1).expand(5), 0, 4),
    ],
)
def test_extent(tensor: Tensor, low: int, high: int) -> None:
    assert extent(tensor) == (low, high)


def test_memory_that_a_tensor_has_left_unfollowed_is_nobodys() -> None:
    tensor, index = torch.zeros(4), MemoryIndex()
    index.add(7, tensor)
    old = tensor.detach()
    tensor.data = torch.zeros(4)
    assert (index.find(old), index.find(tensor)) == (set(), {7})
