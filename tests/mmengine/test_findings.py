"""What a user hears of: layers that match nothing, checkpoints loaded in vain, and seeds beside code of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchinit.mmengine import BaseModule, Sequential


def warnings_of(model: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, "torchinit"):
        model.init_weights()
    return caplog.messages


WARNED: list[tuple[Any, str]] = [
    (["Conv2D", "Linear"], "layer 'Conv2D' of Sequential's init_cfg matches no module; did you mean 'Conv2d'?"),
    (["LSTM", "Linear"], "layer 'LSTM' of Sequential's init_cfg matches 1 module without weight or bias"),
    ("LSTM", "layer 'LSTM' of Sequential's init_cfg matches 1 module without weight or bias"),
    (None, "an entry of Sequential's init_cfg has neither a layer nor an override: it initializes nothing"),
    (["Conv*", "Linear"], "layer 'Conv*' of Sequential's init_cfg matches no module; did you mean 'Conv2d'?"),
    ("Conv?d", "init_cfg of Sequential Layer('Conv?d') matches none of 4 modules; did you mean 'Conv2d' (1 module)?"),
    ("Conv2D", "init_cfg of Sequential Layer('Conv2D') matches none of 4 modules; did you mean 'Conv2d' (1 module)?"),
]


def net(layer: Any) -> Sequential:
    layers = nn.Conv2d(1, 2, 1), nn.Linear(2, 2), nn.LSTM(2, 2), nn.InstanceNorm2d(2), nn.BatchNorm2d(2)
    return Sequential(*layers, init_cfg={"type": "Normal", "layer": layer} if layer else {"type": "Normal"})


@pytest.mark.parametrize(("layer", "text"), WARNED)
def test_layers_in_vain(layer: Any, text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert any(text in message for message in warnings_of(net(layer), caplog))


@pytest.mark.parametrize(
    "layer", [["Linear", "GroupNorm"], ["_BatchNorm", "_InstanceNorm"], ["Linear", "InstanceNorm2d"]]
)
def test_layers_that_another_model_may_have_are_not_warned_of(layer: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(net(layer), caplog) == []


def test_a_warning_comes_once_however_many_modules_say_the_same(caplog: pytest.LogCaptureFixture) -> None:
    blocks = [Sequential(nn.Linear(2, 2), init_cfg={"type": "Normal", "layer": "Conv2d"}) for _ in range(3)]
    assert len(warnings_of(Sequential(*blocks), caplog)) == 1


@pytest.mark.parametrize(("part", "warned"), [(nn.ModuleList(), False), (nn.Sequential(), False), (nn.ReLU(), True)])
def test_an_override_of_a_container_that_is_empty_means_no_harm(
    part: nn.Module, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Sequential(part, init_cfg={"type": "Normal", "override": {"name": "0"}})
    assert bool(warnings_of(model, caplog)) == warned


class Child(BaseModule):
    """A layer with an init_cfg."""

    def __init__(self) -> None:
        super().__init__({"type": "Constant", "val": 1, "layer": "Linear"})
        self.fc = nn.Linear(2, 2)


def test_a_checkpoint_that_a_child_undoes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(Child().state_dict(), tmp_path / "child.pth")
    entry = {"type": "Pretrained", "checkpoint": str(tmp_path / "child.pth")}
    model = Sequential(Child(), init_cfg={"type": "Normal", "override": {"name": "0", **entry}})
    messages = warnings_of(model, caplog)
    assert any(text.startswith("2 parameters loaded from a checkpoint and then initialized after") for text in messages)


def test_a_user_who_writes_after_a_checkpoint_means_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Finetuned(Child):
        def init_weights(self, **_: Any) -> Any:
            super().init_weights()
            nn.init.zeros_(self.fc.bias)

    torch.save(Child().state_dict(), tmp_path / "child.pth")
    model = Finetuned()
    model.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "child.pth")}
    assert warnings_of(model, caplog) == []


class User(nn.Module):
    """A module that is no BaseModule and has an init_weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def init_weights(self, **_: Any) -> Any:
        nn.init.normal_(self.fc.weight)


class Outer(BaseModule):
    """Code of the user's own around code of other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = User()
        self.second = User()

    def init_weights(self, **_: Any) -> Any:
        super().init_weights()
        nn.init.normal_(self.first.fc.bias)


def test_with_a_seed_the_draws_of_a_module_do_not_depend_on_its_siblings() -> None:
    whole: Any = Outer()
    part: Any = Outer()
    part.first.is_init = True  # MMEngine's way to leave a plain module alone
    before = torch.get_rng_state()
    whole.init_weights(seed=3)
    part.init_weights(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole.second.fc.weight, part.second.fc.weight)
    assert torch.equal(whole.first.fc.bias, part.first.fc.bias)
    assert not torch.equal(whole.first.fc.weight, whole.second.fc.weight)
