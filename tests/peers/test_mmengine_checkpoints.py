"""Checkpoints as MMEngine loads them: the same values, the same texts where a text is said to a user."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchinit import mmengine as ours

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    import mmengine.runner.checkpoint as theirs
    from mmengine.logging import MessageHub
    from mmengine.model import BaseTTAModel


class Norm(nn.Module):
    """A layer whose older versions had another name for their weight."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2 and f"{prefix}gamma" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}gamma")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(fc=nn.Linear(2, 3), bn=nn.BatchNorm1d(3), norm=Norm()))


def trained() -> dict[str, torch.Tensor]:
    return {key: value + 1 for key, value in model().state_dict().items()}


def without(*keys: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in trained().items() if key not in keys}


OLD = OrderedDict({**without("norm.weight"), "norm.gamma": torch.full((2,), 5.0)})
OLD._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]

FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (trained(), {}),
    "nested": ({"state_dict": trained(), "meta": {}}, {}),
    "wrapped": ({f"module.{key}": value for key, value in trained().items()}, {}),
    "old": ({"state_dict": OLD}, {}),
    "missing": (without("fc.bias", "bn.num_batches_tracked"), {}),
    "unexpected": ({**trained(), "extra.a": torch.ones(1), "extra.b": torch.ones(1)}, {}),
    "mismatched": ({**trained(), "fc.weight": torch.ones(5, 2)}, {}),
    "nothing": ({"a": torch.ones(1)}, {}),
    "another key": ({"model": trained()}, {}),
    "revised": ({f"net.{key}": value for key, value in trained().items()}, {"revise_keys": [("^net[.]", "")]}),
    "half precision": ({key: value.half() for key, value in trained().items()}, {}),
}


def texts(logger: logging.Logger, call: Callable[[], object]) -> list[str]:
    """What is said to a logger while a function runs."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        call()
    finally:
        logger.removeHandler(handler)
    return said


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped model"])
@pytest.mark.parametrize("case", FILES)
def test_load_checkpoint(case: str, wrapped: bool, tmp_path: Path) -> None:
    held, arguments = FILES[case]
    torch.save(held, path := tmp_path / "a.pth")
    made, said = [], []
    for side in (theirs, ours):
        net = nn.DataParallel(model()) if wrapped else model()
        logger = logging.getLogger(f"peers.{side.__name__}")
        logger.setLevel(logging.INFO)
        said.append(texts(logger, lambda net=net, side=side, logger=logger: side.load_checkpoint(  # type: ignore[misc]
            net, str(path), logger=logger, **arguments)))  # fmt: skip
        made.append(net.state_dict())
    assert all(torch.equal(one, made[1][key]) for key, one in made[0].items())
    assert said[1][: len(said[0])] == said[0]
    assert all("0 of 7 tensors match" in text for text in said[1][len(said[0]) :])


@pytest.mark.parametrize("case", ["missing", "unexpected", "mismatched", "nothing"])
def test_strict_raises_the_same(case: str, tmp_path: Path) -> None:
    torch.save(FILES[case][0], path := tmp_path / "a.pth")
    raised = []
    for side in (theirs, ours):
        with pytest.raises(RuntimeError) as caught:
            side.load_checkpoint(model(), str(path), strict=True)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]


def test_a_prefix_gives_the_same_part(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"net.{key}": value for key, value in trained().items()}}, path := tmp_path / "a.pth")
    parts = [side._load_checkpoint_with_prefix("net", str(path)) for side in (theirs, ours)]
    assert parts[0].keys() == parts[1].keys()
    raised = []
    for side in (theirs, ours):
        with pytest.raises(AssertionError) as caught:
            side._load_checkpoint_with_prefix("neck", str(path))
        raised.append(str(caught.value))
    assert raised[1] == f"{raised[0]}; did you mean 'net.'?"


def test_augmented_models_are_looked_through() -> None:
    class Augmented(BaseTTAModel):
        """MMEngine's wrapper for tests."""

        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

        def merge_preds(self, data_samples_list: Any) -> Any:
            return data_samples_list

    net = Augmented(model())
    assert ours.load_state_dict(net, trained()).complete
    assert torch.equal(net.state_dict()["module.fc.bias"], trained()["fc.bias"])


def test_the_same_names_have_the_same_arguments() -> None:
    import inspect

    for name in ("load_checkpoint", "load_state_dict", "_load_checkpoint", "_load_checkpoint_with_prefix"):
        own, other = (list(inspect.signature(getattr(side, name)).parameters) for side in (ours, theirs))
        assert own == other, name
    own, other = (list(inspect.signature(side.CheckpointLoader.register_scheme).parameters) for side in (ours, theirs))
    assert own == other


@pytest.mark.parametrize("prefix", [None, "backbone"])
def test_the_checkpoint_of_a_runner(prefix: str | None, tmp_path: Path) -> None:
    """As a Runner saves it: beside the weights the curves of its log, which MMEngine cannot load from torch 2.6 on."""
    hub = MessageHub.get_instance("of a runner")
    for step in range(3):
        hub.update_scalar("train/loss", 1.0 / (step + 1))
    hub.update_info("iter", 3)
    weights = {f"{prefix}.{key}" if prefix else key: value for key, value in trained().items()}
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1, momentum=0.9).state_dict()
    held = {"meta": {"epoch": 1}, "state_dict": weights, "message_hub": hub.state_dict(), "optimizer": optimizer}
    torch.save(held, path := tmp_path / "epoch_1.pth")
    with pytest.raises(pickle.UnpicklingError):
        theirs._load_checkpoint(str(path))
    entry = {"type": "Pretrained", "checkpoint": str(path), **({"prefix": prefix} if prefix else {})}
    net = ours.Sequential(*model().children(), init_cfg=entry)
    net._modules = dict(zip(("fc", "bn", "norm"), net._modules.values(), strict=True))
    report: Any = net.init_weights()
    assert report.loads[0].complete
    assert all(torch.equal(net.state_dict()[key], value) for key, value in trained().items())
    assert ours.load_checkpoint(net, str(path), logger="silent")["meta"] == {"epoch": 1}
