"""torchtitan: its own tiny Llama starts alike alone and under FSDP2, by `param_init` and by the methods of a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_stubs import standing_in
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from tests.processes import on_ranks, results
from torchinit import ConfigError, PlanError, RunError, fingerprint, initialize, lint, materialize, plan, seeded
from torchinit.integrations.torchtitan import param_init, report
from torchinit.integrations.trainers import init_weights

RECIPE: dict[str, Any] = {
    "rules": [
        {"type": "TruncNormal", "std": 0.02, "name": "**.weight"},
        {"type": "Normal", "std": 1, "layer": "Embedding"},
        {"type": "Ones", "name": ["**.*norm.weight", "norm.weight"]},
    ]
}
TIED: dict[str, Any] = {
    "rules": [*RECIPE["rules"], {"type": "Normal", "name": ["tok_embeddings.weight", "lm_head.weight"]}]
}
KERNELS = "torchtitan.distributed.minimal_async_ep.kernels"
"""The one module of torchtitan, of those imported here, that needs triton."""


@lru_cache(maxsize=1)
def llama() -> Any:
    with standing_in(KERNELS):
        from torchtitan.models import llama3
    return llama3


@lru_cache(maxsize=1)
def attention() -> Any:
    """Attention of torch's own in the place of FlexAttention, which has no backward on the CPU."""
    llama()
    from torchtitan.protocols.module import Module

    class Plain(Module):
        @dataclass(kw_only=True, slots=True)
        class Config(Module.Config):
            pass

        def __init__(self, config: Any) -> None:
            super().__init__()

        def forward(self, q: Any, k: Any, v: Any, **_: Any) -> Any:
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2)

    return Plain.Config()


def config(*, tied: bool = False) -> Any:
    """The debug model of torchtitan, with two of its layers and a small vocabulary."""
    made = llama()._debugmodel("flex")
    made.layers = made.layers[:2]
    for layer in made.layers:
        layer.attention.inner_attention = attention()
        layer.attention.rope = replace(layer.attention.rope, max_seq_len=32)
    made.enable_weight_tying = tied
    return made


def built(made: Any) -> Any:
    with torch.device("meta"):
        return made.build()


