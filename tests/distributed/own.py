"""Own starts: base modules with every kind of code that initializes something, the same on one rank and on many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import torchinit
from torchinit.mmengine import (
    WEIGHT_INITIALIZERS,
    BaseInit,
    BaseModule,
    ModuleList,
    caffe2_xavier_init,
    constant_init,
    initialize,
    kaiming_init,
    normal_init,
    trunc_normal_,
    trunc_normal_init,
    uniform_init,
    update_init_info,
    xavier_init,
)

Code = Callable[[Any], object]


def by_numpy(layer: Any) -> None:
    layer.weight.data.numpy()[:, 1] = 4.0


def by_assignment(layer: Any) -> None:
    layer.weight.data = torch.full(layer.weight.shape, 2.5)
    layer.bias.data = layer.bias.data * 2 + torch.rand(layer.bias.shape)


def by_index(layer: Any) -> None:
    layer.bias.data[:1] = 7.0
    layer.bias.data[-1] = torch.tensor(3.0)
    layer.weight.data[2].zero_()
    layer.weight.data[:, 1].normal_(std=0.5)
    layer.weight.data[torch.tensor([0, 4])] = 1.5
    layer.weight.data[layer.weight.data > 1] = 0.75
    layer.weight.data.diagonal().fill_(0.25)


def by_parts(layer: Any) -> None:
    for number, part in enumerate(layer.weight.chunk(3)):
        nn.init.orthogonal_(part, gain=number + 1)
    layer.weight.t()[1].add_(1)
    layer.weight.view(-1)[3:9].mul_(-1)


def by_looking(layer: Any) -> None:
    layer.weight.div_(layer.weight.norm())
    layer.bias.fill_(float(layer.weight.std()) + layer.bias.tolist()[0])


def by_temporaries(layer: Any) -> None:
    layer.weight.copy_(torch.randn(layer.weight.shape)).add_(torch.rand_like(layer.weight))
    layer.bias.add_(torch.linspace(0, 1, len(layer.bias)))


def twice(layer: Any) -> None:
    layer.weight.normal_()
    first = layer.weight.clone()
    layer.weight.normal_().add_(first)


def by_turning(layer: Any) -> None:
    turned = layer.weight.t()
    initialize(layer, {"type": "Constant", "val": 1, "layer": "Linear"})
    turned.normal_()
    initialize(layer, {"type": "Uniform", "layer": "Linear", "param": "bias"}, seed=9)


def by_a_recipe(layer: Any) -> None:
    layer.weight.fill_(2.0)
    layer.bias.data[0] = 3.0  # and the rest of it stays
    torchinit.initialize(layer, torchinit.Rule(torchinit.Name("weight"), torchinit.Normal(std=0.5)), seed=4)
    layer.weight.data[1].mul_(2)


def by_noting(layer: Any) -> None:
    layer.weight.requires_grad_(False)
    layer.bias._decays = False


CODES: dict[str, Code] = {
    "numpy": by_numpy,
    "assignment": by_assignment,
    "index": by_index,
    "parts": by_parts,
    "looking": by_looking,
    "temporaries": by_temporaries,
    "twice": twice,
    "turning": by_turning,
    "a recipe": by_a_recipe,
    "noting": by_noting,
    "constant_init": lambda layer: constant_init(layer, 2, bias=1),
    "normal_init": lambda layer: normal_init(layer, std=0.1, bias=0.5),
    "uniform_init": lambda layer: uniform_init(layer, -1, 1),
    "xavier_init": lambda layer: xavier_init(layer, distribution="uniform"),
    "kaiming_init": lambda layer: kaiming_init(layer),  # noqa: PLW0108  # a line of its own
    "caffe2_xavier_init": lambda layer: caffe2_xavier_init(layer),  # noqa: PLW0108
    "trunc_normal_init": lambda layer: trunc_normal_init(layer, std=0.5, a=-1, b=1),
    "trunc_normal_": lambda layer: trunc_normal_(layer.weight, std=0.02),
    "nn.init.trunc_normal_": lambda layer: nn.init.trunc_normal_(layer.weight, std=0.5, a=-1, b=1),
    "nn.init.orthogonal_": lambda layer: nn.init.orthogonal_(layer.weight),
    "nn.init.eye_": lambda layer: nn.init.eye_(layer.weight),
    "nn.init.sparse_": lambda layer: nn.init.sparse_(layer.weight, 0.3),
    "nn.init.kaiming_uniform_": lambda layer: nn.init.kaiming_uniform_(layer.weight),
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "nothing": lambda layer: None,
}


class Coded(BaseModule):
    """A layer with an init_cfg, and code that has the last word."""

    def __init__(self, code: str) -> None:
        super().__init__({"type": "Xavier", "layer": "Linear", "bias": 0.1})
        self.code = code
        self.layer = nn.Linear(7, 7)

    def init_weights(self) -> Any:  # type: ignore[override]
        super().init_weights()
        with torch.no_grad():
            CODES[self.code](self.layer)


class Plain(nn.Module):
    """Not a base module, and with an init_weights all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7))
        self.scale = nn.Parameter(torch.ones(3))

    def init_weights(self) -> None:
        self.weight.data = torch.full((7,), 4.0)
        nn.init.uniform_(self.scale)


