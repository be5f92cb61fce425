"""Runs of torchinit without a seed, within ``seeded`` and ``init_weights(seed=)``: their draws belong to names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.utils import parametrizations

from tests.processes import on_ranks, results
from tests.ranks import each_rank
from tests.strategies import label
from torchinit import (
    Constant,
    Kaiming,
    Layer,
    Leaf,
    Name,
    Normal,
    Orthogonal,
    Pretrained,
    Rule,
    RunError,
    TruncNormal,
    Uniform,
    initialize,
    lock,
    materialize,
    plan,
    seeded,
)
from torchinit.initializers import Scaled, Sparse, Stacked
from torchinit.mmengine import BaseModule, ModuleDict, NormalInit
from torchinit.mmengine import initialize as initialize_by_config
from torchinit.model.dtensor import shards_of
from torchinit.noise import Global
from torchinit.plans.run import local_shards, run

Values = dict[str, Tensor]
Work = Callable[[Any, Sequence[str]], object]
NAMES = ("a", "b", "c", "d")


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 4, 3))
        self.register_buffer("noise", torch.zeros(5))


def model() -> nn.ModuleDict:
    """Plain tensors, one that is computed from a basis that torch completes by chance, a stack with a buffer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict(
            {
                "a": nn.Linear(6, 8),
                "b": nn.Linear(8, 5),
                "c": parametrizations.orthogonal(nn.Linear(3, 5)),
                "d": Stack(),
            }
        )


def values(of: nn.Module) -> Values:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def differing(one: Values, other: Values) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def after(work: Work, seed: int = 1, *, state: int = 0, order: Sequence[str] = NAMES) -> Values:
    """The values of a model after work on it; the caller's generator is as it was."""
    one = model()
    torch.manual_seed(state)
    before = torch.get_rng_state()
    with seeded(one, seed):
        work(one, order)
    assert torch.equal(torch.get_rng_state(), before)
    return values(one)


def rules_of(init: Any) -> list[Rule]:
    return [Rule(Name("**.weight") | Name("weight"), init), Rule(Name("**.noise") | Name("noise"), init, buffers=True)]


INITS: dict[str, Any] = {
    "normal": Normal(),
    "uniform": Uniform(-1, 1),
    "truncated": TruncNormal(),
    "a function": lambda weight: weight.copy_(torch.randn(weight.shape)),
    "times 2": Scaled(Uniform(), 2.0),
}
MATRICES: dict[str, Any] = {"orthogonal": Orthogonal(), "sparse": Sparse(0.5), "kaiming": Kaiming()}


def of_matrices(init: Any) -> list[Rule]:
    stack = Rule(Name("d.weight") | (Leaf("weight") & Layer("Stack")), Stacked(init))
    return [Rule(Layer("Linear", subclasses=True) & Leaf("weight"), init), stack]


RULES = {**{name: rules_of(init) for name, init in INITS.items()}, **{n: of_matrices(i) for n, i in MATRICES.items()}}


@pytest.mark.parametrize("name", RULES)
def test_a_first_run_has_the_values_of_one_with_the_seed(name: str) -> None:
    expected = model()
    initialize(expected, RULES[name], seed=1)
    ours = after(lambda one, _: initialize(one, RULES[name]))
    assert not differing(ours, values(expected))
    drawn = differing(ours, values(model()))
    assert {"a.weight", "b.weight", "c.parametrizations.weight.0.base", "d.weight"} <= drawn
    assert differing(ours, after(lambda one, _: initialize(one, RULES[name]), seed=2)) == drawn


def test_a_generator_is_no_other_source_and_stays_as_it_is() -> None:
    generator = torch.Generator().manual_seed(8)
    before = generator.get_state()
    ours = after(lambda one, _: initialize(one, RULES["normal"], seed=generator))
    assert not differing(ours, after(lambda one, _: initialize(one, RULES["normal"])))
    assert torch.equal(generator.get_state(), before)


def test_a_seed_of_its_own_counts_wherever_it_is_given() -> None:
    expected = model()
    initialize(expected, RULES["normal"], seed=4)
    assert not differing(after(lambda one, _: initialize(one, RULES["normal"], seed=4)), values(expected))


def config(module: nn.Module) -> dict[str, Any]:
    return {"type": "Normal", "std": 0.5, "layer": type(module).__name__, "optional": True}


WAYS: dict[str, Work] = {
    "initialize": lambda one, order: [initialize(one[name], rules_of(Normal())) for name in order],
    "twice": lambda one, order: [initialize(one[name], rules_of(Uniform())) for _ in "12" for name in order],
    "an init_cfg": lambda one, order: [initialize_by_config(one[name], config(one[name])) for name in order],
    "an object": lambda one, order: [NormalInit(std=2, layer=type(one[name]).__name__)(one[name]) for name in order],
    "among others": lambda one, order: [
        (nn.init.normal_(one[name].bias), initialize(one[name], Normal()), nn.init.uniform_(one[name].bias))
        for name in order
        if name in "ab"
    ],
}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8)
@given(data=st.data())
def test_neither_the_generator_nor_the_order_counts(way: str, data: st.DataObject) -> None:
    state, order = data.draw(st.integers(0, 2**63)), data.draw(st.permutations(NAMES))
    expected = after(WAYS[way])
    assert not differing(expected, after(WAYS[way], state=state, order=order))
    assert "a.weight" in differing(expected, after(WAYS[way], seed=2))


