"""Parameter order: lists of tensors without names are a model's parameters, if their number and every shape agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchinit import CheckpointError, Name, Normal, Pretrained, Rule, initialize, open_checkpoint


class Model(nn.Module):
    """Tensors above their children, behind them, tied, frozen, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 4)) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.table.weight
        self.blocks[0].requires_grad_(False)


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def learning(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def state(model: nn.Module) -> list[Tensor]:
    return [*model.state_dict().values()]


def rules(source: Any, **options: Any) -> list[Rule]:
    return [Rule(Name("**"), Normal(std=1.0)), Rule(Name("**"), Pretrained(source, order="parameters", **options))]


@pytest.mark.parametrize("listed", [parameters, learning, state])
@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (
            lambda tensors: {"ema": {"decay": 0.9, "shadow_params": tensors, "collected_params": None}},
            "ema.shadow_params",
        ),
        (lambda tensors: {"shadow_params": tuple(tensors), "model": {"w": torch.ones(1)}}, "shadow_params"),
        (lambda tensors: tensors, ""),
        (lambda tensors: dict(enumerate(tensors)), ""),
    ],
)
def test_a_list_is_what_its_number_and_shapes_are(
    listed: Callable[[nn.Module], list[Tensor]], wrap: Callable[[list[Tensor]], Any], part: str, tmp_path: Path
) -> None:
    trained, model = Model(), Model()
    torch.save(wrap(listed(trained)), path := tmp_path / "a.pth")
    missing = ("blocks.*.1.running_*", "blocks.*.1.num_batches_tracked", "blocks.0.**")
    for given in {None, part or None}:
        account = initialize(model, rules(str(path), part=given, expect_missing=missing), seed=0).loads[0]
        assert account.part == part
        wanted = {tensor.data_ptr() for tensor in listed(trained)}
        assert account.found == len(wanted)
        assert account.notes[-1].endswith("without names, taken in the order of the parameters")
        for name, tensor in trained.state_dict().items():
            if tensor.is_floating_point() and name in account.loaded:
                assert torch.equal(model.state_dict()[name], tensor), name


def test_what_does_not_agree_is_refused(tmp_path: Path) -> None:
    trained = Model()
    wrong = parameters(trained)
    wrong[1] = wrong[1].T
    file = {"a": wrong, "b": wrong[:-1]}
    torch.save(file, path := tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 lists of tensors without names: choose with part, one of a, b"):
        initialize(Model(), rules(str(path)))
    with pytest.raises(CheckpointError, match=r"number 1 has shape \[4, 5\], and table.weight \[5, 4\]"):
        initialize(Model(), rules(str(path), part="a"))
    text = r"its 14 tensors without names are not the model's: it has 15 parameters, 9 that learn, and 22 in its state"
    with pytest.raises(CheckpointError, match=text):
        initialize(Model(), rules(str(path), part="b"))
    with pytest.raises(CheckpointError, match=r"holds no named tensors, only lists of them: a, b; a rule with order="):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"holds no list of tensors without names"):
        initialize(Model(), rules(dict(trained.state_dict())))


def test_names_are_not_passed_over() -> None:
    with pytest.raises(CheckpointError, match=r"its tensors have names, so order='parameters' is not for them"):
        initialize(Model(), rules({"model": dict(Model().state_dict())}, part="model"))
    with pytest.raises(ValueError, match=r"without names: no prefix, no rename, no layers"):
        Pretrained("a.pth", order="parameters", prefix="net")
    with pytest.raises(ValueError, match=r"order must be"):
        Pretrained("a.pth", order="alphabet")  # type: ignore[arg-type]
    file = {"ema": parameters(Model())}
    with pytest.raises(
        CheckpointError, match=r"Its tensors have no names: order='parameters' takes them for the model"
    ):
        initialize(Model(), Rule(Name("**"), Pretrained(open_checkpoint(file, part="ema"))))


def test_parts_of_what_is_in_memory() -> None:
    trained, other = nn.Linear(2, 2), nn.Linear(2, 2)
    content = {"model": trained.state_dict(), "ema": {"shadow": parameters(other), "named": other.state_dict()}}
    for options in ({"part": "ema.named"}, {"part": "ema.shadow", "order": "parameters"}, {"order": "parameters"}):
        model = nn.Linear(2, 2)
        initialize(model, Rule(Name("**"), Pretrained(content, **options)))  # type: ignore[arg-type]
        assert torch.equal(model.weight, other.weight)
