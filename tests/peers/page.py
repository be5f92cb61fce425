"""The examples of MMEngine's page on initialization, in words of our own: run with the library to import from.

    .venv-peers/bin/python tests/peers/page.py mmengine.model
    .venv/bin/python tests/peers/page.py torchinit.mmengine

prints what they print, each under its name. Both need a folder to write a checkpoint to: the current one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn


def classes(library: Any) -> tuple[Any, ...]:
    """The models of the examples, on a library's ``BaseModule``."""

    class Mixed(library.BaseModule):
        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__(init_cfg)
            self.linear = nn.Linear(1, 1)
            self.conv = nn.Conv2d(1, 1, 1)

    class Pair(library.BaseModule):
        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__(init_cfg)
            self.conv1 = nn.Conv2d(1, 1, 1)
            self.conv2 = nn.Conv2d(1, 1, 1)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.custom_weight = nn.Parameter(torch.zeros(1, 1, 1, 1))
            self.custom_bias = nn.Parameter(torch.ones(1))

        def init_weights(self) -> None:
            with torch.no_grad():
                self.custom_weight = self.custom_weight.fill_(1)  # type: ignore[assignment]  # the same parameter
                self.custom_bias = self.custom_bias.fill_(0)  # type: ignore[assignment]

    class Chained(Pair):
        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__(init_cfg)
            self.custom_conv = Custom()

    return Mixed, Pair, Chained


def pretrained(library: Any) -> None:
    mixed, *_ = classes(library)
    torch.save(mixed().state_dict(), "./pretrained.pth")
    mixed({"type": "Pretrained", "checkpoint": "./pretrained.pth"}).init_weights()


def pretrained_part(library: Any) -> None:
    mixed, *_ = classes(library)
    torch.save({f"part.{key}": value + 1 for key, value in mixed().state_dict().items()}, "./whole.pth")
    mixed({"type": "Pretrained", "checkpoint": "./whole.pth", "prefix": "part."}).init_weights()


def two_initializers(library: Any) -> None:
    mixed, *_ = classes(library)
    mixed([{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Xavier", "layer": "Linear"}]).init_weights()


def several_layers(library: Any) -> None:
    mixed, *_ = classes(library)
    mixed([{"type": "Kaiming", "layer": ["Conv2d", "Linear"]}]).init_weights()


def override(library: Any) -> None:
    _, pair, _ = classes(library)
    entry = {"type": "Kaiming", "layer": ["Conv2d"], "override": {"type": "Xavier", "name": "conv2"}}
    pair([entry]).init_weights()


def custom(library: Any) -> None:
    *_, chained = classes(library)
    entry = {"type": "Kaiming", "layer": ["Conv2d"], "override": {"type": "Xavier", "name": "conv2"}}
    chained([entry]).init_weights()


def functions(library: Any) -> None:
    layer = nn.Conv2d(1, 1, 1)
    library.normal_init(layer, mean=0, std=0.01, bias=0)
    print(layer.bias)
    library.kaiming_init(layer)
    library.xavier_init(layer)


def called_twice(library: Any) -> None:
    mixed, *_ = classes(library)
    model = mixed({"type": "Constant", "val": 2, "layer": "Linear", "bias": 3})
    model.init_weights()
    print("again")
    model.init_weights()


EXAMPLES: tuple[Callable[[Any], None], ...] = (
    pretrained,
    pretrained_part,
    two_initializers,
    several_layers,
    override,
    custom,
    functions,
    called_twice,
)

if __name__ == "__main__":
    chosen = import_module(sys.argv[1])
    for example in EXAMPLES:
        print(f"=== {example.__name__}")
        example(chosen)