def test_a_second_run_gives_others_and_so_does_a_draw_after_it() -> None:
    found: list[Tensor] = []
    one = nn.Linear(4, 4)
    with seeded(one, 1):
        for _ in range(2):
            initialize(one, Rule(Leaf("weight"), Normal()))
            found.append(one.weight.detach().clone())
            found.append(nn.init.normal_(one.weight).detach().clone())
    assert torch.stack(found).unique().numel() == 4 * 16


def test_what_is_not_drawn_does_not_count() -> None:
    ours, theirs = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    with seeded(ours, 1):
        initialize(ours, Rule(Leaf("weight"), Pretrained(theirs)))
        initialize(ours, Rule(Leaf("weight"), Constant(1.0)))
        nn.init.normal_(ours.weight)
    with seeded(theirs, 1):
        nn.init.normal_(theirs.weight)
    assert torch.equal(ours.weight, theirs.weight)


def test_the_report_and_the_trace_tell() -> None:
    one = nn.Linear(4, 4)
    with seeded(one, 7) as seen:
        report = initialize(one, Rule(Leaf("weight"), Normal()))
    assert report.noise == "Keyed(seed=7)"
    assert [(write.site, write.operation) for write in seen.writes] == [("weight", "Normal")]


def test_a_lock_holds() -> None:
    one = nn.Linear(4, 4)
    lock(one, "weight")
    with pytest.raises(RunError, match="weight"), seeded(one, 7):
        initialize(one, Normal())


def test_a_function_that_fails_names_the_site() -> None:
    one = model()

    def fails(_: Tensor) -> None:
        raise ZeroDivisionError("no")

    with seeded(one, 0):
        initialize(one["a"], Rule(Leaf("weight"), Normal()))
        with pytest.raises(RunError, match=r"a\.weight \(draw 2\): .* raised ZeroDivisionError: no"):
            initialize(one["a"], Rule(Leaf("weight"), fails))


@pytest.mark.parametrize("init", [Normal(), Orthogonal(), lambda weight: weight.normal_()], ids=label)
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
def test_a_shard_has_the_values_of_the_whole(placement: Any, init: Any) -> None:
    rules, whole = Rule(Leaf("weight"), init), cast("Any", nn.Sequential(nn.Linear(6, 7)))
    initialize(whole, rules, seed=3)
    for mesh in each_rank(3):
        part: Any = nn.Sequential(nn.Linear(6, 7, bias=False))
        part[0].weight = nn.Parameter(distribute_tensor(part[0].weight.detach(), mesh, [placement]))
        with seeded(part, 3):
            run(plan(part[0], rules), local_shards(part[0]), Global())
        for shard in shards_of("0.weight", part[0].weight):
            place = tuple(slice(a, a + n) for a, n in zip(shard.start, shard.local.shape, strict=True))
            assert torch.equal(shard.local, whole[0].weight[place])


# --- init_weights ------------------------------------------------------------------------------------------


class Outside(BaseModule):
    """A module that is not in the model; its own config draws, or its own code."""

    def __init__(self, *, by_code: bool) -> None:
        super().__init__(None if by_code else {"type": "Normal", "std": 0.1, "layer": "Linear"})
        self.by_code = by_code
        self.fc = nn.Linear(3, 3)

    def init_weights(self) -> None:  # type: ignore[override]
        if self.by_code:
            initialize(self.fc, Rule(Leaf("weight"), Orthogonal()))
        super().init_weights()


class Delegating(nn.Module):
    def __init__(self, other: Outside) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.init_weights = other.init_weights


class Calling(BaseModule):
    """Its own code runs recipes, and objects, for parts of it."""

    def __init__(self) -> None:
        super().__init__({"type": "Uniform", "layer": "Conv1d"})
        self.fc, self.conv = nn.Linear(2, 2), nn.Conv1d(2, 2, 1)
        self.more = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    def init_weights(self) -> None:  # type: ignore[override]
        super().init_weights()
        initialize(self.more, [Rule(Leaf("weight"), Kaiming()), Rule(Leaf("bias"), lambda bias: bias.uniform_())])
        NormalInit(layer="Linear")(self.fc)


