"""What several tests of commands are given: models and a recipe of examples/, and rules as the text of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
MLP = f"{ROOT}/examples/models.py:mlp"
TRANSFORMER = f"{ROOT}/examples/models.py:Transformer"
RECIPE = str(ROOT / "examples/mlp.toml")
KAIMING = {"type": "Kaiming", "layer": "Linear", "mode": "fan_in"}

Write = Callable[[str, str], str]


def rules(*entries: Mapping[str, object]) -> str:
    return json.dumps({"rules": entries})
