"""Plain shards: what each rank writes is its part of the whole model of one process, which is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from torchinit import (
    ConfigError,
    Constant,
    Kaiming,
    Normal,
    Orthogonal,
    PlanError,
    Rule,
    RunError,
    TruncNormal,
    Xavier,
    initialize,
    plan,
)
from torchinit.distributed import Shard, initialize_shards

FILLS = [Normal(std=0.02), TruncNormal(std=0.5), Xavier(distribution="uniform"), Kaiming(), Orthogonal(), Constant(3)]


class Block(nn.Module):
    """A block as Megatron cuts it: columns of the first layer, rows of the second, all of the norm."""

    def __init__(self, width: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight


def cut(tensor: torch.Tensor, name: str, axis: int, rank: int, ranks: int) -> Shard:
    size = tensor.shape[axis] // ranks
    start = tuple(rank * size if d == axis else 0 for d in range(tensor.dim()))
    shape = tuple(size if d == axis else s for d, s in enumerate(tensor.shape))
    return Shard(name, torch.full(shape, torch.nan), tuple(tensor.shape), start)


def of(shard: Shard, whole: torch.Tensor) -> torch.Tensor:
    for axis, (low, size) in enumerate(zip(shard.start, shard.local.shape, strict=True)):
        whole = whole.narrow(axis, low, size)
    return whole


@given(st.data(), st.sampled_from(FILLS), st.integers(0, 2**50))
def test_any_box_has_the_values_of_the_whole(data: st.DataObject, fill: Any, seed: int) -> None:
    shape = (data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9)))
    whole = nn.ParameterDict({"a": nn.Parameter(torch.empty(shape))})
    initialize(whole, Rule("a", fill), seed=seed)
    start = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    local = tuple(data.draw(st.integers(1, size - low)) for low, size in zip(start, shape, strict=True))
    shard = Shard("a", torch.full(local, torch.nan), shape, start)
    report = initialize_shards({"a": shard}, Rule("a", fill), seed=seed)
    assert torch.equal(shard.local, of(shard, whole["a"].detach()))
    assert (report["a"].shape, report["a"].bytes) == (shape, shard.local.nbytes)


def megatron(rank: int, ranks: int, stage: int) -> dict[str, Shard]:
    """What a rank of two stages of tensor parallelism holds; the last stage has the head, the first the embedding."""
    model = Net()
    shards = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        path = name.split(".")
        here = path[0] == ("head" if stage else "embed") or (path[0] == "layers" and int(path[1]) // 2 == stage)
        axis = {"up": 0, "down": 1, "embed": 0, "head": 0}.get(path[-2])
        if here and axis is not None and axis < tensor.dim():
            shards[name] = cut(tensor, name, axis, rank, ranks)
        elif here:
            shards[name] = Shard.whole(name, torch.full(tuple(tensor.shape), torch.nan))
    return shards


def test_ranks_and_stages_of_megatron_hold_the_model_of_one_process() -> None:
    recipe = {
        "rules": [
            {"type": "Kaiming", "layer": "Linear", "mode": "fan_in", "bias": 0},
            {"type": "Normal", "std": "0.02 / sqrt(2 * depth)", "name": "**.down.weight"},
            {"type": "Constant", "val": 1, "layer": "LayerNorm", "bias": 0},
            {"type": "Normal", "std": 0.02, "name": ["embed.weight", "head.weight"]},
        ]
    }
    with torch.device("meta"):
        planned = plan(Net(), recipe)
    whole = Net()
    initialize(whole, recipe, seed=7)
    every = dict(whole.named_parameters(remove_duplicate=False))
    for stage in (0, 1):
        for rank in (0, 1):
            shards = megatron(rank, 2, stage)
            initialize_shards(shards, planned, seed=7, complete=True)
            assert len(shards) == 13
            for name, shard in shards.items():
                assert torch.equal(shard.local, of(shard, every[name].detach())), name


def test_fused_weights_in_pieces_and_roles_by_name() -> None:
    """A rank's rows of a fused qkv are three stretches of the whole; the names alone tell a scheme the roles."""
    name = "transformer.h.0.attn.c_attn.weight"
    whole = {name: nn.Parameter(torch.empty(24, 8)), "transformer.wte.weight": nn.Parameter(torch.empty(50, 8))}
    local = torch.full((12, 8), torch.nan)
    pieces = [Shard(name, local[4 * n : 4 * n + 4], (24, 8), (8 * n + 4, 0)) for n in range(3)]
    rules = [Rule("**.weight", Normal(std=0.02))]
    model = nn.Module()
    model.add_module("transformer", inner := nn.Module())
    inner.add_module("wte", nn.Embedding(50, 8))
    for path in ("h", "0", "attn", "c_attn"):
        inner.add_module(path, inner := nn.Module())
    inner.weight = whole[name]
    initialize(model, rules, seed=1)
    report = initialize_shards({name: pieces}, rules, seed=1)
    assert torch.equal(local, torch.cat([whole[name].detach()[8 * n + 4 : 8 * n + 8] for n in range(3)]))
    assert report[name].measured is not None


