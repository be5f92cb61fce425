"""Locks: a write to a locked value is stopped before it happens, and its line is named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from torchinit import Leaf, LockError, Normal, Rule, RunError, initialize, lock, seeded, trace


def model() -> Any:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def swap(tensor: torch.Tensor, other: torch.Tensor) -> None:
    tensor.data = other


WAYS: dict[str, tuple[Callable[[Any], object], str]] = {
    "nn.init": (lambda m: nn.init.normal_(m[0].weight, std=0.02), r"normal_\(mean=0, std=0.02\)"),
    "a slice": (lambda m: m[0].weight.data[0].zero_(), "zero_"),
    "data =": (lambda m: swap(m[0].weight, torch.ones(2, 2)), r"data =\(tensor of 2x2\)"),
    "assigned": (lambda m: m[0].register_parameter("weight", nn.Parameter(torch.ones(2, 2))), "assigned"),
    "to_empty": (lambda m: m.to_empty(device="cpu"), "to_empty"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("opened", [trace, lambda m: seeded(m, 0)])
def test_a_write_is_stopped_and_its_line_named(way: str, opened: Callable[[Any], Any]) -> None:
    one, (write, what) = model(), WAYS[way]
    held, before = one[0].weight, one[0].weight.detach().clone()
    text = rf"^0\.weight is locked, and tests/tracing/test_regions\.py:\d+ would write it: {what}"
    with lock(one, "0.weight"), pytest.raises(LockError, match=text), opened(one):
        write(one)
    assert one[0].weight is held
    assert torch.equal(one[0].weight, before)


def test_a_write_on_the_meta_device_is_stopped() -> None:
    with torch.device("meta"):
        one = model()
    with lock(one, "*.weight"), pytest.raises(LockError, match="would write it: trunc_normal_"), trace(one):
        nn.init.trunc_normal_(one[0].weight)


def test_others_may_be_written_and_a_released_one_too() -> None:
    one = model()
    first, second = lock(one, ["0.*", "1.running_*"]), lock(one, "0.weight")
    assert first.names == ("0.weight", "0.bias", "1.running_mean", "1.running_var")
    second.release()
    second.release()
    with trace(one):
        nn.init.ones_(one[1].weight)
        with pytest.raises(LockError):
            nn.init.ones_(one[0].weight)
        first.release()
        nn.init.ones_(one[0].weight)
    assert torch.equal(one[0].weight, torch.ones(2, 2))


def test_a_change_that_nobody_saw_is_an_error_at_the_end() -> None:
    one = model()

    def run() -> None:
        with trace(one):
            one[0].weight.detach().numpy()[:] = 1.0

    with lock(one, "**"), pytest.raises(LockError, match=r"0\.weight is locked, and was changed by something.*unseen"):
        run()


def test_an_error_of_the_code_comes_before_the_locks() -> None:
    one = model()

    def run() -> None:
        one[0].weight.detach().numpy()[:] = 1.0
        _ = 1 / 0

    with lock(one, "**"), pytest.raises(ZeroDivisionError), trace(one):
        run()


def test_outside_of_traces_a_lock_does_nothing() -> None:
    one = model()
    with lock(one, "**"):
        nn.init.ones_(one[0].weight)
    assert torch.equal(one[0].weight, torch.ones(2, 2))


def test_the_values_behind_a_parametrized_weight_are_locked() -> None:
    one: Any = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with lock(one, "weight"), pytest.raises(LockError, match="weight is locked"), trace(one):
        nn.init.ones_(one.parametrizations.weight.original1)


def test_names_that_no_site_has() -> None:
    one = model()
    with pytest.raises(RunError, match=r"2 names cannot be locked; nothing is\n.*'0.wieght'; did you mean '0.weight'"):
        lock(one, ["0.bias", "0.wieght", "2.*"])
    with trace(one):
        nn.init.ones_(one[0].bias)
    with pytest.raises(TypeError, match="a name is text"):
        lock(one, [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a name is dotted text"):
        lock(one, "a..b")


def test_the_error_can_be_sent_between_processes() -> None:
    error = LockError("a is locked")
    assert str(pickle.loads(pickle.dumps(error))) == "a is locked"


@pytest.mark.parametrize("seed", [0, None])
def test_a_run_that_would_write_a_locked_site_writes_nothing(seed: int | None) -> None:
    one = model()
    before = [parameter.clone() for parameter in one.parameters()]
    text = r"0\.weight is locked, and tests/tracing/test_regions\.py:\d+ would write it: Normal\(std=0\.02\)"
    with lock(one, "0.weight"), trace(one), pytest.raises(LockError, match=text):
        initialize(one, Rule(Leaf("bias", "weight"), Normal(std=0.02)), seed=seed)
    assert all(torch.equal(one, other) for one, other in zip(before, one.parameters(), strict=True))