class Derived(nn.Conv2d):
    """Its direct base is Conv2d."""


@WEIGHT_INITIALIZERS.register_module(name="TestSlope")
class Slope(BaseInit):
    """Weights that rise from 0 to 1; it looks at class names, as MMEngine's do."""

    def __call__(self, module: nn.Module) -> None:
        def fill(part: Any) -> None:
            if self.wholemodule or type(part).__name__ in self.layer:
                part.weight.data.copy_(torch.linspace(0, 1, part.weight.numel()).view_as(part.weight))

        module.apply(fill)
        if hasattr(module, "_params_init_info"):
            update_init_info(module, "Slope")


class Stage(BaseModule):
    """Convolutions and a norm, matched by class and by direct base."""

    def __init__(self) -> None:
        super().__init__(
            [
                {"type": "Kaiming", "layer": "Conv2d"},
                {"type": "Constant", "val": 1, "bias": 0.25, "layer": "_BatchNorm"},
                {"type": "TestSlope", "layer": "Linear", "override": {"type": "Normal", "std": 3.0, "name": "last"}},
            ]
        )
        self.conv = nn.Conv2d(3, 7, 3)
        self.derived = Derived(7, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 3)
        self.last = nn.Linear(3, 5)


class Table(nn.Embedding):
    """A table of words."""


class Words(Table):
    """A class whose name and direct base no entry has; its own code zeroes a row by index."""


class Model(BaseModule):
    """Everything at once: a chain, overrides, a checkpoint, code, and layers that nothing is said of."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(
            [
                {
                    "type": "Normal",
                    "std": 0.5,
                    "layer": ["Linear", "Embedding"],
                    "override": {"type": "Uniform", "name": "head"},
                },
                {"type": "Pretrained", "checkpoint": checkpoint, "prefix": "teacher"},
            ]
        )
        self.stage = Stage()
        self.coded = ModuleList([Coded(name) for name in CODES])
        self.plain = Plain()
        self.head = nn.Linear(5, 4)
        self.table = nn.Embedding(6, 5, padding_idx=2)
        self.rest = nn.ModuleDict(
            {"conv": nn.Conv1d(2, 3, 2), "rnn": nn.LSTM(3, 2), "words": Words(5, 3, padding_idx=1)}
        )


def save_teacher(path: str) -> None:
    """A checkpoint with some of the model's tensors below a prefix, buffers among them."""
    draws = torch.Generator().manual_seed(0)
    shapes = {"head.bias": (4,), "stage.fc.weight": (3, 5), "stage.norm.running_var": (5,), "coded.0.layer.bias": (7,)}
    state: dict[str, Any] = {f"teacher.{key}": torch.rand(shape, generator=draws) for key, shape in shapes.items()}
    torch.save({**state, "teacher.stage.norm.num_batches_tracked": torch.tensor(9)}, path)
