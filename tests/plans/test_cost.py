"""What is not drawing costs little: counted calls, which no other load on the machine changes, never seconds."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable
from functools import partial
from types import FrameType

import pytest
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from tests.calls import calls
from torchinit import Kaiming, Layer, Leaf, Name, Normal, Ones, Rule, Zeros, fingerprint, initialize, lint, plan
from torchinit.initializers import Initializer
from torchinit.model.shards import Shard
from torchinit.noise import Keyed
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.tracing import uninitialized

BASE = (
    Rule(Layer("Linear") & Leaf("weight"), Kaiming()),
    Rule(Leaf("bias"), Zeros()),
    Rule(Layer("LayerNorm") & Leaf("weight"), Ones()),
)
FIFTY = (*BASE, *(Rule(Name(f"layers.{i}.fc1.weight"), Normal(std=0.01 * (i + 1))) for i in range(47)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 4)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4, 16)


def model(blocks: int) -> nn.Module:
    """Six small tensors a block."""
    whole = nn.Module()
    whole.layers = nn.ModuleList(Block() for _ in range(blocks))
    return whole


# What was counted once FSDP1 was imported, which is then looked for in each module, and 4 % more: who exceeds a number
# has made the bookkeeping dearer. While each rule was asked of each tensor, and the model was walked three times, the
# first seven were 281, 706, 455, 882, 479, 456 and 133.
@pytest.mark.parametrize(
    ("job", "most"),
    [
        pytest.param(lambda net: plan(net, BASE), 75, id="plan"),
        pytest.param(lambda net: plan(net, FIFTY), 97, id="plan, 50 rules"),
        pytest.param(lambda net: initialize(net, BASE, seed=0, stats=False), 101, id="initialize"),
        pytest.param(lambda net: initialize(net, FIFTY, seed=0, stats=False), 125, id="initialize, 50 rules"),
        pytest.param(lambda net: initialize(net, BASE, seed=0), 105, id="with statistics"),
        pytest.param(lambda net: initialize(net, BASE, seed=0).records, 124, id="with statistics, which are read"),
        pytest.param(lambda net: initialize(net, BASE, stats=False), 143, id="unseeded"),
        pytest.param(fingerprint, 48, id="fingerprint"),
        pytest.param(lint, 360, id="lint"),
    ],
)
def test_calls_a_tensor(job: Callable[[nn.Module], object], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # As long as any model lives that was built without values, more is asked of each tensor.
    monkeypatch.setattr(uninitialized, "_KNOWN", WeakIdKeyDictionary())
    net = model(200)
    assert calls(lambda: job(net)) / 1200 <= most


@pytest.mark.parametrize("rules", [BASE, FIFTY], ids=["3 rules", "50 rules"])
def test_calls_grow_with_the_tensors(rules: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninitialized, "_KNOWN", WeakIdKeyDictionary())  # as above
    small, middle, large = (calls(partial(initialize, net, rules, seed=0)) for net in map(model, (100, 200, 400)))
    assert large - middle == pytest.approx(2 * (middle - small), rel=0.02)


def test_calls_of_one_tensor_in_a_call_of_its_own() -> None:
    write = partial(Normal(0.0, 0.02).write, Shard.whole("weight", nn.Parameter(torch.empty(1024))), Keyed(0))
    assert calls(write) <= (21 if chosen_kernel() else 80)


def test_a_recipe_is_read_without_asking_what_follows_a_protocol() -> None:
    # Which Python 3.11 takes 15 µs to tell, and a scheme has a hundred places to ask.
    asked = 0

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal asked
        code = frame.f_code
        asked += event == "call" and (code.co_filename, code.co_name) == (typing.__file__, "__instancecheck__")

    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    sys.setprofile(watch)
    try:
        plan(net, {"rules": [{"type": "Kaiming", "layer": "Linear"}]})
        plan(net, "general")
        isinstance(object(), Initializer)
    finally:
        sys.setprofile(None)
    assert asked == 1
