"""Materialize: memory, values and proof, on one process; what is wrong is found, named, and undone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from tests.ranks import fake_rank, local_of
from torchinit import (
    Constant,
    Leaf,
    Name,
    Normal,
    PlanError,
    Rule,
    RunError,
    Zeros,
    initialize,
    materialize,
)
from torchinit.distributed.allocation import allocate, check_device, check_ranks

ALL = Rule(Name("**"), Normal(std=0.5))


def meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


class Own(nn.Parameter):
    """A parameter of a class of its own."""


class Kinds(nn.Module):
    """Tensors with what must not get lost."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.empty(3), requires_grad=False)
        self.narrow = nn.Parameter(torch.empty(2, 3, dtype=torch.bfloat16))
        self.turned = nn.Parameter(torch.empty(3, 2).T)
        self.spiral = nn.Parameter(torch.empty(2, 2, dtype=torch.complex64))
        self.own = Own(torch.empty(2))
        self.own.tag = "kept"  # type: ignore[attr-defined]
        self.table = nn.Embedding(4, 2)
        self.head = nn.Linear(2, 4, bias=False)
        self.head.weight = self.table.weight
        self.flat = nn.Linear(4, 2, bias=False)
        self.flat.weight = nn.Parameter(self.table.weight.detach().T)


def test_the_values_of_initialize() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    whole, before = make(), torch.get_rng_state()
    initialize(whole, ALL, seed=7)
    model = meta(make)
    report = materialize(model, ALL, seed=7).assert_ok(complete=True)
    assert torch.equal(torch.get_rng_state(), before)
    for name, expected in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], expected), name
    assert report["1.num_batches_tracked"].rule == "own code"
    assert report.buffers == ()


def test_everything_but_the_memory_stays_as_it_was() -> None:
    model = meta(Kinds)
    before = dict(model.named_parameters(remove_duplicate=False))
    kinds = {name: (type(each), each.dtype, each.stride(), each.requires_grad) for name, each in before.items()}
    materialize(model, Rule(~Name("flat.weight"), Normal(std=0.5)), seed=0).assert_ok()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert {n: (type(each), each.dtype, each.stride(), each.requires_grad) for n, each in after.items()} == kinds
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(after["flat.weight"], after["table.weight"].T)
    assert model.head.weight is model.table.weight  # type: ignore[union-attr]
    assert model.own.tag == "kept"  # type: ignore[union-attr]


def test_views_of_one_memory_are_so_again() -> None:
    model = meta(Kinds)
    table, flat = model.get_parameter("table.weight"), model.get_parameter("flat.weight")
    allocate(model, torch.device("cpu"))
    table.data.fill_(3.0)
    assert flat.flatten().tolist() == [3.0] * 8
    assert flat.shape == (2, 4)


def test_a_tensor_with_a_weak_reference_is_replaced_in_all_its_places() -> None:
    model = meta(Kinds)
    reference = weakref.ref(model.get_parameter("table.weight"))
    allocation = allocate(model, torch.device("cpu"))
    assert not model.get_parameter("table.weight").is_meta
    assert model.get_parameter("head.weight") is model.get_parameter("table.weight")
    allocation.undo()
    assert model.get_parameter("head.weight") is model.get_parameter("table.weight") is reference()


def test_a_parametrized_weight() -> None:
    model = meta(lambda: nn.Sequential(weight_norm(nn.Linear(4, 4))))
    assert materialize(model, ALL, seed=0)["0.weight"].notes == ()
    assert not any(each.isnan().any() for each in model.parameters())


def test_buffers_with_memory_keep_their_values() -> None:
    model = meta(lambda: nn.Sequential(nn.Linear(2, 2)))
    model.register_buffer("table", torch.arange(3))
    report = materialize(model, ALL, seed=0)
    assert model.get_buffer("table").tolist() == [0, 1, 2]
    assert report.buffers == ("table",)


def test_a_rule_may_write_a_buffer() -> None:
    model = meta(lambda: nn.Sequential(nn.Linear(2, 2)))
    model.register_buffer("scale", torch.empty(3, device="meta"))
    materialize(model, [ALL, Rule(Name("scale"), Constant(2.0), buffers=True)], seed=0)
    assert model.get_buffer("scale").tolist() == [2.0] * 3


# -- what must fail -------------------------------------------------------------------------------


