"""Torch operations, NumPy and the kernel with each instruction set: the same bits, for everything that can be drawn."""

from __future__ import annotations

import ctypes.util
import logging
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.noise.strategies import DISTRIBUTIONS, DTYPES, Boxed, boxes, destinations
from torchinit.errors import RunError
from torchinit.model.shards import Shard
from torchinit.noise import Distribution, DrawRequest, Keyed
from torchinit.noise.csrc import build
from torchinit.noise.distributions import Draw, DrawKind, resolve
from torchinit.noise.engines import dispatch, kernel, torch_engine
from torchinit.noise.engines.tasks import FillTask, is_stretch, strides
from torchinit.noise.keyed import STREAM, derive

What = tuple[Distribution, tuple[float, ...]]
Engine = Callable[[FillTask], None]

LOADED = kernel.load()
needs_kernel = pytest.mark.skipif(LOADED is None, reason="no compiled kernel here")
KERNELS = LOADED.instruction_sets() if LOADED else {}
HERE = Path(build.__file__).parent


def of(compiled: kernel.Kernel, threads: int = 1) -> Engine:
    return lambda task: compiled.fill([task], threads)


ENGINES: dict[str, Engine] = {"numpy": torch_engine.fill_by_numpy, **{name: of(one) for name, one in KERNELS.items()}}
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())


def make_task(what: What, dtype: torch.dtype, box: Boxed, out: torch.Tensor) -> FillTask:
    return FillTask(out, box.shape, box.start, derive(1, "weight"), resolve(*what, dtype))


def raw(out: torch.Tensor) -> torch.Tensor:
    """The bits, so that nothing passes for equal that is not."""
    return torch.empty(out.numel(), dtype=out.dtype).copy_(out.flatten()).view(torch.uint8)


@every_engine
@given(data=st.data(), box=boxes(), what=st.sampled_from(DISTRIBUTIONS), dtype=st.sampled_from(DTYPES))
def test_bits_of_any_box_in_any_layout(
    engine: Engine, data: st.DataObject, box: Boxed, what: What, dtype: torch.dtype
) -> None:
    expected = torch.empty(box.size, dtype=dtype)
    torch_engine.fill(make_task(what, dtype, box, expected))
    out = data.draw(destinations(box.size, dtype))
    engine(make_task(what, dtype, box, out))
    assert torch.equal(raw(out), raw(expected))


