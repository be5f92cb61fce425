"""What a Pretrained entry of an init_cfg may say beyond MMEngine: layers, adapt, rename, part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchinit import BaseModule, CheckpointError, ConfigError, preserves
from torchinit.checkpoints.adapters import HyperClone


class Net(BaseModule):
    def __init__(self, depth: int = 4, width: int = 8, classes: int = 3, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.stem = nn.Linear(5, width)
        layers = (
            nn.TransformerEncoderLayer(width, width // 4, 16, norm_first=True, batch_first=True) for _ in range(depth)
        )
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, classes)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.stem(values)
        for layer in self.layers:
            values = layer(values)
        return self.head(values)  # type: ignore[no-any-return]


@pytest.fixture
def old(tmp_path: Path) -> tuple[Net, str]:
    net = Net().eval()
    file = str(tmp_path / "old.pth")
    torch.save({"state_dict": {"x": torch.ones(1)}, "ema": net.state_dict()}, file)
    return net, file


def entry(file: str, **words: Any) -> dict[str, Any]:
    return {"type": "Pretrained", "checkpoint": file, "part": "ema", **words}


def test_a_student_takes_layers(old: tuple[Net, str]) -> None:
    net, file = old
    student = Net(depth=2, init_cfg=entry(file, layers=[0, 3]))
    report = student.init_weights()
    assert torch.equal(student.layers[1].linear1.weight, net.layers[3].linear1.weight)  # type: ignore[union-attr, arg-type]
    assert report is not None
    assert report.loads[0].promise == "none"
    assert not report.loads[0].missing


@pytest.mark.parametrize("adapter", [{"type": "HyperClone"}, HyperClone()])
def test_wider_and_deeper_with_the_same_function(old: tuple[Net, str], adapter: Any) -> None:
    net, file = old
    wider = Net(6, 16, init_cfg=entry(file, layers="identity", adapt={"**": adapter, "layers.*.linear*.**": adapter}))
    wider.init_weights()
    assert preserves(net, wider.eval(), torch.randn(2, 3, 5))


def test_renames(old: tuple[Net, str], tmp_path: Path) -> None:
    net, _ = old
    file = str(tmp_path / "named.pth")
    torch.save({f"body.{key}": value for key, value in net.state_dict().items()}, file)
    other = Net(init_cfg={"type": "Pretrained", "checkpoint": file, "rename": [["^body[.]", ""]]})
    other.init_weights()
    assert torch.equal(other.head.weight, net.head.weight)


def test_what_has_no_adapter_and_does_not_fit_is_left_as_in_mmengine(old: tuple[Net, str]) -> None:
    net, file = old
    other = Net(classes=7, init_cfg=entry(file))
    before = copy.deepcopy(other.head.state_dict())
    report = other.init_weights()
    assert torch.equal(other.stem.weight, net.stem.weight)
    assert torch.equal(other.head.weight, before["weight"])
    assert report is not None
    assert {name for name, _ in report.loads[0].declined} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("words", "depth", "width", "kind", "text"),
    [
        (
            {"adapt": {"**": {"type": "HyperClon"}}},
            4,
            8,
            ConfigError,
            r"init_cfg\.adapt\['\*\*'\]\.type: .*mean 'HyperClone'",
        ),
        ({"adapt": {"**": {"type": "HyperClone"}}}, 4, 12, CheckpointError, r"needs a whole multiple of each width"),
        ({"layers": [0, 4]}, 2, 8, CheckpointError, r"so there is no block 4"),
        ({"layers": "stak"}, 2, 8, ConfigError, r"init_cfg\.layers"),
        ({"rename": [["(", ""]]}, 2, 8, ConfigError, r"is not a rename"),
    ],
)
def test_mistakes(old: tuple[Net, str], words: Any, depth: int, width: int, kind: type[Exception], text: str) -> None:
    model = Net(depth, width, init_cfg=entry(old[1], **words))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=text):
        model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_misspelt_word_is_told() -> None:
    with pytest.raises(TypeError, match="layer"):
        Net(init_cfg={"type": "Pretrained", "checkpoint": "x.pth", "laiers": [0]}).init_weights()
