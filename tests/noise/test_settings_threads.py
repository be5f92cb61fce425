"""Threads: the bits of one thread on any number of them, and everybody's number as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

from tests.initializers.test_elementwise import assert_same_bits, drawn
from tests.processes import on_ranks, results
from torchinit import Name, Normal, Orthogonal, Pretrained, Rule, fingerprint, initialize, materialize, seeded
from torchinit.checkpoints import adapters
from torchinit.initializers import Blockwise, DeltaOrthogonal, Fill, Sparse
from torchinit.noise.settings import on_one_thread, one_thread

ALL = Name("**")


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(torch.uint8)


def assert_equal_on_any_number(make: Any) -> None:
    """The same bits from 1, 2 and 4 threads, and from 2 that are awake already."""
    made = []
    for number in (1, 2, 4, 2):
        with threads(number):
            made.append(bits(make()))
            assert torch.get_num_threads() == number
    assert all(torch.equal(made[0], other) for other in made[1:])


# --- whole matrices ----------------------------------------------------------------------------------------

FILLS: list[tuple[Fill, tuple[int, ...]]] = [
    (Orthogonal(), (3, 5)),
    (Orthogonal(), (33, 65)),
    (Orthogonal(2.0), (130, 70)),
    (Orthogonal(axis=1), (40, 60, 3)),
    (Orthogonal(), (256, 256)),
    (DeltaOrthogonal(), (90, 70, 3, 3)),
    (Blockwise((Orthogonal(), Orthogonal()), (60, 70)), (130, 65)),
    (Sparse(0.3), (200, 100)),
]


@pytest.mark.parametrize(("fill", "shape"), FILLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
def test_fills_have_the_same_bits_for_any_number_of_threads(
    fill: Fill, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    assert_equal_on_any_number(lambda: drawn(fill, shape, dtype))


@pytest.mark.parametrize("shape", [(1000, 1000), (1500, 200), (200, 1500)])
def test_large_matrices(shape: tuple[int, ...]) -> None:
    assert_equal_on_any_number(lambda: drawn(Orthogonal(), shape, torch.float64))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_without_a_seed_it_is_what_torch_does_with_as_many(number: int) -> None:
    """In float64, where the bits of two threads are not those of one."""
    with threads(number):
        for shape in ((33, 65), (130, 70)):
            tensor = torch.zeros(shape, dtype=torch.float64)
            assert_same_bits(Orthogonal(0.5), lambda t: nn.init.orthogonal_(t, 0.5), tensor)


def test_in_inference_mode() -> None:
    with threads(2):
        expected = drawn(Orthogonal(), (33, 65), torch.float64)
        with torch.inference_mode():
            assert torch.equal(drawn(Orthogonal(), (33, 65), torch.float64), expected)


def test_orthogonal_under_seeded_is_the_fill() -> None:
    ours = nn.Linear(65, 33, bias=False, dtype=torch.float64)
    with threads(3), torch.no_grad(), seeded(ours, 0):
        nn.init.orthogonal_(ours.weight)
    with threads(1):
        theirs = nn.Linear(65, 33, bias=False, dtype=torch.float64)
        initialize(theirs, Rule(ALL, Orthogonal()), seed=0)
    assert torch.equal(ours.weight, theirs.weight)


PRINTS = """
import torch, torchinit
layer = torch.nn.Linear(257, 300, bias=False, dtype=torch.float64)
torchinit.initialize(layer, torchinit.Rule(torchinit.Name("**"), torchinit.Orthogonal()), seed=0)
print(torchinit.fingerprint(layer).total)
"""


@pytest.mark.parametrize("setting", ["TORCHINIT_ENGINE=torch", "TORCHINIT_ENGINE=numpy", "OMP_NUM_THREADS=1"])
def test_another_process_has_the_same(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another engine, or where the environment gives one thread, as torchrun does."""
    layer = nn.Linear(257, 300, bias=False, dtype=torch.float64)
    with threads(2):
        initialize(layer, Rule(ALL, Orthogonal()), seed=0)
    monkeypatch.setenv(*setting.split("="))
    told = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == fingerprint(layer).total


class Wide(nn.Module):
    """Matrices in double precision, where the bits of two threads are not those of one."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(70, 131, dtype=torch.float64)
        self.wide = nn.Linear(131, 65, dtype=torch.float64)
        self.kernel = nn.Conv2d(70, 90, 3, dtype=torch.float64)


WIDE = [Rule(ALL, Normal()), Rule(Name("*.weight"), Orthogonal()), Rule(Name("kernel.weight"), DeltaOrthogonal())]


def sharded(rank: int) -> str:
    """The digest of the model over all ranks, each of which has one thread as torchrun gives it."""
    assert torch.get_num_threads() == 1
    with torch.device("meta"):
        model = Wide()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    materialize(model, WIDE, seed=3)
    return fingerprint(model).total


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_many_ranks_of_one_thread_have_the_bits_of_one_process_with_all(world: int, tmp_path: Path) -> None:
    one = Wide()
    with threads(2):
        initialize(one, WIDE, seed=3)
    assert results(on_ranks(world, sharded, tmp_path)) == [fingerprint(one).total] * world


# --- other code that computes ------------------------------------------------------------------------------


class Turned(nn.Module):
    """A parametrization that keeps the values in another basis."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, kept: Tensor) -> Tensor:
        return kept.matmul(torch.ones(len(kept), len(kept), dtype=kept.dtype).tril().mT)

    def right_inverse(self, values: Tensor) -> Tensor:
        self.seen.append(torch.get_num_threads())
        solved: Tensor = torch.linalg.solve(torch.ones(len(values), len(values), dtype=values.dtype).tril(), values.mT)
        return solved.mT


