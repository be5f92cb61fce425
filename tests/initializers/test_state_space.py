"""Starts of Mamba, Mamba-2, Qwen3-Next and RWKV: in closed form, on several ranks, in bfloat16.

tests/peers/test_tables.py has the same recipes beside the models of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.placement_types import Shard as TorchShard

import torchinit
from tests.initializers.state_space import RECIPES, decay, mix
from tests.ranks import each_rank, local_of
from tests.stats import assert_distribution
from torchinit.noise import Keyed
from torchinit.plans.run import local_shards, run

DEPTH = 5


class Block(nn.Module):
    """The parameters of a block, by name and shape; of a name with a dot in a module of their own."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split("__")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Linear(1, 1) if leaf in ("weight", "bias") else nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(torch.full(shape, torch.nan)))


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mamba": {"A_log": (61, 16), "D": (61,), "dt_proj__weight": (607, 25), "dt_proj__bias": (607,)},
    "mamba2": {"A_log": (709,), "D": (709,), "dt_bias": (709,)},
    "mamba2_transformers": {"A_log": (23,), "D": (23,), "dt_bias": (709,)},
    "qwen3_next": {"A_log": (709,), "dt_bias": (709,)},
    "rwkv": {
        "attention__time_decay": (37,), "attention__time_first": (37,), "attention__time_mix_key": (1, 1, 29),
        "attention__time_mix_value": (1, 1, 29), "attention__time_mix_receptance": (1, 1, 29),
        "feed_forward__time_mix_key": (1, 1, 29), "feed_forward__time_mix_receptance": (1, 1, 29),
        "key__weight": (37, 29), "key__bias": (37,),
    },
}  # fmt: skip


