"""Unfilled memory: which tensors of a module that was built or moved hold no values of anybody."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.mmengine import BaseModule
from torchinit.tracing import is_unfilled, unfilled
from torchinit.tracing.ends import Word
from torchinit.tracing.uninitialized import looks_unfilled, unstamp


class One(BaseModule):
    """A module of one parameter, made by a function."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(make())


def filled(tensor: Tensor) -> Tensor:
    tensor[:] = 2
    return tensor


def by_numpy(tensor: Tensor) -> Tensor:
    tensor.numpy().fill(0)
    return tensor


def through_data(tensor: Tensor) -> Tensor:
    tensor.data.zero_()
    return tensor


EMPTY: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.empty(4, 4),
    "Tensor": lambda: torch.Tensor(4, 4),
    "FloatTensor": lambda: torch.FloatTensor(4, 4),
    "empty_like": lambda: torch.empty_like(torch.ones(4, 4)),
    "new_empty": lambda: torch.ones(1).new_empty(4, 4),
    "empty_strided": lambda: torch.empty_strided((4, 4), (1, 4)),
    "a view": lambda: torch.empty(16).view(4, 4),
    "a copy": lambda: copy.deepcopy(nn.Parameter(torch.empty(4, 4))),
    "of another dtype": lambda: torch.empty(4, 4).double(),
    "one number": lambda: torch.empty(()),
    "one of two bytes": lambda: torch.empty((), dtype=torch.bfloat16),
    "large": lambda: torch.empty(1 << 20),
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
    "by NumPy": lambda: by_numpy(torch.empty(4, 4)),
    "through .data": lambda: through_data(torch.empty(4, 4)),
    "a copy of one": lambda: copy.deepcopy(through_data(torch.empty(4, 4))),
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
        # Fresh memory is often all zeros, and these leave no trace but the values.
        lambda weight: weight.data.zero_(),
        lambda weight: weight.detach().numpy().fill(0),
        lambda weight: weight.data.view(-1).copy_(torch.zeros(16)),
        lambda weight: torch.no_grad()(weight.set_)(torch.zeros(4, 4)),
        nn.init.zeros_,
        lambda weight: nn.init.zeros_(weight[1:]),  # a part: somebody was at work here
        lambda weight: setattr(weight, "data", weight.data.clone()),
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


# -- to_empty, and what else gives other memory ----------------------------------------------------------------------


class Net(BaseModule):
    """A linear layer, a norm with statistics, a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(2)
        self.computed = weight_norm(nn.Linear(2, 2))


EVERYTHING = (
    *("fc.weight", "fc.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
    *("norm.num_batches_tracked", "computed.weight", "computed.bias"),
)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.Sequential, lambda net: nn.ModuleDict({"0": net})])
def test_to_empty_of_a_tree_with_a_base_module(wrap: Callable[[Any], Any], device: str) -> None:
    with torch.device(device):
        net = Net()
        top = wrap(net)
    assert unfilled(net) == ()
    top.to_empty(device="cpu")
    assert sorted(unfilled(net)) == sorted(EVERYTHING)
    net.norm.reset_parameters()
    assert {*EVERYTHING} - {*unfilled(net)} == {name for name in EVERYTHING if name.startswith("norm.")}
    net.load_state_dict(Net().state_dict())
    assert unfilled(net) == ()


def test_memory_that_is_moved_stays_unfilled() -> None:
    net = Net().to_empty(device="cpu")
    net.norm.reset_parameters()
    for move in (net.half, net.double, net.share_memory, net.cpu, net.bfloat16):
        move()
        assert {*unfilled(net)} == {name for name in EVERYTHING if not name.startswith("norm.")}
    assert unfilled(Net().half().double()) == ()


def test_code_that_fills_as_it_moves() -> None:
    net = Net()._apply(torch.zeros_like)
    assert unfilled(net) == ()
    assert unfilled(net._apply(lambda tensor: torch.empty_like(tensor).fill_(1))) == ()


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.bool]


class Holder(BaseModule):
    """A buffer of any kind."""

    table: Tensor

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(shape, dtype=dtype))


WRITES: list[Callable[[Tensor], object]] = [
    lambda tensor: tensor.data.zero_(),
    lambda tensor: tensor.data.fill_(1),
    lambda tensor: tensor.zero_(),
    lambda tensor: tensor.set_(torch.zeros_like(tensor)),  # type: ignore[call-overload]  # which takes tensors, too
    lambda tensor: tensor.untyped_storage().copy_(torch.zeros_like(tensor).untyped_storage()),
]


@given(
    st.lists(st.integers(1, 5), max_size=3).map(tuple),
    st.sampled_from(DTYPES + WHOLE),
    st.sampled_from([None, *WRITES]),
)
def test_memory_is_unfilled_until_it_is_written(
    shape: tuple[int, ...], dtype: torch.dtype, write: Callable[[Tensor], object] | None
) -> None:
    """Of every kind, however small, and whatever the memory held before."""
    holder = Holder(shape, dtype)
    if write is not None:
        write(holder.table)
    assert is_unfilled(holder.table) == (write is None)
    assert unfilled(holder, frozenset(["table"])) == (() if write else ("table",))


def test_draws_are_what_they_are_without_a_watch() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(5, 5).normal_())
            self.scratch = torch.empty(3).uniform_()

    class Watched(BaseModule, Drawn):
        def __init__(self) -> None:
            Drawn.__init__(self)

    with torch.random.fork_rng(devices=[]):
        models = []
        for kind in (Drawn, Watched):
            torch.manual_seed(0)
            models.append(kind())
        assert torch.equal(models[0].weight, models[1].weight)
        assert torch.equal(models[0].scratch, models[1].scratch)


class Passing(TorchDispatchMode):
    """Somebody else's mode, which lets all through."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def within(mode: Any, make: Callable[[], Tensor]) -> Tensor:
    with mode:
        return make()


