"""skip_init: what it keeps from an init_cfg and from code, how it names it, and what is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchinit import ReportError
from torchinit.mmengine import BaseModule, Sequential, initialize, materialize

ONES = {"type": "Constant", "val": 1.0, "bias": 1.0, "layer": ["Linear", "BatchNorm1d"]}


class Backbone(nn.Module):
    """A third party's, with trained weights and an init_weights that does away with them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.last = nn.Linear(2, 2)
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data.fill_(7)

    def init_weights(self, mode: str = "") -> None:
        for module in (self.stem, self.last):
            nn.init.zeros_(module.weight)
        self.norm.reset_running_stats()


class Net(BaseModule):
    """A head on it."""

    def __init__(self, init_cfg: Any = ONES) -> None:
        super().__init__(init_cfg)
        self.backbone = Backbone()
        self.head = nn.Linear(2, 2)


def values(module: Any) -> dict[str, set[float]]:
    return {name: set(tensor.flatten().tolist()) for name, tensor in module.named_parameters()}


def test_without_it_the_trained_weights_are_gone() -> None:
    net: Any = Net()
    net.init_weights()
    assert net.backbone.stem.weight.unique().tolist() == [0.0]


@pytest.mark.parametrize("how", ["module", "name", "class", "glob"])
def test_all_of_a_backbone(how: str) -> None:
    cls: Any = type("Net2", (Net,), {"skip_init": ["backbone"]}) if how == "class" else Net
    net: Any = cls()
    owner: Any = net.backbone if how == "module" else net
    if how != "class":
        owner.skip_init = {"module": True, "name": "backbone", "glob": ("backbone.**",)}[how]
    report = net.init_weights()
    assert set.union(*values(net.backbone).values()) == {7.0}
    assert net.backbone.norm.running_mean.tolist() == [7.0, 7.0]
    assert [record.name for record in report] == ["head.weight", "head.bias"]
    assert report.untouched == () == report.buffers
    assert dict(report.skipped)["backbone.stem.weight"] == f"kept: skip_init of {type(owner).__name__}"
    assert len(report.skipped) == 9
    assert report.unused == ()


def test_a_part_and_a_parameter() -> None:
    net: Any = Net({**ONES, "type": "Constant"})
    net.skip_init = ["backbone.s*", "head.bias"]
    net.backbone.init_weights = lambda: None
    nn.init.constant_(net.head.bias, 5.0)
    net.init_weights()
    found = values(net)
    assert [found[f"{name}.weight"] for name in ("backbone.stem", "backbone.last", "head")] == [{7.0}, {1.0}, {1.0}]
    assert [found[f"{name}.bias"] for name in ("backbone.stem", "backbone.last", "head")] == [{7.0}, {1.0}, {5.0}]


def test_it_is_not_a_rule_in_vain_to_match_what_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    net: Any = Net({**ONES, "layer": "BatchNorm1d"})
    net.backbone.skip_init = True
    net.init_weights()
    assert not [message for message in caplog.messages if "matches none" in message]


def test_code_that_writes_all_the_same_is_named() -> None:
    class Rude(Net):
        def init_weights(self, **_: Any) -> Any:
            for layer in (self.backbone.stem, self.head):
                nn.init.zeros_(layer.weight)

    net: Any = Rude()
    net.skip_init = "backbone"
    with pytest.raises(ReportError, match="1 parameter written over that skip_init keeps") as error:
        net.init_weights()
    assert error.value.problems == ("backbone.stem.weight: Initialized by user-defined `init_weights` in Rude",)


def test_within_containers_with_a_seed_and_for_any_module() -> None:
    net: Any = Sequential(nn.Sequential(Net()), Net(), init_cfg=ONES)
    net.skip_init = "*.**.backbone"
    net.init_weights(containers=True, seed=0)
    assert {*values(net[0][0].backbone)["last.weight"], *values(net[1].backbone)["last.weight"]} == {7.0}
    plain: Any = nn.Sequential(Backbone(), nn.Linear(2, 2))
    plain[0].skip_init = True
    report = initialize(plain, ONES, seed=0)
    assert [record.name for record in report] == ["1.weight", "1.bias"]
    assert values(plain)["0.stem.weight"] == {7.0}
    assert report.untouched == ()


def test_false_and_a_module_that_has_nothing_keep_nothing() -> None:
    net: Any = Net()
    net.skip_init = False
    net.head.skip_init = True
    net.backbone.relu = nn.ReLU()
    net.backbone.relu.skip_init = True
    net.init_weights()
    assert net.backbone.stem.weight.unique().tolist() == [0.0]


def test_on_the_meta_device_there_is_nothing_to_keep() -> None:
    with torch.device("meta"):
        net: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].skip_init = True
    report = materialize(net, {**ONES, "layer": "Linear"}, seed=0)
    assert [record.fill for record in report] == ["Constant(1)"] * 4


@pytest.mark.parametrize(
    ("skip", "error", "text"),
    [
        ("bakcbone", RuntimeError, "skip_init of Net: nothing below it is called 'bakcbone'; did you mean 'backbone'?"),
        (["backbone", "neck"], RuntimeError, "skip_init of Net: nothing below it is called 'neck'"),
        (3, TypeError, "skip_init of Net is True, a name, or a list of names of what is below it, but got 3"),
        ([3], TypeError, r"a list of names of what is below it, but got \[3\]"),
        (nn.Linear, TypeError, "but got <class 'torch.nn"),
    ],
)
def test_mistakes(skip: Any, error: type[Exception], text: str) -> None:
    net: Any = Net()
    net.skip_init = skip
    with pytest.raises(error, match=text):
        net.init_weights()
    assert values(net)["backbone.stem.weight"] == {7.0}
