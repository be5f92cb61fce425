"""Sharded: Llama, GPT-2 and Mixtral start alike from one process and from many, by a recipe and by their own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.distributed.layouts import cut, whole
from tests.processes import context, on_ranks, results
from torchinit import (
    Layer,
    Leaf,
    Name,
    Normal,
    Ones,
    Pretrained,
    Rule,
    Uniform,
    fingerprint,
    initialize,
    materialize,
    seeded,
    verify_replicas,
)

PRELOAD = ["torchinit", "torch.distributed.fsdp", "transformers.models.mixtral.modeling_mixtral"]
SIZES = {"vocab_size": 101, "hidden_size": 32, "num_attention_heads": 4}
DECODER = {**SIZES, "intermediate_size": 44, "num_hidden_layers": 2, "num_key_value_heads": 2}
RULES = [
    Rule(Name("**"), Normal(std=0.02)),
    Rule(Leaf("bias"), Uniform(-1, 1), optional=True),
    Rule(Layer("LlamaRMSNorm") | Layer("MixtralRMSNorm") | Layer("LayerNorm"), Ones()),
]


@lru_cache(maxsize=1)
def models() -> dict[str, Callable[[], Any]]:
    import transformers

    return {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=101, n_positions=16, n_embd=36, n_layer=2, n_head=4)
        ),
        "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**DECODER, num_local_experts=4)),
    }


def sharded(model: Any, mesh: DeviceMesh) -> None:
    """FSDP2: a group a layer, and one for the rest."""
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[0].endswith(("layers", ".h")):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def parallel(model: Any, mesh: DeviceMesh) -> None:
    """Tensor parallelism over heads and hidden units, expert parallelism over experts; GPT-2 in columns."""
    if hasattr(model, "transformer"):
        cut(model, mesh, 1)
        return
    styles: dict[str, Any] = {
        "model.layers.*.self_attn.[qkv]_proj": ColwiseParallel(),
        "model.layers.*.self_attn.o_proj": RowwiseParallel(),
        "model.layers.*.mlp.*_proj": ColwiseParallel(),
        "lm_head": ColwiseParallel(),
    }
    parallelize_module(model, mesh, styles)
    for name, module in model.named_modules():
        if name.endswith("experts"):
            cut(module, mesh, 0)


def layouts(world: int) -> Iterator[tuple[str, Callable[[Any], None]]]:
    line = init_device_mesh("cpu", (world,))
    yield "fsdp2", lambda model: sharded(model, line)
    yield "tensor and expert parallel", lambda model: parallel(model, line)
    yield "columns", lambda model: cut(model, line, 1)
    if world == 4:
        plane = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        yield "rows and columns", lambda model: cut(model, plane, 0, 1)
        yield "hsdp", lambda model: sharded(model, plane)

        def both(model: Any) -> None:
            parallel(model, plane["tensor"])
            sharded(model, plane["data"])

        yield "fsdp2 x tensor parallel", both


def differing(model: Any, one: Any) -> list[str]:
    """The parameters and buffers that are not those of one process."""
    theirs = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    mine = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [name for name, value in theirs.items() if not torch.equal(whole(mine[name]), value)]


def own_code(model: Any) -> Any:
    with torch.no_grad():
        model.apply(model._init_weights)
    return model


def everything(rank: int) -> dict[str, dict[str, list[str]]]:
    """What differs from one process, by model and layout: by a recipe, by own code seeded, and by own code alone."""
    found = {}
    for name, make in models().items():
        recipe, seeded_one, plain = make(), make(), make()
        initialize(recipe, RULES, seed=5)
        with seeded(seeded_one, seed=5):
            own_code(seeded_one)
        torch.manual_seed(5)
        own_code(plain)
        for layout, lay_out in layouts(dist.get_world_size()):
            with torch.device("meta"):
                model = make()
            lay_out(model)
            materialize(model, RULES, seed=5).assert_ok(complete=True)
            result = {"recipe": differing(model, recipe)}
            with seeded(model, seed=5):
                own_code(model)
            result["seeded"] = differing(model, seeded_one)
            torch.manual_seed(5)
            own_code(model)
            result["plain torch"] = differing(model, plain)
            found[f"{name}, {layout}"] = result
    return found


def outputs(rank: int, folder: Path) -> dict[str, list[str]]:
    """What is wrong with a Llama on ranks in any order: logits and weights, drawn and loaded, and its state dict."""
    one = models()["llama"]()
    initialize(one, RULES, seed=5)
    tokens, file = torch.arange(24).view(2, 12), folder / "one.pth"
    if rank == 0:
        torch.save(one.state_dict(), file)
    dist.barrier()
    expected = one(tokens).logits
    meshes: list[Any] = [[3, 2, 1, 0], [2, 0, 3, 1], [[3, 2], [1, 0]], [[2, 3], [0, 1]]]
    found = {}
    for ranks in meshes:
        names = ("replicas", "shards") if isinstance(ranks[0], list) else ("shards",)
        mesh = DeviceMesh("cpu", torch.tensor(ranks), mesh_dim_names=names)
        for way, rules in (("drawn", RULES), ("loaded", Rule(Name("**"), Pretrained(str(file))))):
            with torch.device("meta"):
                model = models()["llama"]()
            sharded(model, mesh)
            materialize(model, rules, seed=5).assert_ok(complete=True)
            wrong = differing(model, one)
            verify_replicas(model)
            if not torch.allclose(model(tokens).logits, expected, rtol=1e-4, atol=1e-6):
                wrong.append("logits")
            if fingerprint(model) != fingerprint(one):
                wrong.append("fingerprint")
            state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
            if rank == 0 and any(not torch.equal(state[name], value) for name, value in one.state_dict().items()):
                wrong.append("whole state dict")
            found[f"{way} {ranks}"] = wrong
    return found


@pytest.mark.filterwarnings("ignore")
def test_llama_on_ranks_in_any_order(tmp_path: Path) -> None:
    """The logits of one process from meshes whose ranks do not ascend, and its weights in their state dict."""
    context().set_forkserver_preload(PRELOAD)
    (tmp_path / "files").mkdir()
    for found in results(on_ranks(4, outputs, tmp_path, tmp_path / "files")):
        assert len(found) == 8
        assert {layout: wrong for layout, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_one_answer(world: int, tmp_path: Any) -> None:
    context().set_forkserver_preload(PRELOAD)
    for found in results(on_ranks(world, everything, tmp_path)):
        assert len(found) == 3 * (6 if world == 4 else 3)
        assert {layout: each["recipe"] for layout, each in found.items() if each["recipe"]} == {}
        assert {layout: each["seeded"] for layout, each in found.items() if each["seeded"]} == {}
        # What torch alone makes of the same seed and the same code: another model for each layout.
        alone = {layout: each["plain torch"] for layout, each in found.items()}
        assert all(bool(names) == (world > 1) for names in alone.values()), alone
