"""Modules: those of a model and what they hold are found as torch finds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn

from torchinit.model.modules import modules_of, named_tensors, parameters_of, part_ids


def shared() -> Any:
    """Modules and tensors under several names, and places that hold nothing."""
    model: Any = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(), nn.BatchNorm1d(2))
    model[1].again = model[0]
    model[1].linear = nn.Linear(2, 2, bias=False)
    model[1].linear.weight = model[0][0].weight
    model[2].register_buffer("also", model[2].running_var)
    model[2].register_buffer("learned", model[2].weight)
    model[2].register_buffer("nothing", None)
    model.register_module("none", None)
    model.ring = nn.Module()
    return model


class Renamed(nn.Sequential):
    """A model that has names of its own for what it holds, as FSDP1 has."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((f"own.{name}", each) for name, each in super().named_parameters(*args, **kwargs))


@pytest.mark.parametrize("model", [shared(), nn.Linear(2, 2), nn.Module(), Renamed(nn.BatchNorm1d(2))], ids=str)
def test_all_is_found_in_the_order_of_torch(model: nn.Module) -> None:
    assert modules_of(model) == [*model.modules()]
    assert [*map(id, parameters_of(modules_of(model)))] == [*map(id, model.parameters())]
    parameters, buffers = named_tensors(model)
    assert ids(parameters) == ids([*model.named_parameters()])
    assert ids(buffers) == ids([*model.named_buffers()])


def ids(named: list[tuple[str, Any]]) -> list[tuple[str, int]]:
    return [(name, id(each)) for name, each in named]


def test_parts_are_others_once_something_is_put_in() -> None:
    model = shared()
    before = part_ids(model)
    weight: Tensor = model[0][0].weight
    weight.data.fill_(1)
    assert part_ids(model) == before
    model[0][0].weight = nn.Parameter(weight.detach())
    assert part_ids(model) != before