def scripted(tensor: Tensor) -> Tensor:
    return torch.empty([4, 4]) if tensor.dim() else tensor


def in_part(write: Callable[[Tensor], object], tensor: Tensor) -> Tensor:
    write(tensor)
    return tensor


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("mode", [Passing, lambda: torch.device("cpu"), torch.no_grad])
def test_memory_that_is_handed_out_within_a_mode_inside_of_a_constructor(name: str, mode: Callable[[], Any]) -> None:
    module = One(lambda: within(mode(), EMPTY[name]))
    assert is_unfilled(module.weight)
    assert torch._C._len_torch_dispatch_stack() == 0


def test_two_modes_inside_of_a_constructor_come_back_in_their_order() -> None:
    order: list[str] = []

    class Noting(Passing):
        def __init__(self, name: str) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.name = name

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            order.append(self.name)
            return super().__torch_dispatch__(func, types, args, kwargs)

    def make() -> Tensor:
        with Noting("outer"), Noting("inner"):
            return torch.empty(3)

    assert is_unfilled(One(make).weight)
    assert order == ["inner", "outer"]


def test_a_mode_that_fills_inside_of_a_constructor_has_the_last_word() -> None:
    class Ones(Passing):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            return result.fill_(1) if func is torch.ops.aten.empty.memory_format else result

    ones = One(lambda: within(Ones(), EMPTY["empty"]))  # type: ignore[no-untyped-call]
    assert not is_unfilled(ones.weight)
    assert ones.weight.unique().tolist() == [1.0]


INSIDE: dict[str, Callable[[], Tensor]] = {
    "by TorchScript": lambda: torch.jit.script(scripted)(torch.ones(1)),
    "a copy by an operation": lambda: torch.empty(4).copy_(torch.empty(4)),
    "a copy turned round": lambda: torch.empty(3, 4).t().contiguous(),
    "a copy of another dtype, twice": lambda: torch.empty(4).double().half(),
    "given away as .data": lambda: in_part(lambda one: setattr(one, "data", torch.empty(4)), torch.ones(4)),
    "moved to shared memory": lambda: torch.empty(4).share_memory_(),
    "by to_empty of a layer": lambda: nn.Linear(2, 2, device="meta").to_empty(device="cpu").weight.data,
    "a part of a whole": lambda: torch.empty(100)[10:20],
}


@pytest.mark.parametrize("make", INSIDE.values(), ids=INSIDE)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_ways_through_torchs_own_code(make: Callable[[], Tensor]) -> None:
    assert is_unfilled(One(make).weight)


