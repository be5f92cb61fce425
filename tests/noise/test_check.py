"""The check of a device, and the way by which another device than the CPU gets its values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.noise.strategies import DISTRIBUTIONS, DTYPES, Boxed, boxes
from torchinit.initializers import Normal
from torchinit.model import Shard
from torchinit.noise import Distribution, Keyed, check
from torchinit.noise.distributions import resolve
from torchinit.noise.engines import dispatch, torch_engine
from torchinit.noise.engines.tasks import FillTask


class Elsewhere(Tensor):
    """A tensor that says it lies on a GPU, whose operations are carried out on the host, and noted."""

    held: Tensor
    operations: list[str]

    @staticmethod
    def at(held: Tensor, operations: list[str]) -> Elsewhere:
        self: Elsewhere = Tensor._make_wrapper_subclass(Elsewhere, held.shape, strides=held.stride(), dtype=held.dtype)
        self.held, self.operations = held, operations
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        operations = next(arg.operations for arg in args if isinstance(arg, Elsewhere))
        operations.append(function._schema.name.removeprefix("aten::"))
        args, kwargs = tree_map(lambda arg: arg.held if isinstance(arg, Elsewhere) else arg, (args, kwargs or {}))
        result = function(*args, **kwargs)
        return tree_map(lambda out: Elsewhere.at(out, operations) if isinstance(out, Tensor) else out, result)


def task_for(out: Tensor, case: tuple[Distribution, tuple[float, ...]], box: Boxed, dtype: torch.dtype) -> FillTask:
    return FillTask(out, box.shape, box.start, bytes(range(16)), resolve(*case, dtype))


@given(st.sampled_from(DISTRIBUTIONS), st.sampled_from(DTYPES), boxes(), st.integers(1, 300), st.booleans())
def test_another_device_has_the_bits_of_the_host(
    case: tuple[Distribution, tuple[float, ...]], dtype: torch.dtype, box: Boxed, most: int, turned: bool
) -> None:
    expected, held = torch.empty(box.size, dtype=dtype), torch.zeros(box.size, dtype=dtype)
    held = held.mT.contiguous().mT if turned and held.dim() > 1 else held
    torch_engine.fill(task_for(expected, case, box, dtype))
    operations: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "CHUNK", most)
        dispatch.fill([task_for(Elsewhere.at(held, operations), case, box, dtype)])
    assert held.flatten().view(torch.uint8).equal(expected.flatten().view(torch.uint8))
    assert set(operations) <= {"slice", "copy_", "alias", "detach"}  # nothing is computed there
    assert operations.count("copy_") >= math.ceil(held.numel() / most)


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 100))
def test_chunks_cover_a_box_once(shape: list[int], most: int) -> None:
    seen = torch.zeros(shape, dtype=torch.int64)
    for box in dispatch.chunks(tuple(shape), most):
        seen[tuple(slice(first, first + size) for first, size in box)] += 1
        assert math.prod(size for _, size in box) <= most
    assert bool((seen == 1).all())


def test_the_torch_engine_draws_elsewhere_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    assert not dispatch.draws_on(device)
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert dispatch.draws_on(device)
    monkeypatch.delenv(dispatch.VARIABLE)
    monkeypatch.setattr(dispatch, "PROVEN", frozenset({"cuda"}))
    assert dispatch.draws_on(device)
    assert not dispatch.draws_on(torch.device("xpu"))


def test_a_fill_for_another_device() -> None:
    held, expected = torch.zeros(40, 30), torch.zeros(40, 30)
    for local in (Elsewhere.at(held, []), expected):
        Normal(std=0.02).write(Shard("w", local, (40, 30), (0, 0)), Keyed(3))
    assert torch.equal(held, expected)
    assert held.std() > 0


def test_the_check_of_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", "cpu", "--most", "2000", "--json", str(tmp_path / "cpu.json")]) == 0
    said, kept = capsys.readouterr().out, json.loads((tmp_path / "cpu.json").read_text("utf-8"))
    rows = len(check.DRAWS) * 4 * (4 * 2)  # dtypes; two layouts for each of the four matrices
    for path in check.PATHS:
        mine = [row for row in kept["compared"] if row["path"] == path]
        assert len(mine) == rows
        assert f"{path}: {rows} of {rows} draws have the bits of the host's engine" in said
        mean, std = kept["moments"][path]
        n = 1 << 20
        assert abs(mean) < 6 / math.sqrt(n)
        assert abs(std - 1) < 6 / math.sqrt(2 * n)
    assert [row["elements"] for row in kept["timed"]] == [1024] * 4
    assert all(time > 0 for row in kept["timed"] for time in row["nanoseconds"].values())


def test_the_check_finds_wrong_bits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def off_by_a_bit(task: FillTask) -> None:
        dispatch.fill_by_copy(task)
        if task.out.dtype == torch.bfloat16 and task.out.numel():
            task.out[(0,) * task.out.dim()] *= -1

    def refused(task: FillTask) -> None:
        raise RuntimeError("'remainder' is not implemented here")

    monkeypatch.setattr(check, "PATHS", {"torchinit": off_by_a_bit, "torch operations": refused})
    monkeypatch.setattr(check, "timings", lambda *_: [])
    monkeypatch.setattr(check, "moments", lambda _: dict.fromkeys(check.PATHS, (0.0, 1.0)))
    assert check.main(["--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "uniform(-0.1, 0.1) bfloat16, whole: 1 of 135971 elements differ" in said
    assert "uniform(-0.1, 0.1) float32, whole: 'remainder' is not implemented here" in said


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for device, text in (
        ("cuda:77", "error: --device cuda:77: "),
        ("abacus", "error: --device abacus: Expected one of"),
    ):
        with pytest.raises(SystemExit, match="2"):
            check.main(["--device", device])
        assert text in capsys.readouterr().err
