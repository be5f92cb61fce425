"""Recipes of state-space models and gated recurrences: the parts that no other model has, as their code names them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_DT: Final = {
    "type": "Mapped",
    "init": {"type": "LogUniform", "a": 0.001, "b": 0.1},
    "function": "inverse_softplus",
    "low": 1e-4,
}


def _ramp(stop: float | str, **more: Any) -> dict[str, Any]:
    return {"type": "Ramp", "start": 0, "stop": stop, **more}


def _mixed(name: str, power: str, shift: str = "0") -> dict[str, Any]:
    """(j / width)^power + shift, along the last axis."""
    return {**_ramp(f"1 + {shift}", endpoint=False, power=power), "start": shift, "name": name}


_AGE: Final = "index / (depth - 1)"

RECIPES: Final[Mapping[str, list[dict[str, Any]]]] = {
    "mamba": [
        {"type": "Mapped", "init": {**_ramp("columns"), "start": 1}, "function": "log", "name": "**.A_log"},
        {"type": "Ones", "name": "**.D"},
        {"type": "Uniform", "a": "-1 / sqrt(columns)", "b": "1 / sqrt(columns)", "name": "**.dt_proj.weight"},
        {**_DT, "name": "**.dt_proj.bias"},
    ],
    "mamba2": [  # as in its own code; that of transformers numbers the heads instead of drawing A
        {"type": "Mapped", "init": {"type": "Uniform", "a": 1, "b": 16}, "function": "log", "name": "**.A_log"},
        {"type": "Ones", "name": "**.D"},
        {**_DT, "name": "**.dt_bias"},
    ],
    "mamba2_transformers": [
        {"type": "Mapped", "init": {**_ramp("rows"), "start": 1}, "function": "log", "name": "**.A_log"},
        {"type": "Ones", "name": "**.D"},
        {**_DT, "name": "**.dt_bias"},
    ],
    "qwen3_next": [
        {"type": "Mapped", "init": {"type": "Uniform", "a": 0.01, "b": 16}, "function": "log", "name": "**.A_log"},
        {"type": "Ones", "name": "**.dt_bias"},
    ],
    "rwkv": [
        {"type": "Orthogonal", "gain": "sqrt(max(1, rows / columns))", "layer": "Linear"},
        {"type": "Orthogonal", "gain": "1e-4 * sqrt(max(rows, columns))", "layer": "Embedding"},
        {"type": "Ramp", "start": -5, "stop": 3, "power": f"0.7 + 1.3 * {_AGE}", "name": "**.time_decay"},
        {"type": "Ones", "name": "**.time_first"},
        _mixed("**.time_mix_key", "1 - index / depth"),
        _mixed("**.attention.time_mix_value", "1 - index / depth", f"0.3 * {_AGE}"),
        _mixed("**.attention.time_mix_receptance", "0.5 * (1 - index / depth)"),
        _mixed("**.feed_forward.time_mix_receptance", "1 - index / depth"),
    ],
}


def decay(width: int, index: int, depth: int) -> list[float]:
    """The decay of RWKV's block, as a loop: -5 + 8 (j / (h - 1))^(0.7 + 1.3 i / (L - 1))."""
    return [-5 + 8 * math.pow(j / (width - 1), 0.7 + 1.3 * index / (depth - 1)) for j in range(width)]


def mix(width: int, power: float, shift: float = 0.0) -> list[float]:
    """The share of the new token in RWKV, as a loop: (j / d)^power + shift."""
    return [math.pow(j / width, power) + shift for j in range(width)]
