"""accelerate and Hydra: initialized before `prepare` or after it, on two ranks; a recipe that is a node of a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torch.utils.data import DataLoader

from tests.processes import on_ranks, results
from torchinit import ConfigError, PlanError, ReportError, fingerprint, initialize, materialize, plan, verify_replicas

RECIPE: dict[str, Any] = {"rules": [{"type": "Kaiming", "layer": "Linear"}, {"type": "Zeros", "name": "**.bias"}]}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def alone() -> str:
    model = net()
    initialize(model, RECIPE, seed=3)
    return fingerprint(model).total


def on_rank(rank: int) -> dict[str, Any]:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", ACCELERATE_USE_CPU="true")
    torch.manual_seed(rank)  # as users forget to
    from accelerate import Accelerator, init_empty_weights

    accelerator = Accelerator(cpu=True)
    found: dict[str, Any] = {}
    assert accelerator.num_processes == 2
    with init_empty_weights():
        empty = net()
    materialize(empty, RECIPE, seed=3)
    before: Any = net()
    after = net()
    initialize(before, RECIPE, seed=3)
    for name, model in (("before", before), ("after", after), ("empty", empty)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data: Any = DataLoader(torch.randn(16, 8), batch_size=4)  # type: ignore[arg-type]
        wrapped, optimizer, batches = accelerator.prepare(model, optimizer, data)
        assert next(iter(wrapped.state_dict())).startswith("module.")
        if name == "after":
            report = initialize(wrapped, RECIPE, seed=3)
            assert [record.name for record in report] == ["0.weight", "2.weight", "0.bias", "2.bias"]
        verify_replicas(wrapped)
        found[name] = fingerprint(wrapped).total
        for batch in batches:
            accelerator.backward(wrapped(batch).pow(2).mean())
            optimizer.step()
            optimizer.zero_grad()
        verify_replicas(wrapped)
        found[f"{name}, trained"] = fingerprint(wrapped).total != found[name]
    with torch.no_grad():  # what a rank loads before another has saved it
        before[0].bias[rank] += 1
    with pytest.raises(ReportError, match=r"0\.bias: rank 1 holds other bits than rank 0"):
        verify_replicas(before)
    return found


def test_two_ranks(tmp_path: Path) -> None:
    for found in results(on_ranks(2, on_rank, tmp_path)):
        assert found["before"] == found["after"] == found["empty"] == alone()
        assert found["before, trained"] and found["after, trained"] and found["empty, trained"]


def test_a_parameter_that_is_named_with_its_wrapper_is_told() -> None:
    class DDP(nn.Module):  # as accelerate's, for a test in one process
        def __init__(self) -> None:
            super().__init__()
            self.module = net()

    with pytest.raises(PlanError, match=r"Name\('module\.0\.weight'\) matches none.*"):
        plan(DDP(), {"module.0.weight": nn.init.zeros_}, strict=True)
    assert plan(DDP(), {"0.weight": nn.init.zeros_}, strict=True)


CONFIG = """
width: 16
std: 0.02
init:
  rules:
    - {type: Normal, std: "${std}", layer: Linear}
    - {type: Normal, std: "1 / ${width}", name: "2.weight"}
    - {type: Zeros, name: "**.bias"}
callback:
  _target_: torchinit.integrations.lightning.InitCallback
  recipe: ${init}
  seed: 3
"""


@pytest.fixture
def configs(tmp_path: Path) -> Any:
    (tmp_path / "config.yaml").write_text(CONFIG)
    with initialize_config_dir(str(tmp_path), version_base=None):
        yield lambda *overrides: compose("config", overrides=list(overrides))


def test_a_node_of_hydra_is_a_recipe(configs: Any) -> None:
    config = configs("std=0.5", "width=4")
    for node in (config.init, config.init.rules):
        report = initialize(net(), node, seed=0)
        assert [report[name].expected.std for name in ("0.weight", "2.weight")] == [0.5, 0.25]  # type: ignore[union-attr]
    callback = instantiate(config.callback)
    assert [getattr(rule.init, "std", None) for rule in callback.rules] == [0.5, None, 0.25, None]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("init.rules.0.type=Nrmal", r"init\.rules\[0\]\.type: unknown initializer 'Nrmal'; did you mean 'Normal'"),
        ("+init.rules.1.sdt=1", r"init\.rules\[1\]\.sdt: Normal has no argument 'sdt'"),
        ("init.rules.0.std=${nothing}", r"init\.rules\[0\]\.std: Interpolation key 'nothing' not found"),
        ("init.rules.0.std=???", r"init\.rules\[0\]\.std: Missing mandatory value"),
    ],
)
def test_mistakes_have_the_path_of_the_node(override: str, text: str, configs: Any) -> None:
    config = configs(override)
    for node in (config.init, config.init.rules):
        with pytest.raises(ConfigError, match=text):
            plan(net(), node)