@pytest.mark.parametrize("region", [slice(1, None), slice(0, -1)])
@pytest.mark.parametrize("numel", [2, 3, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.complex128])
def test_memory_that_is_filled_in_part_holds_what_it_held(numel: int, region: slice, dtype: torch.dtype) -> None:
    """Of the stamp nothing is left: in memory that was full of NaN, NaN is."""
    torch.use_deterministic_algorithms(True)
    try:
        module = One(lambda: in_part(lambda one: one.data[region].zero_(), torch.empty(numel, dtype=dtype)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not is_unfilled(module.weight)
    assert module.weight.isnan().sum() == 1
    assert (module.weight[region] == 0).all()


def test_a_part_that_is_written_while_theends_of_its_memory_are_not() -> None:
    def part() -> Tensor:
        return torch.empty(100)[10:20].fill_(3)

    assert not is_unfilled(One(part).weight)
    assert is_unfilled(One(lambda: torch.empty(100)[10:20]).weight)


def test_copies_of_unfilled_memory_hold_what_it_held() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        module = One(lambda: torch.empty(5).double())
    finally:
        torch.use_deterministic_algorithms(False)
    unstamp([module.weight])
    assert module.weight.isnan().all()
    assert is_unfilled(module.weight)


def test_other_threads_are_not_watched_and_not_disturbed() -> None:
    found: list[Tensor] = []

    class Threaded(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            thread = threading.Thread(target=lambda: found.append(torch.empty(3)))
            thread.start()
            thread.join()
            self.weight = nn.Parameter(torch.empty(3))

    assert is_unfilled(Threaded().weight)
    assert not is_unfilled(found[0])


def test_an_error_of_an_allocation_is_torchs_own() -> None:
    with pytest.raises(RuntimeError, match="negative dimension"):
        One(lambda: torch.empty(-1))
    assert is_unfilled(One(lambda: torch.empty(3)).weight)


def test_theends_of_memory_on_another_device_are_read_and_written_by_torch() -> None:
    flat = torch.zeros(16, dtype=torch.uint8)
    word = Word(flat[:8])
    word.value = 0x0102030405060708
    assert (word.value, flat.tolist()[:9]) == (0x0102030405060708, [8, 7, 6, 5, 4, 3, 2, 1, 0])


def test_other_peoples_modes_are_left_alone() -> None:
    """Within them memory may be what they make of it: no claim, and no stamp."""

    class Ones(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            return result.fill_(1) if func is torch.ops.aten.empty.memory_format else result

    with Ones():  # type: ignore[no-untyped-call]
        ones = One(lambda: torch.empty(4, 4))
    assert not is_unfilled(ones.weight)
    assert ones.weight.unique().tolist() == [1.0]
    with FakeTensorMode():
        fake = One(lambda: torch.empty(4, 4))
    assert not is_unfilled(fake.weight)


def test_nothing_is_left_on_modules_and_tensors() -> None:
    module = One(lambda: torch.empty(2, 2))
    assert {*vars(module)} == {*vars(BaseModule())}
    assert vars(module.weight) == {}


# -- what the values tell --------------------------------------------------------------------------------------------


LEFTOVERS: dict[str, Tensor] = {
    "addresses": torch.tensor([0x7F3A_0000_1234, 0, 0x5581_0000_4321], dtype=torch.int64).view(torch.float32),
    "whole numbers": torch.arange(10, dtype=torch.int32).view(torch.float32),
    "in float64": torch.arange(10, dtype=torch.int64).view(torch.float64),
    "in bfloat16": torch.arange(10, dtype=torch.int16).view(torch.bfloat16),
    "all NaN": torch.full((3, 3), torch.nan),
    "all NaN in float16": torch.full((3,), torch.nan, dtype=torch.float16),
    "one number": torch.full((3, 5), 1e-40),
    "one number in float64": torch.full((3,), -1e-310, dtype=torch.float64),
    "a part of much": torch.cat([torch.zeros(1 << 20), torch.full((1 << 20,), 1e-40)]),
}

VALUES: dict[str, Tensor] = {
    "zeros": torch.zeros(5),
    "a tail": torch.exp(-(torch.linspace(-20, 20, 4001) ** 2) / 2),
    "an exponential": torch.exp(-torch.linspace(0, 103, 1000)),
    "trained with decay": torch.cat([torch.randn(1000), torch.full((100,), 1e-39)]),
    "a mask": torch.full((4, 4), -torch.inf).triu(1),
    "a mask of the least": torch.full((4, 4), torch.finfo(torch.float32).min),
    "one NaN": torch.tensor([1.0, torch.nan]),
    "small in float16": torch.full((5,), 1e-6, dtype=torch.float16),
    "float8": torch.full((5,), 2.0**-9).to(torch.float8_e4m3fn),
    "whole": torch.arange(5),
    "truth": torch.tensor([True, False]),
    "complex": torch.ones(3, dtype=torch.complex64),
    "negative zero": torch.full((3,), -0.0),
    "one number": torch.full((3, 5), -2.5, dtype=torch.float64),
    "infinite": torch.full((3,), -math.inf),
    "one number, turned": torch.ones(3, 5).T,
    "many of one number": torch.ones(5000),
    "none": torch.zeros(0),
    "meta": torch.empty(3, device="meta"),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("tensor", LEFTOVERS.values(), ids=LEFTOVERS)
def test_leftovers(tensor: Tensor) -> None:
    assert looks_unfilled(tensor)


@pytest.mark.parametrize("tensor", VALUES.values(), ids=VALUES)
def test_values(tensor: Tensor) -> None:
    assert not looks_unfilled(tensor)


def test_what_is_written_is_not_judged_by_its_values() -> None:
    model = nn.Linear(2, 2)
    model.weight.data.fill_(math.nan)
    assert unfilled(model) == ("weight",)
    assert unfilled(model, frozenset(["weight"])) == ()