class Forgetful(nn.Module):
    """Buffers that only the caller of the constructor could make."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(size), persistent=False)
        self.register_buffer("count", torch.ones(size, dtype=torch.int64))


def half() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), meta(lambda: nn.Linear(2, 2)))


def one_way() -> nn.Module:
    model = meta(lambda: nn.Linear(2, 2))
    register_parametrization(model, "weight", nn.Tanh(), unsafe=True)
    return model


def whole_numbers() -> nn.Module:
    model = meta(lambda: nn.Linear(2, 2))
    with torch.no_grad():
        model.count = nn.Parameter(torch.ones(2, dtype=torch.int8, device="meta"), requires_grad=False)
    return model


FORGOTTEN = (
    r"2 tensors left unwritten\n  scale: a buffer of Forgetful that no rule writes, and its modules' own code does not"
    r" make it \(there is none\)\. Give it a rule with buffers = true, or a reset_parameters\(\)\n  count: a buffer"
)


@pytest.mark.parametrize(
    ("make", "rules", "error", "message"),
    [
        (lambda: meta(lambda: Forgetful(3)), ALL, RunError, FORGOTTEN),
        (half, ALL, RunError, r"half on the meta device: 1\.weight, 1\.bias are, but 0\.weight, 0\.bias have memory"),
        (lambda: nn.Linear(2, 2), ALL, RunError, r"has memory already: call torchinit\.initialize"),
        (lambda: meta(lambda: nn.Linear(2, 2)), Rule(Leaf("weight"), Zeros()), PlanError, "no rule for bias"),
        (lambda: meta(lambda: nn.Linear(2, 2)), [ALL, Rule(Name("wieght"), Zeros())], PlanError, "wieght"),
        (
            whole_numbers,
            ALL,
            PlanError,
            r"1 problem in the plan; nothing was written\n  count holds whole numbers: load it",
        ),
        (one_way, ALL, PlanError, "without right_inverse"),
        (
            lambda: meta(lambda: spectral_norm(nn.Linear(3, 2))),
            ALL,
            RunError,
            r"parametrizations\.weight\.0\._u: a buffer of _SpectralNorm that no rule writes",
        ),
    ],
)
def test_what_must_fail_leaves_the_model_on_meta(
    make: Callable[[], nn.Module], rules: Any, error: type[Exception], message: str
) -> None:
    model = make()
    before = {name: (each.device, id(each)) for name, each in model.state_dict(keep_vars=True).items()}
    with pytest.raises(error, match=message):
        materialize(model, rules, seed=0, complete=True, strict=True)
    assert {name: (each.device, id(each)) for name, each in model.state_dict(keep_vars=True).items()} == before


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:7", r"device 'cuda:7' is not there: "),
        ("nowhere", r"device 'nowhere' is not there: "),
        ("meta", "the meta device has no memory"),
    ],
)
def test_a_device_that_is_not_there(device: str, message: str) -> None:
    model = meta(lambda: nn.Linear(2, 2))
    with pytest.raises(RunError, match=message):
        materialize(model, ALL, device=device, seed=0)
    with pytest.raises(RunError, match=message):
        check_device(device)
    assert model.get_parameter("weight").is_meta


def spread(placement: Placement, ranks: list[int]) -> nn.Module:
    mesh = DeviceMesh("cpu", ranks, _init_backend=False)
    model = meta(lambda: nn.Linear(2, 2, bias=False))
    model.weight = nn.Parameter(local_of(torch.empty(1, 2, device="meta"), mesh, placement, 2, 2))
    return model


@pytest.mark.parametrize(
    ("placement", "ranks", "message"),
    [
        (Shard(0), [0, 1], r"weight: lies on a mesh of ranks 0, 1, and this is rank 3"),
        (Partial(), [0, 1, 2, 3], r"weight: is placed as P\(sum\)"),
    ],
)
def test_placements_that_have_no_values(placement: Placement, ranks: list[int], message: str) -> None:
    with fake_rank(3, 4):
        model = spread(placement, ranks)
        with pytest.raises(RunError, match=message):
            check_ranks(model)


def test_no_process_group() -> None:
    with fake_rank(3, 4):
        model = spread(Shard(0), [2, 3])
    with pytest.raises(RunError, match=r"no process group, but weight is distributed: call torch\.distributed\.init_"):
        materialize(model, ALL, seed=0)


def test_an_allocation_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = meta(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3)))
    full = torch.empty

    def empty(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
        if shape == 3 * 3 * 4:
            raise MemoryError("no more memory")
        return full(shape, *args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(MemoryError, match="no more memory"):
        materialize(model, ALL, seed=0)
    assert all(each.is_meta for each in model.parameters())