def from_outside(*, inner: bool, by_code: bool, seed: int, state: int, backwards: bool) -> Values:
    torch.manual_seed(0)
    outside = [Outside(by_code=by_code) for _ in range(2)]
    parts = {"x": Delegating(outside[0]), "y": Delegating(outside[1]), "z": Calling()}
    top = ModuleDict({name: parts[name] for name in (reversed(parts) if backwards else parts)})
    torch.manual_seed(state)
    before = torch.get_rng_state()
    if inner:
        top.init_weights(seed=seed)
    else:
        with seeded(top, seed):
            report = top.init_weights()
        assert report is not None
        assert report.noise == f"Keyed(seed={seed})"
    assert torch.equal(torch.get_rng_state(), before)
    others = {f"outside.{n}.{name}": value for n, each in enumerate(outside) for name, value in values(each).items()}
    return {**values(top), **others}


@pytest.mark.parametrize("by_code", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_code_that_runs_recipes_within_init_weights(inner: bool, by_code: bool) -> None:
    found = from_outside(inner=inner, by_code=by_code, seed=1, state=0, backwards=False)
    for backwards in (False, True):
        again = from_outside(inner=inner, by_code=by_code, seed=1, state=9, backwards=backwards)
        assert not differing(found, again)
    drawn = {"outside.0.fc.weight", "outside.1.fc.weight", "z.fc.weight", "z.more.0.weight", "z.more.1.bias"}
    assert drawn <= differing(found, from_outside(inner=inner, by_code=by_code, seed=2, state=0, backwards=False))
    assert not torch.equal(found["outside.0.fc.weight"], found["outside.1.fc.weight"])


def test_an_own_init_cfg_has_the_values_of_init_weights_with_the_seed() -> None:
    ours, theirs = (ModuleDict({"one": Calling(), "two": Calling()}) for _ in range(2))
    with seeded(ours, 3):
        ours.init_weights()
    theirs.init_weights(seed=3)
    assert not differing(values(ours), values(theirs))


# --- materialize -------------------------------------------------------------------------------------------


class Chance(nn.Module):
    """Draws a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3))
        self.register_buffer("frequencies", torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        self.frequencies.copy_(torch.randn(4))  # type: ignore[operator]


@pytest.mark.parametrize("each", [False, True])
def test_materialize_without_a_seed(each: bool) -> None:
    def made(seed: int, state: int, step: int = 1) -> Values:
        with torch.device("meta"):
            one = nn.ModuleDict({"a": nn.Linear(3, 4), "b": Chance(), "c": nn.Linear(3, 4)})
        torch.manual_seed(state)
        with seeded(one, seed):
            for part in list(one.values())[::step] if each else [one]:
                materialize(part, Rule(Layer("Linear") & Leaf("weight"), Orthogonal(), optional=True))
        return values(one)

    found = made(1, 0)
    for step in (1, -1):
        assert not differing(found, made(1, 9, step))
    assert differing(found, made(2, 0)) == found.keys()
    assert not torch.equal(found["a.weight"], found["c.weight"])


def test_materialize_with_a_seed_has_its_values() -> None:
    found = []
    for outer in (None, 5):
        with torch.device("meta"):
            one = nn.Sequential(Chance())
        with nullcontext() if outer is None else seeded(one, outer):
            materialize(one, Rule(Leaf("weight"), Normal()), seed=1)
        found.append(values(one))
    assert not differing(*found)


# --- on ranks ----------------------------------------------------------------------------------------------


class Sharded(BaseModule):
    """Its own code runs what there is, on parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 7), nn.Linear(5, 3), nn.Linear(3, 5)

    def init_weights(self) -> None:  # type: ignore[override]
        initialize(self.a, Rule(Leaf("weight"), Orthogonal()))
        NormalInit(layer="Linear")(self.b)
        initialize_by_config(self.c, {"type": "Xavier", "layer": "Linear"})
        initialize(self.c, Rule(Leaf("bias"), lambda bias: bias.uniform_()))
        nn.init.normal_(self.a.bias)


def initialized(mesh: Any, state: int, *, inner: bool) -> dict[str, Any]:
    top = ModuleDict({"x": Sharded(), "y": Sharded()})
    with torch.no_grad():
        for parameter in top.parameters():
            parameter.zero_()
    for part in top.values() if mesh else ():
        fully_shard(part, mesh=mesh)
    torch.manual_seed(state)
    if inner:
        top.init_weights(seed=4)
    else:
        with seeded(top, 4):
            top.init_weights()
    whole = [(name, each.full_tensor() if mesh else each) for name, each in top.named_parameters()]  # type: ignore[attr-defined]
    return {name: each.detach().numpy().copy() for name, each in whole}


def on_a_rank(rank: int) -> list[dict[str, Any]]:
    return [initialized(init_device_mesh("cpu", (2,)), rank, inner=inner) for inner in (False, True)]


def test_ranks_that_run_recipes_have_the_values_of_one_process(tmp_path: Path) -> None:
    expected = [initialized(None, 9, inner=inner) for inner in (False, True)]
    for found in results(on_ranks(2, on_a_rank, tmp_path)):
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(one[name].tobytes() == other[name].tobytes() for name in one)
            assert all(one[name].any() for name in one if name.endswith("weight"))
