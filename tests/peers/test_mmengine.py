"""torchinit beside the real MMEngine: the same bits, the same draws, the same log where it is right."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.peers.trees import Node, build, trees, with_checkpoint
from torchinit import mmengine as ours

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    import mmengine.model
    from mmengine.logging import MMLogger


class Mmengine:
    """MMEngine's names in one place."""

    BaseModule = mmengine.model.BaseModule
    Sequential = mmengine.model.Sequential
    ModuleList = mmengine.model.ModuleList
    trunc_normal_init = staticmethod(mmengine.model.trunc_normal_init)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    before = logger.handlers[:]
    logger.handlers[:] = [logging.NullHandler()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.handlers[:] = before


def outcome(node: Node, library: Any, seed: int) -> tuple[str, dict[str, torch.Tensor], torch.Tensor]:
    """The exception's name if there was one, the values, and where the generator stands."""
    torch.manual_seed(seed)
    model: Any = build(node, library)
    try:
        model.init_weights()
    except Exception as error:  # noqa: BLE001 - whatever the one raises, the other must raise, too
        return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "builtins"), {}, torch.empty(0)
    left = [name for name, module in model.named_modules() if "_params_init_info" in vars(module)]
    assert left == []
    return "", {name: value.clone() for name, value in model.state_dict().items()}, torch.rand(8)


def assert_same(node: Node, seed: int) -> None:
    error, state, after = outcome(node, Mmengine, seed)
    our_error, our_state, our_after = outcome(node, ours, seed)
    assert our_error == error
    assert our_state.keys() == state.keys()
    different = [name for name in state if not torch.equal(state[name], our_state[name])]
    assert different == []
    assert torch.equal(after, our_after)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(trees(), st.integers(0, 2**31))
def test_the_same_bits_from_the_same_seed(node: Node, seed: int) -> None:
    assert_same(node, seed)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(trees(), st.integers(0, 2**31), st.booleans())
def test_the_same_bits_with_a_checkpoint(node: Node, seed: int, wrapped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        state = build(node, Mmengine).state_dict()
        draws = torch.Generator().manual_seed(seed)
        values = {n: torch.randn(v.shape, generator=draws) if v.is_floating_point() else v for n, v in state.items()}
        torch.save({"state_dict": values} if wrapped else values, path)
        assert_same(with_checkpoint(node, path), seed)


FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("constant_init", {"val": 0.3, "bias": 1}),
    ("xavier_init", {"gain": 2, "distribution": "uniform"}),
    ("xavier_init", {}),
    ("normal_init", {"mean": 1, "std": 0.1}),
    ("trunc_normal_init", {"std": 0.5, "a": -1, "b": 0.25}),
    ("uniform_init", {"a": -3, "b": 4}),
    ("kaiming_init", {}),
    ("kaiming_init", {"a": 0.1, "mode": "fan_in", "nonlinearity": "leaky_relu", "distribution": "uniform"}),
    ("caffe2_xavier_init", {"bias": -1}),
]


