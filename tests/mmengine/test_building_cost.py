"""The watch under which a base module is built costs little: counted calls, which no other load changes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.calls import calls
from torchinit.mmengine import BaseModule
from torchinit.tracing.allocator import allocator


class Layers(BaseModule):
    """A convolution and a norm, so many times: five tensors each that are handed out without values, one with one."""

    def __init__(self, number: int, dtype: torch.dtype) -> None:
        super().__init__()
        convs = (nn.Conv2d(3, 16, 3, bias=False, dtype=dtype) for _ in range(number))
        self.layers = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(16, dtype=dtype)) for conv in convs)


class Nested(BaseModule):
    """Base modules that hold each other."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.inner = Nested(depth - 1) if depth else None


# What was counted, and 4 % more. While all ends were looked at in one way, and none was passed over, a pair of layers
# took 234, 140 while zeros and ones were stamped, too, and 131 before the allocator did it; a base module took the more
# the more others it was in.
def calls_a_pair(dtype: torch.dtype) -> float:
    small, large = (calls(lambda number=number: Layers(number, dtype)) for number in (10, 60))  # type: ignore[misc]
    return (large - small) / 50


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_calls_a_pair_of_layers(dtype: str) -> None:
    # In a process of its own: kernels that a watch without the allocator has registered stay in this one.
    code = f"import torch; from {__name__} import calls_a_pair; print(calls_a_pair(torch.{dtype}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) <= (38 if allocator() else 131)


def test_calls_a_base_module_within_another() -> None:
    counts = [calls(lambda depth=depth: Nested(depth)) for depth in (10, 20, 30)]  # type: ignore[misc]
    assert counts[2] - counts[1] == counts[1] - counts[0]
    assert (counts[1] - counts[0]) / 10 <= 36