def test_parametrizations_compute_on_one_thread_too() -> None:
    def kept() -> Tensor:
        layer = parametrizations.orthogonal(nn.Linear(130, 130, dtype=torch.float64), orthogonal_map="householder")
        turned = nn.Linear(90, 90, dtype=torch.float64)
        register_parametrization(turned, "weight", Turned())
        model = nn.Sequential(layer, turned)
        initialize(model, [Rule(ALL, Normal()), Rule(Name("0.weight"), Orthogonal())], seed=0)
        return torch.cat([one.flatten() for one in model.state_dict().values() if one.is_floating_point()])

    assert_equal_on_any_number(kept)


def test_without_a_seed_parametrizations_are_left_alone() -> None:
    layer, turned = nn.Linear(4, 4), Turned()
    register_parametrization(layer, "weight", turned)
    turned.seen.clear()
    with threads(2):
        initialize(layer, Rule(ALL, Normal()))
        initialize(layer, Rule(ALL, Normal()), seed=0)
    assert turned.seen == [2, 1]


def test_adapters_that_compute() -> None:
    file = {"weight": torch.randn(64, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}

    def loaded() -> Tensor:
        layer = nn.Conv2d(3, 64, 20, bias=False, dtype=torch.float64)
        initialize(layer, Rule(ALL, Pretrained(file, adapt={"weight": adapters.ResizePatches()})))
        return layer.weight.detach()

    assert_equal_on_any_number(loaded)


class Projection(nn.Module):
    """A buffer that a module's own code computes."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.empty(0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.basis = torch.linalg.qr(torch.randn(130, 130, dtype=torch.float64))[0]


def test_buffers_that_own_code_computes() -> None:
    def made() -> Tensor:
        with torch.device("meta"):
            model = Projection()
        materialize(model, Rule("**", Normal(), optional=True), seed=0)
        return model.basis

    assert_equal_on_any_number(made)


# --- everybody's number ------------------------------------------------------------------------------------


def in_a_new_thread(work: Any = torch.get_num_threads) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_the_number_of_other_threads_stays() -> None:
    """That of one which is running, and that with which new ones begin, during the block and after it."""
    with threads(3), ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 3
        with one_thread():
            assert torch.get_num_threads() == 1
            assert other.submit(torch.get_num_threads).result() == 3
            assert in_a_new_thread() == 3
        assert torch.get_num_threads() == 3
        assert in_a_new_thread() == 3


def test_a_number_of_ones_own_is_kept_apart_from_the_process() -> None:
    with threads(2), ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 2
        torch.set_num_threads(4)

        def work() -> tuple[int, int]:
            with one_thread():
                inside = torch.get_num_threads()
            return inside, torch.get_num_threads()

        assert other.submit(work).result() == (1, 2)
        assert (torch.get_num_threads(), in_a_new_thread()) == (4, 4)


def test_after_an_error_it_is_as_before() -> None:
    def fails() -> None:
        with one_thread():
            raise ValueError("inside")

    with threads(2):
        with pytest.raises(ValueError, match="inside"):
            fails()
        assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)


def test_blocks_within_a_block() -> None:
    with threads(2):
        with one_thread(), one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2


def test_fills_in_many_threads_at_once() -> None:
    """Each has the bits of one alone, and no thread is left with one, neither these nor those that come later."""
    expected = {seed: drawn(Orthogonal(), (70, 40), torch.float64, seed=seed) for seed in range(8)}
    wrong: list[int] = []
    all_here = Barrier(4)

    def number(_: int) -> int:
        all_here.wait()
        return torch.get_num_threads()

    def fill(seed: int) -> None:
        for _ in range(10):
            tensor = torch.empty(70, 40, dtype=torch.float64)
            initialize(nn.ParameterDict({"w": nn.Parameter(tensor)}), Rule(ALL, Orthogonal()), seed=seed)
            if not torch.equal(tensor, expected[seed]):
                wrong.append(seed)

    with threads(3):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(number, range(4))) == [3] * 4
            list(pool.map(fill, range(8)))
            assert list(pool.map(number, range(4))) == [3] * 4
        assert wrong == []
        assert (torch.get_num_threads(), in_a_new_thread()) == (3, 3)


def test_threads_that_start_during_fills_have_all() -> None:
    """After the first: it sets the number once and for all, for a thread that is kept."""
    drawn(Orthogonal(), (70, 40), torch.float64)
    done = Event()
    born: list[int] = []

    def watch() -> None:
        while not done.is_set():
            born.append(in_a_new_thread())

    with threads(3), ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        for seed in range(200):
            drawn(Orthogonal(), (70, 40), torch.float64, seed=seed)
        done.set()
        watching.result()
    assert set(born) == {3}


FORKS = """
import os, torch, torchinit
from torchinit.noise.settings import on_one_thread
torch.set_num_threads(2)
matrix = torch.arange(12.0).view(4, 3)
before = on_one_thread(torch.linalg.qr, matrix)
child = os.fork()
if not child:
    after = on_one_thread(torch.linalg.qr, matrix)
    os._exit(int(not torch.equal(before[0], after[0])))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this machine has no fork")
def test_a_child_process_has_a_thread_of_its_own() -> None:
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout.strip() == "0"


def test_a_factorization_that_fails_is_told() -> None:
    with threads(2), pytest.raises(RuntimeError, match="at least 2 dimensions"):
        on_one_thread(torch.linalg.qr, torch.zeros(3))
