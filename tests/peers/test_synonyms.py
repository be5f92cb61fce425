"""Hints: the line that stands for a name of JAX or MMEngine gives the distribution that the library itself draws."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

import torchinit
from torchinit.initializers.functions import Synonym, synonyms

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    from mmengine.model import weight_init

ROWS = [row for rows in synonyms().values() for row in rows]
OUT, IN = 300, 200
NEEDED: dict[str, dict[str, Any]] = {
    "constant": {"value": 0.0},
    "variance_scaling": {"scale": 1.0, "mode": "fan_in", "distribution": "truncated_normal"},
    "ConstantInit": {"val": 0.0},
}


def rows_of(library: str) -> list[Synonym]:
    return [row for row in ROWS if library in row.library]


def drawn(row: Synonym, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    layer = nn.ParameterDict({"weight": torch.empty(shape)})
    torchinit.initialize(layer, {"type": row.type, **row.arguments, "name": "weight"}, seed=0)
    return np.asarray(layer["weight"].detach())


def assert_alike(ours: Any, theirs: Any) -> None:
    """Six standard errors of the difference of two samples of a kurtosis of 3 at most, and the same bounds."""
    std = float(theirs.std())
    slack = 6 * std * np.sqrt(2 / theirs.size) + 1e-6
    assert abs(ours.mean() - theirs.mean()) <= slack
    assert abs(ours.std() - std) <= slack
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.3, abs=1e-6)  # 2 or 1.73 std, or no bound


@pytest.mark.parametrize("row", rows_of("JAX"), ids=lambda row: row.name)
def test_jax_draws_the_same(row: Synonym) -> None:
    made = getattr(jax.nn.initializers, row.name)
    make = made if "key" in inspect.signature(made).parameters else made(**NEEDED.get(row.name, {}))
    # JAX has inputs before outputs, of a kernel at the end.
    shape, turned = ((IN, OUT), (OUT, IN)) if row.type != "DeltaOrthogonal" else ((3, 40, 60), (60, 40, 3))
    assert_alike(drawn(row, turned), np.asarray(make(jax.random.key(1), shape, "float32")))


def test_every_name_of_jax_has_a_row() -> None:
    names = {name for name in dir(jax.nn.initializers) if not name.startswith("_") and name != "Initializer"}
    assert len(names) > 15
    assert names <= {row.name for row in rows_of("JAX")}


@pytest.mark.parametrize(
    "row", [row for row in rows_of("MMEngine") if row.type not in ("Prior", "Pretrained")], ids=lambda row: row.name
)
def test_mmengine_draws_the_same(row: Synonym) -> None:
    layer = nn.Linear(IN, OUT)
    getattr(weight_init, row.name)(layer="Linear", **NEEDED.get(row.name, {}))(layer)
    assert_alike(drawn(row, (OUT, IN)), layer.weight.detach().numpy())


def test_every_initializer_of_mmengine_has_a_row() -> None:
    names = {name for name in vars(weight_init) if name.endswith("Init")} - {"BaseInit"}
    assert names <= {row.name for row in rows_of("MMEngine")}
