"""What is not drawing costs little: counted calls, which no other load on the machine changes, never seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from tests.counting import calls
from torchinit import Kaiming, Layer, Leaf, Name, Normal, Ones, Rule, Zeros, fingerprint, initialize, lint, plan
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
        pytest.param(lambda net: initialize(net, BASE, seed=0, stats=False), 102, id="initialize"),
        pytest.param(lambda net: initialize(net, FIFTY, seed=0, stats=False), 127, id="initialize, 50 rules"),
        pytest.param(lambda net: initialize(net, BASE, seed=0), 106, id="with statistics"),
        pytest.param(lambda net: initialize(net, BASE, seed=0).records, 126, id="with statistics, which are read"),
        pytest.param(lambda net: initialize(net, BASE, stats=False), 145, id="unseeded"),
        pytest.param(fingerprint, 48, id="fingerprint"),
        pytest.param(lint, 388, id="lint"),
    ],
)
def test_calls_a_tensor(job: Callable[[nn.Module], object], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # As long as any model lives that was built without values, more is asked of each tensor.
    monkeypatch.setattr(uninitialized, "_KNOWN", WeakIdKeyDictionary())
    net = model(200)
    assert calls(lambda: job(net)) / 1200 <= most


@pytest.mark.parametrize("rules", [BASE, FIFTY], ids=["3 rules", "50 rules"])
def test_calls_grow_with_the_tensors(rules: tuple[Rule, ...]) -> None:
    small, middle, large = (calls(partial(initialize, net, rules, seed=0)) for net in map(model, (100, 200, 400)))
    assert large - middle == pytest.approx(2 * (middle - small), rel=0.02)