@every_engine
@pytest.mark.parametrize("what", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_many_elements(engine: Engine, what: What, dtype: torch.dtype) -> None:
    n = 70_001
    box = Boxed((n + 13,), (13,), (n,))
    out, expected = torch.empty(n, dtype=dtype), torch.empty(n, dtype=dtype)
    torch_engine.fill(make_task(what, dtype, box, expected))
    engine(make_task(what, dtype, box, out))
    assert torch.equal(raw(out), raw(expected))


@needs_kernel
@settings(max_examples=20)
@given(
    n=st.integers(0, 1_000_000),
    skip=st.integers(0, 70),
    what=st.sampled_from(DISTRIBUTIONS[:9]),
    threads=st.integers(1, 5),
)
@example(n=1_000_000, skip=0, what=DISTRIBUTIONS[0], threads=2)
def test_bits_of_any_size_and_thread_count(n: int, skip: int, what: What, threads: int) -> None:
    box = Boxed((n + skip,), (skip,), (n,))
    expected = torch.empty(n)
    torch_engine.fill_by_numpy(make_task(what, torch.float32, box, expected))
    for compiled in KERNELS.values():
        out = torch.empty(n)
        of(compiled, threads)(make_task(what, torch.float32, box, out))
        assert torch.equal(raw(out), raw(expected))


@every_engine
@pytest.mark.parametrize("first", [2**34 - 700, 2**63 - 700, 2**64 - 1500])
def test_bits_where_counters_carry(engine: Engine, first: int) -> None:
    box = Boxed((2**62, 4), (first // 4, 0), (370, 4))
    out, expected = torch.empty(370, 4), torch.empty(370, 4)
    torch_engine.fill(make_task(DISTRIBUTIONS[0], torch.float32, box, expected))
    engine(make_task(DISTRIBUTIONS[0], torch.float32, box, out))
    assert torch.equal(raw(out), raw(expected))


@every_engine
def test_words(engine: Engine) -> None:
    box = Boxed((5000,), (0,), (5000,))
    out = torch.empty(5000)
    task = FillTask(out, box.shape, box.start, derive(0, "w"), Draw(DrawKind.WORDS))
    if engine is torch_engine.fill_by_numpy:
        drawn = torch_engine.words(task, 0, 5000, torch_engine.block_by_numpy)
    else:
        engine(task)
        drawn = out.view(torch.int32).long() & 0xFFFFFFFF
    assert torch.equal(drawn, torch_engine.words(task, 0, 5000))


@every_engine
def test_every_float16_there_is(engine: Engine) -> None:
    """Scales that put values among subnormals, normals and beyond the largest: each rounding is torch's."""
    n = 20_000
    box = Boxed((n,), (0,), (n,))
    for scale in (1e-8, 3e-8, 1e-7, 1e-5, 1e-3, 1.0, 1e4, 1e5):
        for dtype in (torch.float16, torch.bfloat16):
            single, out = torch.empty(n), torch.empty(n, dtype=dtype)
            what: What = ("normal", (0.0, scale))
            torch_engine.fill(make_task(what, torch.float32, box, single))
            engine(make_task(what, dtype, box, out))
            assert torch.equal(raw(out), raw(single.to(dtype)))


@every_engine
@pytest.mark.parametrize("params", [(0.0, 1e-38), (0.0, 1e-44), (1e-38, 1e-39)])
def test_subnormal_values(engine: Engine, params: tuple[float, float]) -> None:
    box = Boxed((1000,), (0,), (1000,))
    out, expected = torch.empty(1000), torch.empty(1000)
    torch_engine.fill(make_task(("normal", params), torch.float32, box, expected))
    engine(make_task(("normal", params), torch.float32, box, out))
    assert torch.equal(raw(out), raw(expected))


@every_engine
def test_values_that_rounding_puts_below_a_bound_of_zero(engine: Engine) -> None:
    box = Boxed((1 << 18,), (0,), (1 << 18,))
    what: What = ("truncated", (50.0, 1000.0, 0.0, 1.0))
    out, expected = torch.empty(1 << 18), torch.empty(1 << 18)
    torch_engine.fill(make_task(what, torch.float32, box, expected))
    engine(make_task(what, torch.float32, box, out))
    assert (expected == 0).any()
    assert not expected.signbit().any()
    assert torch.equal(raw(out), raw(expected))


@needs_kernel
def test_kernel_keeps_subnormals_where_torch_flushes_them() -> None:
    box = Boxed((1000,), (0,), (1000,))
    task = make_task(("normal", (0.0, 1e-39)), torch.float32, box, torch.empty(1000))
    engine = of(next(iter(KERNELS.values())))
    # The numbers that the job is packed from are the host's, and cached.
    engine(task)
    task.out.zero_()
    assert torch.set_flush_denormal(True)
    try:
        engine(task)
        still_flushing = float(torch.tensor([1e-39]) * 1.0) == 0
    finally:
        torch.set_flush_denormal(False)
    assert still_flushing
    assert int((task.out != 0).sum()) > 990


class TestBatches:
    def test_overlapping_jobs_take_effect_in_their_order(self) -> None:
        n = 300_000
        base, again = torch.empty(n), torch.empty(n)
        jobs = [
            DrawRequest(Shard.whole("a", base), "normal", (0.0, 1.0)),
            DrawRequest(Shard.whole("b", base[1000:200_000]), "uniform", (0.0, 1.0)),
            DrawRequest(Shard.whole("c", base[5000:6000]), "sign", ()),
        ]
        Keyed(0).fill_many(jobs)
        for name, part, what in (
            ("a", again, DISTRIBUTIONS[0]),
            ("b", again[1000:200_000], ("uniform", (0.0, 1.0))),
            ("c", again[5000:6000], ("sign", ())),
        ):
            torch_engine.fill(
                FillTask(part, tuple(part.shape), (0,), derive(0, name), resolve(what[0], what[1], part.dtype))
            )
        assert torch.equal(base, again)

    def test_interleaved_columns_in_one_batch(self) -> None:
        whole, base = torch.empty(3000, 30), torch.empty(3000, 30)
        Keyed(0).fill(Shard.whole("qkv", whole), "normal", (0.0, 1.0))
        shards = [Shard("qkv", base[:, i : i + 10], (3000, 30), (0, i)) for i in (0, 10, 20)]
        Keyed(0).fill_many(DrawRequest(shard, "normal", (0.0, 1.0)) for shard in shards)
        assert torch.equal(base, whole)

    def test_engines_take_turns_in_one_batch(self) -> None:
        outs: list[torch.Tensor] = [
            torch.empty(100),
            torch.empty(100, dtype=torch.float8_e5m2),
            torch.empty(1, 2, 1, 2, 5, 5),
            torch.empty(0),
            torch.empty(10, 10).t(),
        ]
        noise = Keyed(0)
        noise.fill_many(DrawRequest(Shard.whole("w", out), "normal", (0.0, 1.0)) for out in outs)
        for out in (outs[0], outs[2], outs[4]):
            assert torch.equal(out.flatten(), outs[0])
        assert torch.equal(outs[1].float(), outs[0].to(torch.float8_e5m2).float())


def test_lazily_negated_view_gets_the_values_too() -> None:
    z = torch.zeros(20, dtype=torch.complex64)
    negated = z.conj().imag
    assert negated.is_neg()
    Keyed(0).fill(Shard.whole("w", negated), "normal", (0.0, 1.0))
    expected = torch.empty(20)
    Keyed(0).fill(Shard.whole("w", expected), "normal", (0.0, 1.0))
    assert torch.equal(negated, expected)


@pytest.mark.parametrize(
    "out",
    [torch.zeros(1).expand(5), torch.zeros(3, 1).expand(3, 4), torch.zeros(10).as_strided((4, 4), (2, 1))],
)
def test_overlapping_elements_are_refused(out: torch.Tensor) -> None:
    with pytest.raises(RunError, match="w: several of its elements share memory"):
        Keyed(0).fill(Shard.whole("w", out), "normal", (0.0, 1.0))


def test_unusual_strides_that_do_not_overlap_are_taken() -> None:
    out = torch.zeros(10).as_strided((2, 3), (3, 2))
    expected = torch.empty(2, 3)
    Keyed(0).fill(Shard.whole("w", out), "normal", (0.0, 1.0))
    Keyed(0).fill(Shard.whole("w", expected), "normal", (0.0, 1.0))
    assert torch.equal(out, expected)


@needs_kernel
@pytest.mark.parametrize("lines", [1, 5000])
def test_read_only_memory_is_refused(tmp_path: Path, lines: int) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(4 * lines))
    array = np.memmap(file, np.float32, "r")
    with warnings.catch_warnings():
        # Torch says so, too, but once a process only.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    with pytest.raises(RunError, match=rf"shape \[{lines}\] lies in memory that cannot be written"):
        Keyed(0).fill(Shard.whole("w", tensor), "normal", (0.0, 1.0))
    assert not tensor.any()


@needs_kernel
@pytest.mark.parametrize("place", [0, 3, 299, 400])
def test_a_batch_with_read_only_memory_changes_nothing(tmp_path: Path, place: int) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(4000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(np.memmap(file, np.float32, "r"))
    outs = [torch.full((7,), 0.1) for _ in range(400)]
    outs.insert(place, tensor)
    with pytest.raises(RunError, match=r"shape \[1000\] lies in memory that cannot be written"):
        Keyed(0).fill_many(DrawRequest(Shard.whole(str(n), out), "normal", (0.0, 1.0)) for n, out in enumerate(outs))
    assert not tensor.any()
    assert all(bool((out == 0.1).all()) for out in outs if out is not tensor)


def _draw_in_child(queue: multiprocessing.Queue[bytes]) -> None:
    out = torch.empty(600_000)
    Keyed(0).fill(Shard.whole("w", out), "normal", (0.0, 1.0))
    queue.put(out.numpy().tobytes())


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_fork_after_threads_were_used() -> None:
    out = torch.empty(600_000)
    Keyed(0).fill(Shard.whole("w", out), "normal", (0.0, 1.0))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_draw_in_child, args=(queue,))
    child.start()
    drawn = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert drawn == out.numpy().tobytes()


class TestLoading:
    def test_no_library_is_one_line_in_the_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "torchinit"):
            assert kernel.load.__wrapped__(tmp_path / "none.so") is None
        assert [record.name for record in caplog.records] == ["torchinit"]
        assert "no compiled kernel" in caplog.text

    def test_some_other_library_is_not_used(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        other = Path(ctypes.util.find_library("c") or "libc.so.6")
        with caplog.at_level(logging.INFO, "torchinit"):
            assert kernel.load.__wrapped__(other) is None
        assert "no compiled kernel" in caplog.text

    @needs_kernel
    def test_other_version_is_not_used(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(kernel, "ABI", "torchinit-stream-2/abi-2")
        with caplog.at_level(logging.INFO, "torchinit"):
            assert kernel.load.__wrapped__() is None
        assert "is of another version, torchinit-stream-1/abi-7, not torchinit-stream-2/abi-2" in caplog.text

    def test_versions_go_together(self) -> None:
        assert kernel.ABI.startswith(STREAM + "/")
        assert f'"{kernel.ABI}"' in (HERE / "kernel.h").read_text()
        assert kernel.LIBRARY.name == build.LIBRARY

    @needs_kernel
    def test_best_instruction_set_is_chosen(self) -> None:
        assert LOADED is not None
        assert LOADED.name == list(KERNELS)[-1]
        assert "plain" in KERNELS

    @pytest.mark.parametrize("wanted", ["torch", "numpy", *KERNELS])
    def test_engine_can_be_named(self, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
        monkeypatch.setenv(dispatch.VARIABLE, wanted)
        chosen = dispatch.chosen_kernel.__wrapped__()
        host = dispatch.host_engine.__wrapped__()
        assert (chosen.name if chosen else None) == (wanted if wanted in KERNELS else None)
        assert host is (torch_engine.fill if wanted == "torch" else torch_engine.fill_by_numpy)

    def test_import_brings_no_numpy_arrays(self) -> None:
        code = "import sys, torch; sys.modules['numpy'] = None; import torchinit.noise.check"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestBuilding:
    def test_compiler_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "false")
        with pytest.raises(build.BuildError, match="false -std=gnu11"):
            build.build(tmp_path / "k.so")
        assert not list(tmp_path.iterdir())

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "no-such-compiler")
        monkeypatch.setenv("PATH", "")
        with pytest.raises(build.BuildError, match="no C compiler"):
            build.compiler()

    def test_system_without_posix_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build, "SYSTEM", "nt")
        with pytest.raises(build.BuildError, match="the kernel needs POSIX threads"):
            build.build(Path(tmp_path) / "k.so")

    def test_failure_ends_the_command_and_says_that_it_is_no_harm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "false")
        monkeypatch.setattr(build, "is_current", lambda library: False)
        with pytest.raises(SystemExit, match="kernel not built, the slower engines serve instead"):
            build.main()

    def test_other_machines_get_the_plain_set(self) -> None:
        assert list(build.instruction_sets("riscv64")) == ["plain"]
        assert list(build.instruction_sets("x86_64")) == ["plain", "sse4", "avx2", "avx512"]