def own(model: Any) -> Any:
    """What torchtitan's trainer does with a model on the meta device."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    return model


@lru_cache(maxsize=2)
def alone(tied: bool = False) -> str:
    """The fingerprint of the model initialized in memory, with the buffers that its constructor makes."""
    model = config(tied=tied).build()
    initialize(model, TIED if tied else RECIPE, seed=3)
    return fingerprint(model).total


@pytest.mark.parametrize("tied", [False, True])
def test_param_init_of_a_config(tied: bool) -> None:
    before, recipe = config(tied=tied), TIED if tied else RECIPE
    made = param_init(before, recipe, seed=3)
    assert type(made) is type(before)
    assert made.layers[0].attention.wo.param_init is not before.layers[0].attention.wo.param_init
    assert (
        repr(made.layers[0].attention.wo.param_init)
        == "{'weight': TruncNormal(mean=0.0, std=0.02, a=-2.0, b=2.0, unit='value', corrected=False)}"
    )
    model = built(made)
    waiting = report(model)
    assert waiting.untouched == tuple(step.site.name for step in plan(model, recipe))
    assert not waiting.records
    own(model)
    done = report(model)
    done.assert_ok()
    assert (done.untouched, done.buffers) == ((), ())
    assert len(done.records) == len({id(each) for each in model.parameters()})
    assert fingerprint(model).total == alone(tied)


def test_init_states_and_a_model_in_place_of_its_config() -> None:
    model = param_init(built(config()), RECIPE, seed=3)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_states(buffer_device=torch.device("cpu"))
    assert fingerprint(model).total == alone()
    model.init_states()
    assert fingerprint(model).total == alone()
    other = param_init(built(config()), RECIPE, seed=4)
    assert fingerprint(own(other)).total != alone()


@pytest.mark.parametrize("method", ["init_weights", "init_states"])
def test_a_method_of_the_class(method: str) -> None:
    model = built(config())
    model.__class__ = type("Llama", (type(model),), {method: init_weights(RECIPE, seed=3)})
    own(model)
    assert fingerprint(model).total == alone()


def test_materialize_and_its_own_start_under_seeded() -> None:
    model = built(config())
    done = materialize(model, RECIPE, seed=3)
    assert (done.untouched, done.buffers) == ((), ())
    assert fingerprint(model).total == alone()
    totals = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        other = built(config())
        with seeded(other, 3):
            own(other)
        totals.append(fingerprint(other).total)
    assert totals[0] == totals[1] != alone()


def test_a_config_that_stands_in_several_places() -> None:
    shared = config()
    assert shared.layers[0] is not shared.layers[1]
    shared.layers[1] = shared.layers[0]
    assert fingerprint(own(built(param_init(shared, RECIPE, seed=3)))).total == alone()
    assert shared.layers[1] is shared.layers[0]


@dataclass
class Part:
    """A config of a layer."""

    param_init: Any = None


@dataclass
class Pair:
    """A config that makes two layers from one."""

    layer: Part = field(default_factory=Part)
    inner: Any = None
    param_init: Any = None

    def build(self) -> nn.Module:
        made = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("first", "second")})
        for layer in made.values():
            layer._param_init = self.layer.param_init
        return made if self.inner is None else made["first"]


def test_one_config_for_several_modules_of_one_number() -> None:
    made = param_init(Pair(), {"rules": [{"type": "Ones", "name": "**"}]}, seed=0)
    model = made.build()
    for layer in model.children():
        writers: Any = layer._param_init
        for leaf, parameter in layer.named_parameters():
            writers[leaf](parameter.data)  # as init_states does
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())
    assert [record.name for record in report(model)] == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert report(model).untouched == ()


def test_a_config_that_holds_itself() -> None:
    around = Pair()
    around.inner = [{"again": around}]
    made = param_init(around, {"rules": [{"type": "Ones", "name": "**"}]}, seed=0)
    assert made.inner[0]["again"] is made is not around
    assert repr(made.layer.param_init) == "{'weight': Constant(val=1.0), 'bias': Constant(val=1.0)}"


def test_mistakes_are_found_before_anything_is_built() -> None:
    with pytest.raises(PlanError, match=r"norm\.weight"):
        param_init(config(), {"rules": [{"type": "Normal", "layer": ["Linear", "Embedding"]}]}, seed=0)
    with pytest.raises(ConfigError, match="Nrmal"):
        param_init(config(), {"rules": [{"type": "Nrmal", "name": "**"}]}, seed=0)
    buffers = {"rules": [*RECIPE["rules"], {"type": "Zeros", "name": "**.cache", "buffers": True}]}
    with pytest.raises(RunError, match=r"rope\.cache.*: a param_init is for parameters; torchtitan makes buffers in"):
        param_init(config(), buffers, seed=0)
    with pytest.raises(RunError, match=r"first and second are made from one config.* the model instead"):
        param_init(Pair(), {"rules": [{"type": "Normal", "name": "**"}]}, seed=0)
    with pytest.raises(RunError, match=r"first and second are made from one config"):
        param_init(
            Pair(), {"rules": [{"type": "Ones", "name": "first.*"}, {"type": "Zeros", "name": "second.*"}]}, seed=0
        )
    with pytest.raises(RunError, match=r"no module here has a param_init, which came with torchtitan 0\.3"):
        param_init(nn.Linear(2, 2), {"rules": [{"type": "Ones", "name": "**"}]}, seed=0)
    with pytest.raises(RunError, match="dict: no module here has a param_init"):
        param_init({"dim": 2}, RECIPE, seed=0)
    with pytest.raises(RunError, match=r"Linear was not made from torchinit\.integrations\.torchtitan\.param_init"):
        report(nn.Linear(2, 2))
    with pytest.raises(RunError, match="meta"):
        param_init(built(config()), RECIPE, seed=0).init_states(buffer_device=torch.device("cpu"))


# --- FSDP2 on two ranks ----------------------------------------------------------------------------------------------


def by_param_init() -> Any:
    return built(param_init(config(), RECIPE, seed=3))


def by_method() -> Any:
    model = built(config())
    model.__class__ = type("Llama", (type(model),), {"init_weights": init_weights(RECIPE, seed=3)})
    return model


def by_its_own() -> Any:
    return built(config())


STARTS: dict[str, Callable[[], Any]] = {"param_init": by_param_init, "method": by_method, "own": by_its_own}


def started(name: str, model: Any) -> None:
    if name != "own":
        own(model)
        return
    with seeded(model, 3):
        own(model)


def on_rank(rank: int) -> dict[str, tuple[str, list[float], int]]:
    """Each start under FSDP2 as torchtitan applies it; what two steps of training make of the loss, and lint finds."""
    torch.manual_seed(rank)
    llama()
    from torchtitan.distributed.fsdp import apply_fsdp_to_decoder

    found = {}
    for name, make in STARTS.items():
        model = make()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
        apply_fsdp_to_decoder(model, mesh, torch.float32, torch.float32, pp_enabled=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        started(name, model)
        total = fingerprint(model).total
        tokens = torch.arange(64).reshape(2, 32)
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        found[name] = total, losses, sum(each.severity == "error" for each in lint(model))
    return found


def test_fsdp2_on_two_ranks(tmp_path: Path) -> None:
    first, second = results(on_ranks(2, on_rank, tmp_path))
    expected = {"param_init": alone(), "method": alone()}
    model = by_its_own()
    started("own", model)
    expected["own"] = fingerprint(model).total
    for name in STARTS:
        assert first[name][0] == second[name][0] == expected[name], name
        assert first[name][1] == second[name][1]
        assert first[name][1][-1] < first[name][1][0]
        assert first[name][2] == 0
