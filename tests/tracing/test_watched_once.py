"""Watched once: what of torch's own works on operations or allocations works as before when a constructor was watched.

The kernels that a watch registers stay in the process, under a dispatch key that is off in other threads and later.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import skip_init
from torch.utils.data import DataLoader, Dataset

from torchinit import BaseModule
from torchinit.tracing import is_unfilled


class Watched(BaseModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3))


@pytest.fixture(autouse=True)
def watched() -> Iterator[nn.Module]:
    """A module that was watched before, with which the watch still works afterwards."""
    yield Watched()
    assert is_unfilled(Watched().weight)
    assert not torch._C._dispatch_tls_is_dispatch_key_included(torch._C._dispatch_key_parse("DeferredInit"))


def allocating(x: Tensor) -> Tensor:
    """Both operations that hand out memory, and both that copy it."""
    scratch, strided = torch.empty_like(x).fill_(2), torch.empty_strided((2, 3), (3, 1)).fill_(1)
    return x.clone() * scratch + strided.to(torch.float64).sum().to(x.dtype) + torch.zeros_like(x)


X = torch.arange(6.0).reshape(2, 3)
EXPECTED = X * 2 + 6


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    torch._dynamo.reset()
    assert torch.equal(torch.compile(allocating, backend=backend, fullgraph=True)(X), EXPECTED)


def test_export() -> None:
    class Allocating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return allocating(x)

    assert torch.equal(torch.export.export(Allocating(), (X,)).module()(X), EXPECTED)


def test_a_trace_by_proxies_holds_torchs_own_operations() -> None:
    graph = make_fx(allocating)(X)
    assert torch.equal(graph(X), EXPECTED)
    assert {str(node.target).split(".")[0] for node in graph.graph.nodes if node.op == "call_function"} == {"aten"}


def test_fake_tensors_have_no_memory() -> None:
    with FakeTensorMode() as mode:
        made = allocating(mode.from_tensor(X))
        layer = nn.Linear(1 << 20, 1 << 20)
    assert isinstance(made, FakeTensor)
    assert made.shape == X.shape
    assert isinstance(layer.weight, FakeTensor)


def test_transforms() -> None:
    assert torch.equal(torch.vmap(allocating)(X), EXPECTED)
    gradient = torch.func.grad(lambda x: allocating(x).sum())(X)
    assert torch.equal(gradient, torch.full_like(X, 2.0))
    assert torch.equal(torch.func.jacrev(lambda x: allocating(x).sum())(X), gradient)
    assert torch.equal(torch.func.functionalize(allocating)(X), EXPECTED)


def test_inference() -> None:
    with torch.inference_mode():
        made = allocating(X)
        layer = nn.Linear(2, 2)
    assert torch.equal(made, EXPECTED)
    assert made.is_inference() and layer.weight.is_inference()


def test_modules_without_memory() -> None:
    with torch.device("meta"):
        model = nn.Linear(1 << 20, 1 << 20)
    assert model.weight.is_meta
    assert skip_init(nn.Linear, 3, 3).weight.shape == (3, 3)
    assert nn.Linear(2, 2, device="meta").to_empty(device="cpu").weight.device.type == "cpu"


def test_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(each, EXPECTED) for each in pool.map(allocating, [X] * 32))


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        module = Watched()  # a worker watches, too
        assert is_unfilled(module.weight)
        return allocating(X) + index


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers(start: str) -> None:
    loader: Any = DataLoader(Numbers(), batch_size=4, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat([*loader]), torch.stack([EXPECTED + index for index in range(8)]))


def test_a_fork_within_a_watched_constructor() -> None:
    """The child has the thread that is watched, and goes on as it does."""

    class Forking(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            child = multiprocessing.get_context("fork").Process(target=_in_a_child)
            child.start()
            child.join()
            self.code = child.exitcode
            self.weight = nn.Parameter(torch.empty(3))

    made = Forking()
    assert made.code == 0
    assert is_unfilled(made.weight)


def _in_a_child() -> None:
    os._exit(0 if torch.equal(allocating(X), EXPECTED) else 1)


def test_autograd() -> None:
    x = X.clone().requires_grad_()
    allocating(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(X, 2.0))
