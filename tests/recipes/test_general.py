"""The scheme `general`: the signal that it lets through deep models, beside the one that it let through before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from torchinit import Kaiming, LeCun, Normal, initialize, load_recipe, plan
from torchinit.knowledge import gain
from torchinit.rules import Recipe

SEEDS = range(5)
FACTOR = 10.0
"""How much larger or smaller the signal may be at the end than at the start."""

# Variance 1 / fan_in, whatever follows: what the scheme was, and what it is to layers without a nonlinearity.
WITHOUT_GAINS: Recipe = tuple(
    replace(rule, init=LeCun("normal", "true")) if isinstance(rule.init, Kaiming) else rule
    for rule in load_recipe("general")
)


def signal(x: Tensor) -> float:
    """The part of a batch that differs between its samples: RMS over units of the standard deviation over samples."""
    return float(x.detach().flatten(1).std(0).square().mean().sqrt())


def mlp(act: Callable[[], nn.Module], depth: int = 30, width: int = 256) -> nn.Sequential:
    hidden = [module for _ in range(depth - 1) for module in (nn.Linear(width, width), act())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def vgg(*stages: int, width: int = 32) -> nn.Sequential:
    """As in Simonyan & Zisserman (2014), narrower, for images of 64 by 64."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, depth in enumerate(stages):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width * min(2**stage, 8), 3, padding=1), nn.ReLU(inplace=True)]
            channels = width * min(2**stage, 8)
        layers.append(nn.MaxPool2d(2))
    hidden = [nn.Linear(4 * channels, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 256), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Sequential(*hidden, nn.Linear(256, 10)))


class Bottleneck(nn.Module):
    """As torchvision and everybody writes it."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """ResNet-50, with a quarter of the channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, stages = width, []
        for stage, depth in enumerate((3, 4, 6, 3)):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(channels, width * 2**stage, 2 if stage and not block else 1))
                channels = 4 * width * 2**stage
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def encoder(activation: str) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(128, 4, 512, 0.0, activation, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


Shape = tuple[int, ...]
UNITS, IMAGES, TOKENS = (64, 256), (8, 3, 64, 64), (16, 32, 128)

DEEP: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "ReLU MLP": (lambda: mlp(nn.ReLU), UNITS),
    "leaky ReLU MLP": (lambda: mlp(lambda: nn.LeakyReLU(0.2)), UNITS),
    "GELU MLP": (lambda: mlp(nn.GELU), UNITS),
    "VGG-16 without norms": (lambda: vgg(2, 2, 3, 3, 3), IMAGES),
}
"""Models that variance 1 / fan_in silences."""

OTHERS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "tanh MLP": (lambda: mlp(nn.Tanh), UNITS),
    "ResNet-50": (ResNet, IMAGES),
    "pre-norm ReLU transformer": (lambda: encoder("relu"), TOKENS),
    "pre-norm GELU transformer": (lambda: encoder("gelu"), TOKENS),
}


def passed_on(make: Callable[[], nn.Module], shape: Shape, recipe: str | Recipe) -> list[float]:
    """The signal at the end over that at the start, for each of the seeds; norms over batches work as in training."""
    found = []
    for seed in SEEDS:
        model = make()
        initialize(model, recipe, seed=seed, stats=False)
        for module in model.modules():
            module.train(not isinstance(module, nn.Dropout))
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            found.append(signal(model(inputs)) / signal(inputs))
    return found


@pytest.mark.slow("a signal goes through whole networks, several seeds each")
@pytest.mark.parametrize("name", [*DEEP, *OTHERS])
def test_the_signal_arrives(name: str) -> None:
    ratios = passed_on(*{**DEEP, **OTHERS}[name], "general")
    assert all(1 / FACTOR < ratio < FACTOR for ratio in ratios), ratios


@pytest.mark.parametrize("name", DEEP)
def test_without_gains_it_did_not(name: str) -> None:
    ratios = passed_on(*DEEP[name], WITHOUT_GAINS)
    assert max(ratios) < 1 / (5 * FACTOR), ratios


def test_one_layer_keeps_the_second_moment() -> None:
    """What the gain is for, without depth: He's argument, within six standard errors."""
    width, batch = 2048, 4096
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU())
    initialize(model, "general", seed=0)
    with torch.no_grad():
        found = model(torch.randn(batch, width, generator=torch.Generator().manual_seed(0))).square().mean()
    # relu(sqrt(2) z)² has mean 1 and variance 4 E[z⁴] / 2 - 1 = 5. Outputs share samples and units, so that an average
    # over samples alone, or over units alone, bounds the error from above.
    assert abs(float(found) - 1) < 6 * math.sqrt(5 / min(batch, width))


def test_biases_are_zero_and_layers_with_their_own_nonlinearity_have_no_gain() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LSTM(8, 4))
    made = plan(model, "general")
    assert made["0.weight"].fill == Normal(0.0, math.sqrt(2) / math.sqrt(8))
    assert made["2.weight_ih_l0"].fill == Normal(0.0, 1 / math.sqrt(8))
    assert {made[name].fill for name in ("0.bias", "2.bias_ih_l0", "2.bias_hh_l0")} == {made["0.bias"].fill}
    assert [float(parameter.abs().max()) for parameter in after(model) if parameter.dim() == 1] == [0.0] * 3


def after(model: nn.Module) -> list[Tensor]:
    initialize(model, "general", seed=0)
    return [parameter.detach() for parameter in model.parameters()]


def test_true_fans() -> None:
    grouped, transposed = nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 4, 2, stride=2)
    made = plan(nn.Sequential(grouped, nn.ReLU(), transposed, nn.GELU()), "general")
    assert made["0.weight"].fill == Normal(0.0, math.sqrt(2) / math.sqrt(9))
    assert made["2.weight"].fill == Normal(0.0, gain("gelu") / math.sqrt(16))


def test_what_is_not_known_is_said_once_and_is_no_error() -> None:
    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(7))
    made = plan(model, "general", complete=True, strict=True)
    assert {step.notes for step in made if step.site.leaf == "weight"} == {
        ("what follows this layer is not known: gain 1",)
    }
    said = [line for line in made.summary().splitlines() if "not known" in line]
    assert said == ["what follows is not known of 7 layers, gain 1: 0-6.weight ×7"]
    assert "not known" not in plan(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "general").table()
    assert initialize(model, "general", seed=0)["3.weight"].notes == ("what follows this layer is not known: gain 1",)


def test_several_heads_that_are_tied_to_tables() -> None:
    """As in Bark, whose seven heads are seven of its eight tables of codes."""
    tables, heads = [nn.Embedding(50, 8) for _ in range(3)], [nn.Linear(8, 50, bias=False) for _ in range(2)]
    for head, table in zip(heads, tables[1:], strict=True):
        head.weight = table.weight
    made = plan(nn.ModuleDict({"tables": nn.ModuleList(tables), "lm_heads": nn.ModuleList(heads)}), "general")
    assert {str(step.fill) for step in made} == {"Normal(std=0.02)"}
    assert len(made.steps) == 3