def test_arguments_and_what_no_rule_covers() -> None:
    shards = {"a.weight": Shard.whole("a.weight", torch.ones(2, 2)), "b": Shard.whole("b", torch.ones(3))}
    recipe = {"arguments": {"std": 0.02}, "rules": [{"type": "Normal", "std": "std", "name": "a.*"}]}
    report = initialize_shards(shards, recipe, seed=0, arguments={"std": 0.5})
    assert report["a.weight"].expected is not None
    assert (report["a.weight"].expected.std, report.untouched) == (0.5, ("b",))
    with pytest.raises(PlanError, match="b"):
        initialize_shards(shards, recipe, seed=0, complete=True)


def whole_of(*shape: int) -> Shard:
    return Shard("a", torch.ones(shape), shape, (0,) * len(shape))


@pytest.mark.parametrize(
    ("shards", "kind", "text"),
    [
        ({"b": whole_of(2)}, ConfigError, "b: its shard is called 'a'; values belong to names"),
        (
            {"a": Shard("a", torch.ones(2), (4, 2), (0, 0))},
            ConfigError,
            r"local shape \(2,\), start \(0, 0\) and",
        ),
        (
            {"a": Shard("a", torch.ones(2), (4,), (3,))},
            ConfigError,
            r"at \(3,\) reaches beyond the whole, \(4,\)",
        ),
        ({"a": Shard("a", torch.ones(2), (4,), (-1,))}, ConfigError, "reaches beyond the whole"),
        ({"a": [whole_of(2), whole_of(3)]}, ConfigError, r"parts are of wholes of other shapes, \(2,\) and \(3,\)"),
        ({"a": []}, ConfigError, "a: has no parts; leave out what is not here"),
        ({"a": torch.ones(2)}, TypeError, r"a: a Shard\(name, local, shape, start\) is needed, but got a Tensor"),
        ({"a": 3}, TypeError, "a: a Shard.* is needed, but got a int"),
        ([whole_of(2)], TypeError, r"shards are a dict of names, \{'layers.3.0.weight': Shard.*, but got list"),
        ({"a": Shard("a", torch.ones(2, device="meta"), (2,), (0,))}, RunError, "a: is on the meta device"),
    ],
)
def test_what_is_not_a_part(shards: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        initialize_shards(shards, Rule("**", Normal()), seed=0)


def test_tied_tensors_have_one_name() -> None:
    tensor = torch.ones(2, 2)
    shards = {name: Shard.whole(name, tensor) for name in ("embed", "head")}
    with pytest.raises(ConfigError, match="in one memory; give a tied tensor one name\n  embed and head"):
        initialize_shards(shards, Rule("**", Normal()), seed=0)


def part(start: tuple[int, ...], *shape: int, whole: tuple[int, ...] = (8, 8), dtype: Any = torch.float32) -> Shard:
    return Shard("a", torch.full(shape, 9.0, dtype=dtype), whole, start)


@pytest.mark.parametrize(
    ("parts", "pair"),
    [
        (
            [part((0, 0), 6, 8), part((4, 0), 4, 8)],
            r"part of shape \(6, 8\) at \(0, 0\) and part of shape \(4, 8\) at \(4, 0\)",
        ),
        ([part((4, 0), 4, 8), part((0, 0), 6, 8)], r"\(6, 8\) at \(0, 0\) and part of shape \(4, 8\) at \(4, 0\)"),
        ([part((0, 0), 4, 8), part((0, 0), 8, 4)], r"\(4, 8\) at \(0, 0\) and part of shape \(8, 4\) at \(0, 0\)"),
        ([part((0, 0), 8, 8), part((3, 3), 1, 1)], r"\(8, 8\) at \(0, 0\) and part of shape \(1, 1\) at \(3, 3\)"),
        (
            [part((0, 0), 4, 4), part((4, 0), 4, 4), part((0, 3), 8, 4)],
            r"\(0, 0\) and part of shape \(8, 4\) at \(0, 3\)",
        ),
    ],
)
def test_parts_that_overlap(parts: list[Shard], pair: str) -> None:
    with pytest.raises(ConfigError, match=rf"a: its .*{pair} overlap; correct their starts, or cut one"):
        initialize_shards({"a": parts}, Rule("a", Normal()), seed=0)
    assert all(bool((each.local == 9).all()) for each in parts)  # nothing was written


@given(st.data())
def test_overlaps_are_found_where_an_element_is_in_two_parts(data: st.DataObject) -> None:
    boxes = data.draw(st.lists(st.tuples(*(st.integers(0, 5),) * 2, *(st.integers(0, 3),) * 2), min_size=1, max_size=6))
    parts = [part((row, column), height, width) for row, column, height, width in boxes]
    held = [{(x, y) for x in range(r, r + h) for y in range(c, c + w)} for r, c, h, w in dict.fromkeys(boxes)]
    if sum(map(len, held)) > len(set().union(*held)):
        with pytest.raises(ConfigError, match="overlap"):
            initialize_shards({"a": parts}, Rule("a", Normal()), seed=0)
    else:
        initialize_shards({"a": parts}, Rule("a", Normal()), seed=0)


def test_copies_of_a_part_and_gaps_between_parts() -> None:
    parts = [part((0, 0), 2, 8), part((0, 0), 2, 8), part((6, 0), 2, 8)]
    initialize_shards({"a": [*parts, parts[2]], "b": Shard("b", torch.ones(()), (), ())}, Rule("**", Normal()), seed=0)
    assert torch.equal(parts[0].local, parts[1].local)
    assert not torch.equal(parts[0].local, parts[2].local)


def test_parts_of_several_dtypes() -> None:
    parts = [part((0, 0), 4, 8), part((4, 0), 4, 8, dtype=torch.bfloat16)]
    text = r"a: its part of shape \(4, 8\) at \(0, 0\) is torch.float32, and part .* is torch.bfloat16; initialize"
    with pytest.raises(ConfigError, match=text):
        initialize_shards({"a": parts}, Rule("a", Normal()), seed=0)


def test_parts_of_a_tied_tensor_under_both_its_names() -> None:
    """Under each name there is one part; under the plan's they overlap, and so do not pass."""
    shards = {
        name: Shard(name, torch.ones(4, 8), (16, 8), (2 * n, 0))
        for n, name in enumerate(("embed.weight", "head.weight"))
    }
    planned = plan(Net(), Rule("**", Normal()))
    with pytest.raises(ConfigError, match=r"embed.weight: its .* at \(0, 0\) and .* at \(2, 0\) overlap"):
        initialize_shards(shards, planned, seed=0)
    shards["head.weight"] = Shard("head.weight", torch.ones(4), (16,), (0,))
    with pytest.raises(RunError, match=r"planned for shape \(16, 8\), but it has \(16,\)"):
        initialize_shards(shards, planned, seed=0)


def test_parts_in_one_memory() -> None:
    """One local tensor for two places, slices of a buffer that overlap, and columns that begin within another part."""
    memory = torch.ones(64)
    for parts in (
        [Shard("a", memory[:32].view(4, 8), (8, 8), (at, 0)) for at in (0, 4)],
        [Shard("a", memory[at * 4 : at * 4 + 32].view(4, 8), (8, 8), (at, 0)) for at in (0, 4)],
        [Shard("a", memory.view(8, 8)[:4], (16, 8), (0, 0)), Shard("a", memory.view(8, 8)[:, 4:], (16, 8), (8, 0))],
    ):
        with pytest.raises(
            ConfigError, match=r"a: its part of .* at \(0, 0\) and part .*; give each elements of its own"
        ):
            initialize_shards({"a": parts}, Rule("**", Normal()), seed=0)
    shards = {name: Shard(name, memory[at : at + 8], (8,), (0,)) for name, at in (("b", 4), ("a", 0), ("c", 16))}
    with pytest.raises(ConfigError, match=r"in one memory; give a tied tensor one name\n  a and b$"):
        initialize_shards(shards, Rule("**", Normal()), seed=0)
    columns = [Shard("a", memory.view(8, 8)[:, at : at + 4], (8, 8), (0, at)) for at in (0, 4)]
    initialize_shards({"a": columns}, Rule("**", Normal()), seed=0)
    initialize_shards({"a": Shard.whole("a", whole := torch.ones(8, 8))}, Rule("**", Normal()), seed=0)
    assert torch.equal(memory.view(8, 8), whole)


def test_a_plan_of_another_model() -> None:
    planned = plan(Net(), Rule("**", Normal()))
    with pytest.raises(ConfigError, match=r"the plan lacks 1 tensor of the shards\n  embed.wieght; did you mean"):
        initialize_shards({"embed.wieght": Shard.whole("embed.wieght", torch.ones(2))}, planned, seed=0)
    with pytest.raises(RunError, match=r"planned for shape \(16, 8\), but it has \(8, 8\)"):
        initialize_shards({"embed.weight": Shard.whole("embed.weight", torch.ones(8, 8))}, planned, seed=0)


def test_a_dtensor() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        mesh = init_device_mesh("cpu", (1,))
        tensor = DTensor.from_local(torch.ones(2), mesh, [Replicate()], run_check=False)
        with pytest.raises(TypeError, match="a: is a DTensor, which knows its part"):
            initialize_shards({"a": Shard("a", tensor, (2,), (0,))}, Rule("**", Normal()), seed=0)
    finally:
        dist.destroy_process_group()
