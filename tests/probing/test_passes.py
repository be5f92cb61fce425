"""Keeping: a model after a probe is the model before it, whatever happened in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.probing.nets import Checkpointed, Everything, Wired, mlp
from torchinit import ProbeError, probe


def state(model: nn.Module) -> dict[str, Any]:
    """All that could change: values, their counts of writes, identities, modes, hooks, gradients, generators."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "ids": {name: id(tensor) for name, tensor in tensors.items()},
        "gradients": {name: (id(each.grad), each.requires_grad) for name, each in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for name, module in model.named_modules()
        },
        "attributes": {
            name: {key: id(value) for key, value in vars(module).items()} for name, module in model.named_modules()
        },
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
    }


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (Tensor, np.ndarray)):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


BATCH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepared() -> Everything:
    model = Everything()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    model.get_parameter("stem.bias").requires_grad = False
    model.calls.append(7)
    model.drop.eval()
    return model


def test_a_probe_leaves_nothing_behind() -> None:
    model = prepared()
    before, calls = state(model), list(model.calls)
    result = probe(model, optimizer=torch.optim.AdamW, steps=2)
    assert result.measurement.samples >= 2
    assert_same(before, state(model))
    assert model.calls == calls
    assert model.cache is None
    assert float(model.seen) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nor_does_one_that_fails(error: type[BaseException]) -> None:
    model = prepared()
    model.fails = error
    before = state(model)
    with pytest.raises(ProbeError if error is RuntimeError else error, match="on purpose"):
        probe(model, BATCH)
    assert_same(before, state(model))


def test_buffers_that_cannot_be_compared_are_put_back_and_not_written_without_need() -> None:
    """NaN is not equal to itself, and a sparse tensor has no comparison at all."""

    def forward(module: nn.Module, x: Tensor) -> object:
        module.get_buffer("written").mul_(2)
        return module.net(x)  # type: ignore[operator]

    model = Wired(forward, net=mlp(0, depth=2))
    odd = {"lost": torch.tensor([1.0, torch.nan]), "sparse": torch.eye(3).to_sparse()}
    for name, each in {**odd, "written": torch.eye(2).to_sparse()}.items():
        model.register_buffer(name, each)
    before = {name: each._version for name, each in odd.items()}
    probe(model, torch.randn(16, 64))
    assert {name: each._version for name, each in odd.items()} == before
    assert model.get_buffer("written").to_dense().tolist() == torch.eye(2).tolist()
    assert model.get_buffer("lost").isnan().tolist() == [False, True]


def interrupt(gradient: Tensor) -> None:
    raise KeyboardInterrupt


def test_nor_one_that_is_interrupted_on_its_way_back_or_while_steps_are_tried() -> None:
    model = prepared()
    handle = model.get_parameter("head.bias").register_hook(interrupt)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        probe(model, BATCH)
    assert_same(before, state(model))
    handle.remove()

    def stop(parameters: Any, **_: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        step: Callable[..., Any] = optimizer.step

        def once() -> None:
            step()
            raise KeyboardInterrupt

        optimizer.step = once  # type: ignore[method-assign, assignment]
        return optimizer

    with pytest.raises(KeyboardInterrupt):
        probe(model, BATCH, optimizer=stop)
    assert_same(before, state(model))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_an_optimizer_that_steps_within_the_backward_pass_does_not(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    steps: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(steps.append)
    probe(model, torch.randn(16, 16))
    assert steps == []
    model(torch.randn(2, 16)).sum().backward()
    assert steps


def test_the_same_seed_measures_the_same() -> None:
    model = mlp(depth=4)
    first = probe(model, seed=3)
    torch.rand(5)
    assert repr(probe(model, seed=3).runs) == repr(first.runs)
    assert repr(probe(model, seed=4).runs) != repr(first.runs)


def test_a_recipe_works_on_a_copy_and_on_meta() -> None:
    model = mlp(0.02)
    before = state(model)
    entries = [{"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}]
    assert probe(model, recipe=entries).healthy
    assert_same(before, state(model))
    with torch.device("meta"):
        sketch = nn.Sequential(*[each for _ in range(12) for each in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 5))
    assert "TI801" in probe(sketch, recipe=[{"type": "Normal", "std": 0.02, "layer": "Linear"}]).findings.codes
    assert all(parameter.is_meta for parameter in sketch.parameters())
