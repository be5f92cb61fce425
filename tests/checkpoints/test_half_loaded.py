"""Loads that fail before the end: whatever fails, and wherever, the model is as it was, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.files import write
from torchinit import Name, Pretrained, Rule, initialize, sites
from torchinit.checkpoints import tensor_fill
from torchinit.errors import TorchinitError
from torchinit.noise import Keyed
from torchinit.plans import Plan, local_shards, make_plan, run

SIZES = (300_000, 3, 700_001, 40, 300_000)
"""Elements of the tensors: those of more than a megabyte are done by the kernel one by one, the others together."""


def values() -> dict[str, Tensor]:
    return {f"{at}.weight": torch.rand(size) for at, size in enumerate(SIZES)}


def planned(path: Path) -> tuple[nn.Module, Plan]:
    model = nn.Sequential(*map(nn.PReLU, SIZES))
    return model, make_plan(sites(model), [Rule(Name("**"), Pretrained(str(path)))])


def state(model: nn.Module) -> list[bytes]:
    return [bytes(tensor.numpy().tobytes()) for tensor in model.state_dict().values()]


@pytest.mark.parametrize("form", ["safetensors", "zip"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("key", [*values()])
def test_a_number_that_is_not_finite(key: str, value: float, form: str, tmp_path: Path) -> None:
    """As the first of a tensor and as its last, in whichever tensor."""
    for place in (0, -1):
        held = values()
        held[key][place] = value
        model, plan = planned(write(form, tmp_path, held))
        before = state(model)
        with pytest.raises(TorchinitError, match=rf"{key}: {key} holds NaN or infinity"):
            run(plan, local_shards(model), Keyed(0))
        assert state(model) == before


def _raise(error: type[BaseException]) -> Callable[..., float]:
    def raiser(*_: object) -> float:
        raise error("stop")

    return raiser


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("look", ["magnitude", "magnitudes"])
def test_an_interruption_of_the_look(
    look: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = planned(write("safetensors", tmp_path, values()))
    before = state(model)
    monkeypatch.setattr(tensor_fill, look, _raise(error))
    with pytest.raises(error, match="stop"):
        run(plan, local_shards(model), Keyed(0))
    assert state(model) == before


@pytest.mark.parametrize("form", ["safetensors", "zip"])
@pytest.mark.parametrize("left", [0, 1000, 4_000_000])
def test_a_file_that_is_cut_once_it_is_planned(left: int, form: str, tmp_path: Path) -> None:
    """Also one of which the first tensors are still there: none of its pages is touched."""
    path = write(form, tmp_path, values())
    model, plan = planned(path)
    before = state(model)
    os.truncate(path, left)
    with pytest.raises(TorchinitError, match=r"cut short|is empty|complete zip file|has been written to"):
        run(plan, local_shards(model), Keyed(0))
    assert state(model) == before


def test_an_error_of_another_rank(tmp_path: Path) -> None:
    model, plan = planned(write("safetensors", tmp_path, values()))
    before = state(model)

    def agree(texts: Sequence[str]) -> list[str]:
        return [*texts, "rank 1: 0.weight: holds NaN"]

    with pytest.raises(TorchinitError, match=r"rank 1: 0\.weight: holds NaN"):
        run(plan, local_shards(model), Keyed(0), agree=agree)
    assert state(model) == before


def test_what_is_well_is_loaded(tmp_path: Path) -> None:
    """By the same ways: else the tests above would prove nothing."""
    held = values()
    model, _ = planned(path := write("safetensors", tmp_path, held))
    initialize(model, Rule(Name("**"), Pretrained(str(path))))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in held.items())


# --- what cannot be undone is told -----------------------------------------------------------------------------------


class _Failing:
    """A stand-in for the copy of a large tensor, which ends at the second one."""

    def __init__(self, error: type[BaseException]) -> None:
        self.left, self.error = 1, error

    def __call__(self, values: Tensor, out: Tensor) -> None:
        if not self.left:
            raise self.error("stop")
        self.left -= 1
        out.copy_(values)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_of_the_copy(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note has every name once, and those that it calls written are."""
    names = [f"{at}.weight" for at in range(4)]
    held = {name: torch.rand(5_000_000) for name in names}
    model = nn.Sequential(*(nn.PReLU(5_000_000) for _ in names))
    plan = make_plan(sites(model), [Rule(Name("**"), Pretrained(str(write("safetensors", tmp_path, held))))])
    monkeypatch.setattr(tensor_fill, "transfer", _Failing(error))
    with pytest.raises(error, match="stop") as caught:
        run(plan, local_shards(model), Keyed(0))
    told = "each of the others holds its old values, new ones or both: 1.weight, 2.weight, 3.weight"
    assert caught.value.__notes__ == [f"1 of 4 sites had been written by then (0.weight); {told}"]
    state = model.state_dict()
    assert [name for name in names if torch.equal(state[name], held[name])] == ["0.weight"]


def test_a_file_that_is_written_to_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("safetensors", tmp_path, values())
    model, plan = planned(path)
    monkeypatch.setattr(tensor_fill, "transfer", lambda values, out: os.truncate(path, 1000))
    with pytest.raises(TorchinitError, match="has been written to since it was opened") as caught:
        run(plan, local_shards(model), Keyed(0))
    assert "0 of 5 sites had been written by then; each of the others" in caught.value.__notes__[0]