@given(box=boxes(most=6))
def test_merged_axes_walk_through_the_box(box: Boxed) -> None:
    base = torch.arange(int(np.prod(box.shape)) if box.shape else 1).view(box.shape)
    part = base[box.slices]
    if part.numel() == 0:
        return
    axes = kernel.merge(box.size, strides(box.shape), part.stride())
    assert axes[0][1] == 1
    walked = torch.zeros(1, dtype=torch.int64) + int(part.flatten()[0])
    for size, step, _ in axes:
        walked = (torch.arange(size)[:, None] * step + walked).flatten()
    assert torch.equal(walked, part.flatten())
    assert is_stretch(box.size, box.shape) == (part.flatten().diff() == 1).all() or part.numel() == 1


@pytest.mark.parametrize("fill", [torch_engine.fill, torch_engine.fill_by_numpy])
def test_the_default_device_does_not_matter(fill: Engine) -> None:
    box = Boxed((9, 4), (2, 1), (5, 2))
    out, expected = torch.empty(5, 2), torch.empty(5, 2)
    torch_engine.fill(make_task(DISTRIBUTIONS[0], torch.float32, box, expected))
    with torch.device("meta"):
        fill(make_task(DISTRIBUTIONS[0], torch.float32, box, out))
    assert torch.equal(out, expected)
