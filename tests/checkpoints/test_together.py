"""Loads of many small tensors at once: a file is asked for once a run, and what holds of one by one holds of all."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.checkpoints.files import write
from torchinit import CheckpointError, Constant, Name, Pretrained, Rule, RunError, initialize, sites
from torchinit.checkpoints import Loaded
from torchinit.checkpoints import open as opening
from torchinit.checkpoints.adapters import Transpose
from torchinit.checkpoints.formats.detect import weights_in
from torchinit.checkpoints.open import InMemory
from torchinit.initializers.base import why_not
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.source import Resolution, SourceInitializer
from torchinit.initializers.statistics import magnitude, magnitudes
from torchinit.model import Shard, Site
from torchinit.noise import Keyed
from torchinit.plans import Step, make_plan

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2)
ODD = (0.0, -1.5, 7e4, -7e4, 1e39, math.inf, -math.inf, math.nan)


def net(layers: int = 20, width: int = 3) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def whole(source: object, **options: Any) -> Rule:
    return Rule(Name("**"), Pretrained(source, **options))  # type: ignore[arg-type]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor, empty, small or on either side of what is done many at a time, with an odd value somewhere in it."""
    numel = draw(st.sampled_from((0, 1, 2, 17, (1 << 13) - 1, 1 << 13, (1 << 13) + 1)))
    values = torch.linspace(-2, 2, numel, dtype=torch.float64)
    if numel:
        values[draw(st.integers(0, numel - 1))] = draw(st.sampled_from(ODD))
    return values.to(draw(st.sampled_from((*FLOATS, torch.int64))) if values.isfinite().all() else torch.float64)


@given(
    st.lists(tensors(), min_size=1, max_size=6),
    st.sampled_from((*FLOATS, None)),
    st.booleans(),
    st.sampled_from((None, *FLOATS[:4])),
)
def test_many_are_refused_and_written_as_one_by_one(
    values: list[Tensor], target: torch.dtype | None, finite: bool, rounded: torch.dtype | None
) -> None:
    state = {str(at): tensor for at, tensor in enumerate(values)}
    source = InMemory(state)

    def loads() -> list[tuple[Loaded, Shard]]:
        kinds = {
            key: target if target and tensor.is_floating_point() else tensor.dtype for key, tensor in state.items()
        }
        blank = {key: torch.full(tensor.shape, 3, dtype=kinds[key]) for key, tensor in state.items()}
        fills = {key: Loaded(source, (key,), dtype=rounded, finite=finite) for key in state}
        return [(fills[key], Shard.whole(key, blank[key])) for key in state]

    pairs = loads(), loads()
    reasons = [why_not(fill.prepare, shard) for fill, shard in pairs[0]]
    assert Loaded.prepare_all(pairs[1]) == reasons
    for fill, shard in pairs[0]:
        fill.write(shard, Keyed(0))
    Loaded.write_all(pairs[1], Keyed(0))
    for (_, alone), (_, among) in zip(*pairs, strict=True):
        assert alone.local.view(torch.uint8).equal(among.local.view(torch.uint8))


