"""The allocator that stamps: what it knows of memory, that it is torch's in all else, and that nothing hangs on it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tracing.test_uninitialized import EMPTY, FULL, INSIDE, One
from torchinit.mmengine import BaseModule
from torchinit.noise.engines import dispatch
from torchinit.tracing import allocator as under_test
from torchinit.tracing import is_unfilled, uninitialized
from torchinit.tracing.allocator import Allocator, allocator
from torchinit.tracing.ends import STAMPS, ends_of

CHOSEN = allocator()
needs_allocator = pytest.mark.skipif(CHOSEN is None, reason="no compiled kernel here")


@pytest.fixture
def watched() -> Iterator[Allocator]:
    """A watch of this thread."""
    assert CHOSEN is not None
    CHOSEN.begin()
    yield CHOSEN
    CHOSEN.end()


def test_it_is_there_where_the_kernel_is() -> None:
    assert (CHOSEN is None) == (dispatch.chosen_kernel() is None)


# -- what is known of memory -----------------------------------------------------------------------------------------


@needs_allocator
@given(st.binary(min_size=1, max_size=40), st.integers(0, 39))
@example(bytes(16), 0)
def test_ends_are_stamped_and_remembered(content: bytes, at: int) -> None:
    assert CHOSEN is not None
    memory = torch.tensor([*content], dtype=torch.uint8)
    ends = ends_of(memory)
    assert ends is not None
    before = ends.values
    CHOSEN.begin()
    try:
        CHOSEN.hand_out(memory)
        assert ends.values == ends.stamp
        assert [*CHOSEN.traces([memory])] == [(0, before)]
        # An oracle of its own: a byte other than 0 of the stamp is still where it was.
        memory[:] = 0xFF
        assert [*CHOSEN.traces([memory])] == []
        memory[at % len(content)] = stamp_at(at % len(content), len(content))
        is_left = memory[at % len(content)] != 0xFF
        assert [*CHOSEN.traces([memory])] == [(0, before)] * int(is_left)
    finally:
        CHOSEN.end()
    assert [*CHOSEN.traces([memory])] == []


def stamp_at(at: int, size: int) -> int:
    """The byte of the stamp that belongs there; 255, which is none of it, for one that is zero or lies between."""
    width = next(unit for unit, least in ((8, 16), (4, 8), (2, 4), (1, 2), (0, 0)) if size >= least)
    head, tail = (number.to_bytes(max(width, 1), "little") for number in STAMPS[width])
    stamp = {**dict(enumerate(head)), **{size - len(tail) + i: byte for i, byte in enumerate(tail)}}
    return stamp.get(at) or 0xFF


@needs_allocator
def test_what_is_allocated_is_known_until_the_last_watch_ends(watched: Allocator) -> None:
    tensors = [torch.empty(size) for size in range(1, 3000)]  # more than there is room for at first
    watched.begin()
    tensors.append(torch.empty(7))
    watched.end()
    assert [index for index, _ in watched.traces(tensors)] == [*range(3000)]


@needs_allocator
def test_memory_with_values_shows_no_traces(watched: Allocator) -> None:
    # Of other numbers one may have a byte of the stamp by chance.
    drawn = torch.randn(300, generator=torch.Generator().manual_seed(0))
    made = [torch.ones(5), drawn, torch.zeros(2, 2), torch.arange(9), torch.tensor([1.5]), torch.empty(0)]
    assert [*watched.traces(made)] == []


@needs_allocator
def test_memory_that_moves_takes_the_stamp_along(watched: Allocator) -> None:
    grown, shared = torch.empty(16), torch.empty(16).share_memory_()
    grown.resize_(400)
    assert [index for index, _ in watched.traces([grown, shared])] == [0, 1]
    assert dict(watched.traces([shared]))[0] == (0, 0)  # what stood there is not known any more


@needs_allocator
def test_writing_hands_out_nothing() -> None:
    # So that nothing need be looked for after other people's code that only writes, which is most.
    assert CHOSEN is not None
    weight = torch.empty(8, 8)
    CHOSEN.begin()
    weight.normal_(0, 2)
    weight[0].fill_(1)
    assert CHOSEN.places() == 0
    made = torch.ones(3)
    assert (CHOSEN.places(), made.tolist()) == (1, [1.0, 1.0, 1.0])
    CHOSEN.end()


@needs_allocator
def test_other_threads_get_their_memory_as_it_is(watched: Allocator) -> None:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.full((64,), 2.0)[:0].resize_(64)))
    thread.start()
    thread.join()
    assert [*watched.traces(found)] == []
    assert found[0].tolist() == [2.0] * 64


# -- torch's in all else ---------------------------------------------------------------------------------------------


@needs_allocator
@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_every_dtype_and_layout_is_allocated_as_before() -> None:
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)} - {torch.complex32}

    class Every(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.made = {dtype: torch.empty(3, dtype=dtype) for dtype in dtypes}
            self.sparse = torch.empty((3, 4), layout=torch.sparse_coo)
            self.last = torch.empty((2, 3, 4, 5), memory_format=torch.channels_last)

    every = Every()
    assert {dtype: tensor.dtype for dtype, tensor in every.made.items()} == {dtype: dtype for dtype in dtypes}
    assert every.sparse.layout == torch.sparse_coo
    assert every.last.stride() == (60, 1, 15, 3)


@needs_allocator
def test_too_much_is_refused_in_torchs_own_words() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate"):
        One(lambda: torch.empty(1 << 50))
    assert is_unfilled(One(lambda: torch.empty(3)).weight)


@needs_allocator
def test_memory_outlives_the_watch_and_is_resized_and_copied_on_write() -> None:
    weight = One(lambda: torch.empty(64)).weight.data
    weight.fill_(3)
    lazy = torch._lazy_clone(weight)
    lazy[0] = 4
    assert [float(each) for each in (weight[0], lazy[0], weight.resize_(5000)[63])] == [3, 4, 3]


# -- nothing hangs on it ---------------------------------------------------------------------------------------------


WITHOUT = {name: make for name, make in [*EMPTY.items(), *INSIDE.items()] if "TorchScript" not in name}
"""Of a script that has run before, torch keeps what it found out about it."""


@pytest.mark.parametrize("make", WITHOUT.values(), ids=WITHOUT)
def test_unfilled_memory_is_told_without_it(make: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninitialized, "allocator", lambda: None)
    assert is_unfilled(One(make).weight)


@pytest.mark.parametrize("make", FULL.values(), ids=FULL)
def test_values_are_told_without_it(make: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninitialized, "allocator", lambda: None)
    assert not is_unfilled(One(make).weight)


def test_memory_that_torch_fills_itself_is_told_all_the_same() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        module = One(lambda: torch.empty(5))
    finally:
        torch.use_deterministic_algorithms(False)
    assert is_unfilled(module.weight)


def test_a_torch_without_the_functions_keeps_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_SYMBOLS", ("_ZN3c1015GetCPUAllocatorEv", "torchinit_has_no_such"))
    assert allocator.__wrapped__() is None
    monkeypatch.setattr(dispatch, "chosen_kernel", lambda: None)
    assert allocator.__wrapped__() is None


UNLIKE = """
from torchinit.tracing import allocator as under_test
under_test._SYMBOLS = (*under_test._SYMBOLS[:3], "_ZN3c1015GetCPUAllocatorEv")  # not what the table names there
assert under_test.allocator() is None
import torch
from torch import nn
from torchinit import BaseModule
from torchinit.tracing import is_unfilled
class One(BaseModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))
assert is_unfilled(One().weight)
"""


def test_a_torch_with_another_table_keeps_its_allocator() -> None:
    subprocess.run([sys.executable, "-c", UNLIKE], check=True)


ANOTHER = """
import ctypes
from torchinit.tracing import allocator as under_test
libc10 = ctypes.CDLL(under_test.torch_library())
standard, put = (getattr(libc10, name) for name in under_test._SYMBOLS[1:3])
standard.restype, put.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_uint8]
known = under_test.allocator()
assert known is None or known.begin()
put(standard(), 0)  # as a library does that brings its own
assert known is None or not known.begin()
"""


def test_another_allocator_that_comes_later_is_seen() -> None:
    subprocess.run([sys.executable, "-c", ANOTHER + UNLIKE[UNLIKE.index("import torch\n") :]], check=True)


@needs_allocator
def test_stamps_are_alike_in_both_languages() -> None:
    memory = (ctypes.c_char * 16)()
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    assert CHOSEN is not None
    CHOSEN.begin()
    CHOSEN.hand_out(tensor)
    CHOSEN.end()
    assert memory.raw == b"".join(number.to_bytes(8, "little") for number in STAMPS[8])


def test_layers_of_torch_have_their_values() -> None:
    class Layers(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                [nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.BatchNorm2d(3), nn.Embedding(3, 4)]
            )

    layers = Layers()
    assert not [name for name, tensor in layers.state_dict(keep_vars=True).items() if is_unfilled(tensor)]