@pytest.mark.parametrize(("name", "arguments"), FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_functions(name: str, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    made = []
    for library in (mmengine.model, ours):
        layer: Any = nn.Conv2d(4, 6, 3).to(dtype)
        torch.manual_seed(3)
        getattr(library, name)(layer, **arguments)
        made.append((layer.weight.detach(), layer.bias.detach(), torch.rand(3)))
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_bias_init_with_prob_is_within_an_ulp_of_numpys() -> None:
    for number in range(1, 1000):
        theirs = mmengine.model.bias_init_with_prob(number / 1000)
        assert ours.bias_init_with_prob(number / 1000) == pytest.approx(theirs, rel=5e-16, abs=1e-16)


class Net:
    """A model as both libraries spell it."""

    @staticmethod
    def make(library: Any, init_cfg: Any) -> Any:
        class ToyConv(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 2, 1)

            def init_weights(self) -> None:
                nn.init.constant_(self.conv.weight, 5.0)

        class ToyNet(library.BaseModule):
            def __init__(self) -> None:
                super().__init__(init_cfg)
                self.first = nn.Conv2d(1, 2, 3)
                self.linear = nn.Linear(2, 3)
                self.toy = ToyConv()

        return ToyNet()


LOGGED: list[Any] = [
    {"type": "Xavier", "layer": "Conv2d", "bias": 2},
    [{"type": "Constant", "val": 1.5, "bias": 3, "layer": "Linear"}, {"type": "Kaiming", "layer": "Conv2d", "bias": 9}],
    {
        "type": "Normal",
        "layer": "Linear",
        "std": 0.1,
        "bias": 4,
        "override": {"name": "first", "type": "Uniform", "bias": 5},
    },
    {"type": "TruncNormal", "layer": ["Conv2d"], "bias_prob": 0.2},
    {"type": "Caffe2Xavier", "layer": ["Conv2d", "Linear"], "bias": 7},
]


@pytest.mark.parametrize("init_cfg", LOGGED)
def test_the_log_is_the_same_where_mmengine_is_right(init_cfg: Any, tmp_path: Path) -> None:
    theirs = MMLogger.get_current_instance()
    handler = logging.FileHandler(tmp_path / "theirs.log")
    handler.setLevel(logging.CRITICAL)  # the log itself is written past levels; other records are not looked at
    theirs.handlers[:] = [handler]
    Net.make(mmengine.model, init_cfg).init_weights()
    theirs.handlers[:] = [logging.NullHandler()]
    handler.close()
    logger = logging.getLogger("torchinit")
    mine = logging.FileHandler(tmp_path / "ours.log")
    mine.setLevel(logging.CRITICAL)
    logger.addHandler(mine)
    try:
        Net.make(ours, init_cfg).init_weights()
    finally:
        logger.removeHandler(mine)
        mine.close()
    assert (tmp_path / "ours.log").read_text() == (tmp_path / "theirs.log").read_text()
    assert "Initialized by user-defined `init_weights` in ToyConv" in (tmp_path / "ours.log").read_text()


def test_a_training_run_of_mmengines_runner_calls_our_init_weights(tmp_path: Path) -> None:
    from mmengine.runner import Runner

    class Toy(ours.BaseModule):
        def __init__(self) -> None:
            super().__init__({"type": "Constant", "val": 0.5, "bias": 0.25, "layer": "Linear"})
            self.fc = nn.Linear(2, 1)

        def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
            loss = self.fc(torch.stack(list(data))).pow(2).mean()
            optim_wrapper.update_params(loss)
            return {"loss": loss}

    model = Toy()
    data = [torch.zeros(2) for _ in range(4)]
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader={"dataset": data, "batch_size": 2, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
        default_hooks={"checkpoint": None, "logger": None},
        default_scope="mmengine",
    )
    runner.train()
    assert model.is_init
    assert model.fc.weight.unique().tolist() == [0.5]
    assert model.fc.bias.tolist() == [0.25]


def test_the_bridge_makes_each_sides_initializers_known_to_the_other() -> None:
    from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS

    from torchinit.mmengine import bridge

    @THEIRS.register_module(name="PeerTheirs")
    class Theirs:
        def __call__(self, module: Any) -> None:
            nn.init.constant_(module.weight, 2.0)

    @ours.WEIGHT_INITIALIZERS.register_module(name="PeerOurs")
    class Ours:
        def __call__(self, module: Any) -> None:
            nn.init.constant_(module.weight, 3.0)

    bridge()
    bridge()
    layer = nn.Linear(2, 2)
    ours.initialize(layer, {"type": "PeerTheirs"})
    assert layer.weight.unique().tolist() == [2.0]
    mmengine.model.initialize(layer, {"type": "PeerOurs"})
    assert layer.weight.unique().tolist() == [3.0]