@given(st.lists(tensors(), min_size=1, max_size=6))
def test_magnitudes_are_those_of_each(values: list[Tensor]) -> None:
    floats = [tensor for tensor in values if tensor.is_floating_point()]
    assert str(magnitudes(floats)) == str([magnitude(tensor) for tensor in floats])


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "npz", "sharded-safetensors"])
def test_a_file_is_asked_for_once_a_plan_and_once_a_run(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = write(form, tmp_path, net().state_dict()), list[str]()

    def spy(source: str) -> tuple[str, tuple[str, ...]]:
        asked.append(source)
        return weights_in(source)

    monkeypatch.setattr(opening, "weights_in", spy)
    initialize(net(), whole(path))
    assert asked == [str(path)] * 2


def test_each_that_is_wrong_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    state = net().state_dict()
    state["7.bias"][1], state["19.weight"][2, 2] = math.nan, math.inf
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RunError) as error:
        initialize(model, whole(write("safetensors", tmp_path, state)))
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["7.bias", "19.weight"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_one_of_many_that_cannot_be_read_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchinit.checkpoints.formats.safetensors import SafetensorsCheckpoint

    path, read = write("safetensors", tmp_path, net(3).state_dict()), SafetensorsCheckpoint._read

    def broken(self: SafetensorsCheckpoint, key: str, box: Any) -> Tensor:
        if key == "1.bias":
            raise CheckpointError("1.bias is on a bad sector")
        return read(self, key, box)

    monkeypatch.setattr(SafetensorsCheckpoint, "_read", broken)
    with pytest.raises(RunError) as error:
        initialize(net(3), whole(path))
    assert [*error.value.problems] == ["1.bias: 1.bias is on a bad sector"]


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_changes_between_check_and_write(is_replaced: bool, tmp_path: Path) -> None:
    ones = {name: torch.ones_like(tensor) for name, tensor in net().state_dict().items()}
    path = write("safetensors", tmp_path, ones)
    other = tmp_path / "other"
    other.write_bytes(write("safetensors", tmp_path, {name: 2 * one for name, one in ones.items()}).read_bytes())
    write("safetensors", tmp_path, ones)
    model = net(21)
    recipe = [Rule(Name("0.*"), Constant(5.0)), Rule(Name("1.*"), Pretrained(path))]

    def change(step: Step) -> None:
        if step.site.name == "0.bias" and is_replaced:
            other.replace(path)
        elif step.site.name == "0.bias":
            os.truncate(path, 40)

    def call() -> None:
        initialize(model, recipe, seed=0, progress=change)

    if is_replaced:  # the bytes that were checked are written
        call()
        assert torch.equal(model.get_parameter("1.weight"), ones["1.weight"])
    else:
        with pytest.raises(CheckpointError, match=r"has been written to since it was opened; open it again"):
            call()


def test_small_tensors_through_an_adapter_and_as_they_are(tmp_path: Path) -> None:
    state = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.ones(3)}
    model = nn.Sequential(nn.Linear(2, 3))
    initialize(model, whole(write("safetensors", tmp_path, state), adapt={"0.weight": Transpose()}))
    assert torch.equal(model.get_parameter("0.weight"), state["0.weight"].T)
    assert torch.equal(model.get_parameter("0.bias"), state["0.bias"])
    versions = [parameter._version for parameter in model.parameters()]
    initialize(model, whole(state, adapt={"0.weight": Transpose()}))
    assert all(now._version > before for now, before in zip(model.parameters(), versions, strict=True))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("adapted", [0, 1])
def test_the_later_of_two_loads_wins(adapted: int, seed: int | None) -> None:
    states = [{"0.weight": torch.full((2, 2), value), "0.bias": torch.full((2,), value)} for value in (1.0, 2.0)]
    adapts = [{"**.weight": Transpose()} if at == adapted else {} for at in range(2)]
    rules = [
        Rule(Name("**"), Pretrained(state, adapt=adapt, lock=False))
        for state, adapt in zip(states, adapts, strict=True)
    ]
    model = net(1, 2)
    initialize(model, rules, seed=seed)
    assert {value for tensor in model.parameters() for value in tensor.flatten().tolist()} == {2.0}


def test_small_tensors_under_inference_mode() -> None:
    model, state = net(), {name: torch.ones_like(tensor) for name, tensor in net().state_dict().items()}
    with torch.inference_mode():
        initialize(model, whole(state))
    assert all(tensor.eq(1).all() for tensor in model.parameters())


def test_a_plan_hashes_a_source_a_few_times_however_many_keys_it_has() -> None:
    """A dict in memory is told by the identities of all its tensors, so each hash takes as long as it has keys."""
    times = 0

    class Source(str):
        __slots__ = ()

        def __hash__(self) -> int:
            nonlocal times
            times += 1
            return super().__hash__()

    @dataclass(frozen=True)
    class Reading(SourceInitializer):
        def resolve_all(self, pairs: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Resolution:
            sizes = {view.name: view.numel for view, _ in pairs}
            fills = {name: Constant(0.0) for name in sizes}
            return Resolution(
                fills, account=LoadReport("a source", loaded=tuple(sizes)), used={Source("a source"): sizes}
            )

    make_plan(sites(net(500)), [Rule(Name("**"), Reading())]).check()
    assert 0 < times < 10
