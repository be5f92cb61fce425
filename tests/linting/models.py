"""Models that mistakes are planted in, and what is found in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchinit import lint, trace
from torchinit.linting import Finding, Findings

Loop = Callable[[nn.Module], Any]


class Rotary(nn.Module):
    """A rotary embedding as transformers keeps it: its frequencies are in no state dict."""

    inv_freq: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, width, 2) / width), persistent=False)


class Net(nn.Module):
    """A little of everything: a table, blocks, a norm with statistics, a head."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width, padding_idx=0)
        self.rotary = Rotary()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 50, bias=False)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch() for _ in range(3))
        self.head = nn.Linear(16, 20)
        self.register_buffer("freqs", torch.arange(8.0) + 1, persistent=False)


def only(findings: Findings, code: str) -> Finding:
    """The one finding of a code, and none of another code that is as severe."""
    found = [finding for finding in findings if finding.code == code]
    assert len(found) == 1, findings.table()
    assert {finding.code for finding in findings.at_least(found[0].severity)} == {code}, findings.table()
    return found[0]


def found(model: nn.Module, code: str) -> list[tuple[str, str, str]]:
    return [(one.severity, one.site, one.message) for one in lint(model, select=[code])]


def draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def zero(module: nn.Module) -> None:
    if isinstance(module, Branch):
        nn.init.zeros_(module.down.weight)


def apply(function: Loop) -> Loop:
    return lambda model: model.apply(function)


def traced(model: nn.Module, *steps: Callable[[nn.Module], Any], **known: Any) -> Findings:
    """What is found in a model after these have been done to it."""
    with trace(model) as seen:
        for step in steps:
            step(model)
    return lint(model, trace=seen, **known)
