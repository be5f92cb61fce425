"""Unfilled memory: which parameters of a module that was built hold no values of anybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchinit.modules import BaseModule
from torchinit.tracing import is_unfilled


class One(BaseModule):
    """A module of one parameter, made by a function."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(make())


def filled(tensor: Tensor) -> Tensor:
    tensor[:] = 2
    return tensor


EMPTY: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.empty(4, 4),
    "Tensor": lambda: torch.Tensor(4, 4),
    "FloatTensor": lambda: torch.FloatTensor(4, 4),
    "empty_like": lambda: torch.empty_like(torch.ones(4, 4)),
    "new_empty": lambda: torch.ones(1).new_empty(4, 4),
    "empty_strided": lambda: torch.empty_strided((4, 4), (1, 4)),
    "a view": lambda: torch.empty(16).view(4, 4),
}

FULL: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(4, 4),
    "randn": lambda: torch.randn(4, 4),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "from a list": lambda: torch.Tensor([1.0, 2.0]),
    "filled": lambda: filled(torch.empty(4, 4)),
    "drawn": lambda: torch.empty(4, 4).uniform_(),
    "out=": lambda: torch.ones(4, 4, out=torch.empty(4, 4)),
    "no elements": lambda: torch.empty(0, 4),
    "meta": lambda: torch.empty(4, 4, device="meta"),
}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
def test_memory_that_nobody_filled_is_told(make: Callable[[], Tensor]) -> None:
    assert is_unfilled(One(make).weight)


@pytest.mark.parametrize("make", FULL.values(), ids=FULL)
def test_memory_with_values_is_not(make: Callable[[], Tensor]) -> None:
    assert not is_unfilled(One(make).weight)


@pytest.mark.parametrize(
    "write",
    [
        nn.init.ones_,
        lambda weight: weight.data.fill_(3.0),
        lambda weight: setattr(weight, "data", torch.ones(4, 4)),
        lambda weight: weight.data.copy_(torch.ones(4, 4)),
    ],
)
def test_a_later_write_fills_it(write: Callable[[Tensor], object]) -> None:
    module = One(lambda: torch.empty(4, 4))
    write(module.weight)
    assert not is_unfilled(module.weight)


def test_modules_inside_of_modules_and_torchs_own_layers() -> None:
    class Outer(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = One(lambda: torch.empty(2))
            self.conv = nn.Conv2d(2, 2, 3)

    outer = Outer()
    assert [name for name, weight in outer.named_parameters() if is_unfilled(weight)] == ["inner.weight"]


def test_a_constructor_that_fails_leaves_the_next_one_watched() -> None:
    def fail() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        One(fail)
    assert is_unfilled(One(lambda: torch.empty(3)).weight)