def built(family: str, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = nn.Module()
    model.layers = nn.ModuleList(Block(**SHAPES[family]) for _ in range(DEPTH))
    if family == "rwkv":
        model.table = nn.Embedding(41, 29)
    return model.to(dtype)


def started(family: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The values of each parameter in all blocks, one on top of the other."""
    model = built(family, dtype)
    torchinit.initialize(model, {"rules": RECIPES[family]}, seed=0, strict=False).assert_ok()
    return {
        name.replace("__", "."): torch.stack(
            [layer.get_parameter(name.replace("__", ".")).detach() for layer in model.layers]
        )
        for name in SHAPES[family]
    }


def softplus(values: Tensor) -> Tensor:
    return torch.from_numpy(np.log1p(np.exp(values.double().numpy())))


LOG_UNIFORM = stats.loguniform(0.001, 0.1).cdf

DRAWN: list[tuple[str, str, Callable[[Tensor], Tensor], Any]] = [
    ("mamba", "dt_proj.weight", lambda x: x, stats.uniform(-1 / 5, 2 / 5).cdf),
    ("mamba", "dt_proj.bias", softplus, LOG_UNIFORM),
    ("mamba2", "A_log", torch.exp, stats.uniform(1, 15).cdf),
    ("mamba2", "dt_bias", softplus, LOG_UNIFORM),
    ("mamba2_transformers", "dt_bias", softplus, LOG_UNIFORM),
    ("qwen3_next", "A_log", torch.exp, stats.uniform(0.01, 15.99).cdf),
]


@pytest.mark.parametrize(("family", "name", "back", "cdf"), DRAWN)
def test_draws_follow_their_distributions(family: str, name: str, back: Any, cdf: Any) -> None:
    """Kolmogorov and Smirnov's distance, at a chance of 1e-9, after SciPy's distribution functions."""
    values = started(family)[name]
    assert_distribution(back(values.double()), cdf, chance=1e-9)
    assert values.unique().numel() > 0.99 * values.numel()  # no block repeats another


def test_what_is_not_drawn() -> None:
    mamba, mamba2, counted = started("mamba"), started("mamba2"), started("mamba2_transformers")
    for row in mamba["A_log"].flatten(0, 1).tolist():
        assert row == pytest.approx([math.log(n) for n in range(1, 17)], rel=1e-6)
    assert counted["A_log"][3].tolist() == pytest.approx([math.log(n) for n in range(1, 24)], rel=1e-6)
    for ones in (mamba["D"], mamba2["D"], counted["D"], started("qwen3_next")["dt_bias"]):
        assert bool((ones == 1).all())


def test_rwkv_block_by_block() -> None:
    model = built("rwkv")
    torchinit.initialize(model, {"rules": RECIPES["rwkv"]}, seed=0).assert_ok(complete=True)
    for index, block in enumerate(model.layers):
        late = index / (DEPTH - 1)
        expected = {
            "attention.time_decay": decay(37, index, DEPTH),
            "attention.time_first": [1.0] * 37,
            "attention.time_mix_key": mix(29, 1 - index / DEPTH),
            "attention.time_mix_value": mix(29, 1 - index / DEPTH, 0.3 * late),
            "attention.time_mix_receptance": mix(29, 0.5 * (1 - index / DEPTH)),
            "feed_forward.time_mix_key": mix(29, 1 - index / DEPTH),
            "feed_forward.time_mix_receptance": mix(29, 1 - index / DEPTH),
        }
        for name, values in expected.items():
            assert block.get_parameter(name).flatten().tolist() == pytest.approx(values, rel=2e-6, abs=1e-7), name
        weight = block.get_parameter("key.weight").detach()
        torch.testing.assert_close(weight.T @ weight, 37 / 29 * torch.eye(29), atol=1e-5, rtol=0)
    table = model.table.weight.detach()
    torch.testing.assert_close(table.T @ table, 1e-8 * 41 * torch.eye(29), atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_those_of_float32_rounded_once(family: str, dtype: torch.dtype) -> None:
    wide, narrow = started(family), started(family, dtype)
    for name, values in narrow.items():
        assert bool(values.isfinite().all()), name
        if name != "dt_proj.weight":  # whose bounds are rounded, too, so that nothing lies beyond them
            assert torch.equal(values, wide[name].to(dtype)), name


def test_a_log_of_a_draw_from_zero_on() -> None:
    """Code that draws U(0, 16) in bfloat16 and takes the logarithm can meet 0; cut below, nothing here does."""
    rule = {**RECIPES["qwen3_next"][0], "init": {"type": "Uniform", "a": 0, "b": 16}, "low": 1e-38}
    model = built("qwen3_next", torch.bfloat16)
    torchinit.initialize(model, {"rules": [rule]}, seed=0)
    assert all(bool(layer.A_log.isfinite().all()) for layer in model.layers)
    with pytest.raises(torchinit.PlanError, match="goes down to 0; give a low above 0"):
        torchinit.initialize(model, {"rules": [{**rule, "low": None}]}, seed=0)


def sharded(model: nn.Module, mesh: DeviceMesh, rank: int, dim: int) -> None:
    """Cut every parameter along a dimension, the way torch.chunk does; a rank may get nothing."""
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            at = dim % parameter.dim()
            parts = parameter.detach().chunk(mesh.size(), at)
            local = parts[rank] if rank < len(parts) else parameter.detach().narrow(at, 0, 0)
            whole = local_of(local.clone(), mesh, TorchShard(at), *parameter.shape)
            module.register_parameter(leaf, nn.Parameter(whole))


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("dim", [0, -1])
def test_ranks_have_their_parts_of_the_same_bits(family: str, world: int, dim: int) -> None:
    alone, recipe = built(family), {"rules": RECIPES[family]}
    torchinit.initialize(alone, recipe, seed=7)
    for rank, mesh in enumerate(each_rank(world)):
        model = built(family)
        sharded(model, mesh, rank, dim)
        plan = torchinit.plan(model, recipe)
        assert [(step.site.shape, step.fill) for step in plan] == [
            (step.site.shape, step.fill) for step in torchinit.plan(alone, recipe)
        ]
        run(plan, local_shards(model), Keyed(7))
        for name, parameter in model.named_parameters():
            at = dim % parameter.dim()
            parts = alone.get_parameter(name).detach().chunk(world, at)
            local = parameter.detach().to_local()
            assert local.numel() == 0 if rank >= len(parts) else torch.equal(local, parts[rank]), name
