"""Clean models: layers and small nets of torch, as their own code makes them, have no error and no warning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.linting.models import Net
from torchinit import lint
from torchinit.linting import ConstructionRecorder, Findings
from torchinit.model.sandbox import poisoned_memory


class Residual(nn.Module):
    """A branch whose last layer starts at zero."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())  # type: ignore[no-any-return]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1), persistent=False)
        self.scale = nn.Parameter(torch.full((32,), 1e-5))
        self.position = nn.Parameter(torch.zeros(1, 8, 32))


def convolutions(depth: int, norm: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3)]
    for _ in range(depth):
        layers += [nn.BatchNorm2d(16), nn.ReLU()] if norm else [nn.ReLU()]
        layers += [nn.Conv2d(16, 16, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def mlp(activation: Callable[[], nn.Module], depth: int = 4) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), activation())]
    return nn.Sequential(nn.Linear(20, 64), activation(), *layers, nn.Linear(64, 1))


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 8, 1))


def decoder() -> nn.Module:
    up = nn.ConvTranspose2d(64, 32, 4, stride=2)
    return nn.Sequential(up, nn.GroupNorm(4, 32), nn.SiLU(), nn.ConvTranspose2d(32, 3, 4, stride=2), nn.Tanh())


def detector() -> nn.Module:
    head = nn.Conv2d(64, 9, 3)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(head.bias if head.bias is not None else torch.empty(0), -4.595)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), head)


CLEAN: dict[str, Callable[[], nn.Module]] = {
    "linear": partial(nn.Linear, 64, 32),
    "bilinear": partial(nn.Bilinear, 16, 16, 8),
    "lstm": partial(nn.LSTM, 16, 32, 2, bidirectional=True),
    "gru": partial(nn.GRU, 16, 32),
    "lstm projected": partial(nn.LSTM, 16, 32, proj_size=8),
    "attention": partial(nn.MultiheadAttention, 32, 4, kdim=16, vdim=16, add_bias_kv=True),
    "transformer": lambda: nn.Transformer(32, 4, 1, 1, 64, batch_first=True),
    "embedding bag": partial(nn.EmbeddingBag, 50, 16, padding_idx=0),
    "adaptive softmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 100, [20, 50]),
    "vgg": partial(convolutions, 5, norm=False),
    "resnet": partial(convolutions, 20, norm=True),
    "relu mlp": partial(mlp, nn.ReLU),
    "tanh mlp": partial(mlp, nn.Tanh, 12),
    "gelu mlp": partial(mlp, nn.GELU),
    "depthwise": depthwise,
    "decoder": decoder,
    "detector": detector,
    "blocks": lambda: nn.Sequential(*(Residual() for _ in range(4)), nn.LayerNorm(32), nn.Linear(32, 5)),
    "masked": Masked,
    "net": Net,
    "spectral": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, 16)), nn.LeakyReLU(0.2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(16, 16)),
    "complex": lambda: nn.Sequential(nn.Linear(16, 16, dtype=torch.complex64)),
    "1d": lambda: nn.Sequential(nn.Conv1d(8, 16, 5, groups=4), nn.PReLU(16), nn.InstanceNorm1d(16, affine=True)),
    "3d": lambda: nn.Sequential(nn.Conv3d(2, 8, 3), nn.ELU(), nn.ConvTranspose3d(8, 2, 3)),
}


def as_built(make: Callable[[], nn.Module]) -> Findings:
    recorder = ConstructionRecorder()
    with poisoned_memory(), recorder:
        model = make()
    return lint(model, trace=recorder.of(model))


@pytest.mark.parametrize("name", CLEAN)
def test_no_error_and_no_warning(name: str) -> None:
    findings = as_built(CLEAN[name])
    assert findings.at_least("warning") == (), findings.table()
    assert set(findings.codes) <= {"TI401"}, findings.table()  # the last layers of branches start at zero


def test_there_are_enough_of_them() -> None:
    assert len(CLEAN) >= 20
