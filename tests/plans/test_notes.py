"""Notes: what a rule does to the layer at hand, said where it is not what its words suggest; silence elsewhere."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor.placement_types import Shard as TorchShard

import torchinit
from tests.ranks import each_rank, local_of
from torchinit import (
    Constant,
    Kaiming,
    Layer,
    Name,
    Normal,
    Orthogonal,
    PlanError,
    Rule,
    TruncNormal,
    Uniform,
    Xavier,
    Zeros,
    lint,
)
from torchinit.initializers import (
    ICNR,
    Bilinear,
    Blocks,
    DeltaOrthogonal,
    DepthScaled,
    Dirac,
    Identity,
    LeCun,
    LogUniform,
    Mapped,
    Ramp,
    Scaled,
    Stacked,
)
from torchinit.model import Layout, register_layout
from torchinit.noise import Keyed
from torchinit.plans.run import local_shards


class Stack(nn.Module):
    """A layer that nobody has described."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


def notes(model: nn.Module, init: Any, name: str = "weight") -> tuple[str, ...]:
    return torchinit.plan(model, Rule(Name(f"**{name}**"), init))[name].notes


def found(model: nn.Module, init: Any, name: str = "weight") -> list[tuple[str, str]]:
    return [(one.message, one.remedy) for one in lint(model, recipe=Rule(Name(f"**{name}**"), init), select=["TI703"])]


# --- fans ------------------------------------------------------------------------------------------------------

UNKNOWN = "the layout of Stack's weight is not known: counted as a kernel, 131072 in, 32768 out"


WRAPPERS = pytest.mark.parametrize(
    "wrap", [lambda init: init, lambda init: Scaled(init, 0.5), lambda init: Blocks(init, 1)]
)


@WRAPPERS
def test_a_stack_that_nobody_described_is_counted_as_a_kernel_and_said_so(wrap: Any) -> None:
    init = wrap(Kaiming(mode="fan_in"))
    (note,) = notes(Stack(64, 256, 512), init)
    assert note.startswith(UNKNOWN + "; if dimension 0 counts weights, as of experts, take Stacked(...)")
    ((message, remedy),) = found(Stack(64, 256, 512), init)
    assert (message, "Stacked(...)" in remedy) == (UNKNOWN, True)


@WRAPPERS
def test_true_fans_of_a_stack_that_nobody_described_are_an_error(wrap: Any) -> None:
    rule = Rule(Name("**"), wrap(Kaiming(mode="fan_in", fans="true")))
    text = r'at \'weight\': fans = "true", and the layout of Stack\'s weight is not known: .* Stacked'
    with pytest.raises(PlanError, match=text):
        torchinit.plan(Stack(64, 256, 512), rule)
    scheme = replace(rule, scheme="general")  # schemes are for models that nobody looked at
    assert torchinit.plan(Stack(64, 256, 512), scheme)["weight"].notes[0].startswith(UNKNOWN)


def test_the_way_out_works() -> None:
    assert notes(Stack(64, 256, 512), Stacked(Kaiming(mode="fan_in", fans="true"))) == ()
    assert notes(Stack(64, 256, 512), Stacked(Kaiming(mode="fan_in"))) == ()
    assert found(Stack(64, 256, 512), Stacked(Kaiming(mode="fan_in"))) == []
    fill = torchinit.plan(Stack(64, 256, 512), Rule(Name("**"), Stacked(Kaiming(mode="fan_in"))))["weight"].fill
    assert fill == Normal(0.0, (2 / 512) ** 0.5)


@pytest.mark.parametrize("shape", [(4, 8, 16, 3), (2, 2, 2), (1, 8, 16)])
def test_every_shape_from_three_dimensions_on(shape: tuple[int, ...]) -> None:
    assert len(notes(Stack(*shape), Xavier())) == len(found(Stack(*shape), LeCun())) == 1


def test_two_dimensions_count_as_a_matrix_unless_the_true_count_was_asked_for() -> None:
    assert notes(Stack(8, 16), Xavier()) == ()
    (note,) = notes(Stack(8, 16), Xavier(fans="true"))
    assert note == (
        "the layout of Stack's weight is not known: counted as a matrix, 16 in, 8 out;"
        " register_layout() tells how it connects"
    )


def test_whoever_describes_a_layer_hears_nothing() -> None:
    class Mine(Stack):
        pass

    @register_layout(Mine)
    def _(module: nn.Module, leaf: str) -> Layout:
        return Layout((2,), (1,), batch_axes=(0,))

    assert notes(Mine(4, 8, 16), Xavier(fans="true")) == (
        "fans by torch's count 128 in, 64 out; true 16 in, 8 out; used: true",
    )
    assert found(Mine(4, 8, 16), Xavier(fans="true")) == []


@pytest.mark.parametrize("init", [Normal(std=0.02), Scaled(Normal(), 0.5), TruncNormal(std=1.0)])
def test_what_does_not_count_connections_has_no_note(init: Any) -> None:
    assert notes(Stack(4, 8, 16), init) == ()


@pytest.mark.parametrize("wrap", [lambda init: init, lambda init: Scaled(init, 2.0), DepthScaled])
def test_formulas_inside_of_others_are_seen(wrap: Any) -> None:
    model = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False)) for _ in range(2))
    expected = "fans by torch's count 9 in, 72 out; true 9 in, 9 out; used: torch"
    assert notes(model, wrap(Xavier()), "0.0.weight") == (expected,)
    assert expected in [message for message, _ in found(model, wrap(Xavier()), "0.0.weight")]


def test_an_expression_over_fans_is_seen() -> None:
    recipe = {"rules": [{"type": "Normal", "std": "1 / sqrt(fan_out)", "layer": "Conv2d"}]}
    plan = torchinit.plan(nn.Conv2d(8, 8, 3, groups=8, bias=False), recipe)
    assert plan["weight"].notes == ("fans by torch's count 9 in, 72 out; true 9 in, 9 out; used: torch",)


def test_the_blocks_of_a_grouped_layer_have_groups_of_their_own() -> None:
    """A block for each group is a layer without groups."""
    convolution, init = nn.Conv2d(8, 16, 3, groups=4, bias=False), Blocks(Xavier(fans="true"), parts=4)
    alone = torchinit.plan(nn.Conv2d(2, 4, 3, bias=False), Rule(Name("**"), Xavier()))["weight"].fill
    assert torchinit.plan(convolution, Rule(Name("**"), init))["weight"].fill == alone
    assert notes(convolution, init) == ()


# --- Dirac -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "groups", "silent"),
    [
        (nn.Conv2d(8, 8, 3, groups=8, bias=False), 1, "7 of 8 filters"),
        (nn.Conv1d(6, 12, 3, groups=3, bias=False), 1, "4 of 12 filters"),
        (nn.Conv3d(4, 8, 3, groups=4, bias=False), 2, "2 of 8 filters"),
    ],
)
def test_dirac_on_groups(layer: nn.Module, groups: int, silent: str) -> None:
    count: Any = layer.groups
    fact = f"groups={count} in the layer, {groups} in the rule: {silent} pass nothing on that could"
    assert notes(layer, Dirac(groups=groups)) == (f'{fact}; groups = "layer"',)
    assert found(layer, Dirac(groups=groups)) == [(fact, 'groups = "layer"')]
    assert notes(layer, Dirac(groups="layer")) == notes(layer, Dirac(groups=count)) == ()
    torchinit.initialize(layer, Rule(Name("**"), Dirac(groups="layer"))).assert_ok(complete=True)
    # The layer itself is the oracle: each output is one of the inputs of its group.
    weight: Any = layer.weight
    channels: Any = layer.in_channels
    image = torch.randn(1, channels, *[5] * (weight.dim() - 2))
    seen = layer(image).flatten(2)[0]
    inside: Any = (..., *[slice(1, -1)] * (weight.dim() - 2))
    centre = image[inside].flatten(2)[0]
    each_in, each_out = len(centre) // count, len(seen) // count
    for group in range(count):
        passed = min(each_in, each_out)
        torch.testing.assert_close(seen[group * each_out :][:passed], centre[group * each_in :][:passed])


def test_dirac_without_groups_is_silent() -> None:
    assert notes(nn.Conv2d(8, 8, 3, bias=False), Dirac()) == ()
    assert "takes it for one kernel" in notes(Stack(4, 4, 3), Dirac())[0]
    assert "groups=8" in notes(nn.Conv2d(8, 8, 3, groups=8, bias=False), Scaled(Dirac(), 0.5))[0]


def test_groups_of_the_layer_in_a_recipe() -> None:
    recipe = {"rules": [{"type": "Dirac", "groups": "layer", "layer": "Conv2d"}]}
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    plan = torchinit.plan(model, recipe)
    assert [step.fill for step in plan] == [Dirac(groups=4), Dirac()]
    assert torchinit.Plan.from_json(plan.to_json()) == plan


# --- one matrix for several ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name", "init", "parts"),
    [
        (nn.LSTM(8, 8), "weight_hh_l0", Orthogonal(), 4),
        (nn.GRU(8, 8), "weight_hh_l0", Identity(), 3),
        (nn.MultiheadAttention(8, 2), "in_proj_weight", Orthogonal(gain=2.0), 3),
        (nn.Conv2d(8, 16, 3, groups=4, bias=False), "weight", Orthogonal(), 4),
        (nn.Conv1d(4, 4, 3, groups=2, bias=False), "weight", DeltaOrthogonal(), 2),
    ],
    ids=str,
)
def test_the_parts_of_a_weight_are_told_and_the_way_out_works(
    layer: nn.Module, name: str, init: Any, parts: int
) -> None:
    (note,) = notes(layer, init, name)
    assert note.startswith(f"{type(init).__name__} takes ")
    assert note.endswith(f" for one matrix; Blocks(..., parts={parts}) takes each")
    assert notes(layer, Blocks(init, parts=parts), name) == ()
    torchinit.initialize(layer, Rule(Name(name), Blocks(init, parts=parts)), seed=0).assert_ok()
    weight: Tensor = layer.get_parameter(name).detach()
    for part in weight.chunk(parts):
        gram = part.flatten(1) @ part.flatten(1).T
        if len(part) <= part[0].numel():
            torch.testing.assert_close(gram, init.gain**2 * torch.eye(len(part)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "role", "parts"),
    [
        ("qkv", "attn.qkv", 3),
        ("c_attn", "attn.qkv", 3),
        ("to_kv", "attn.kv", 2),
        ("gate_up_proj", "mlp.gate_up", (4, 20)),
    ],
)
def test_linear_layers_that_hold_several_by_their_names(name: str, role: str, parts: Any) -> None:
    """A Linear does not know that it is three; its name does, as it tells roles."""
    layer = nn.ModuleDict({"block": nn.ModuleDict({name: nn.Linear(32, 24, bias=False), "proj": nn.Linear(32, 24)})})
    (note,) = notes(layer, Orthogonal(), f"block.{name}.weight")
    text = f"Orthogonal takes all that a '{name}' holds ({role}) for one matrix; Blocks(..., parts=...), their"
    assert note.startswith(text)
    assert notes(layer, Orthogonal(), "block.proj.weight") == notes(layer, Xavier(), f"block.{name}.weight") == ()
    assert notes(layer, Blocks(Orthogonal(), parts), f"block.{name}.weight") == ()
    torchinit.initialize(layer, {f"block.{name}.weight": Blocks(Orthogonal(), parts)}, seed=0)
    weight = layer.get_parameter(f"block.{name}.weight").detach()
    for part in weight.split([len(weight) // parts] * parts if isinstance(parts, int) else list(parts)):
        torch.testing.assert_close(part @ part.T, torch.eye(len(part)), atol=1e-5, rtol=0)


def test_the_rows_of_a_transposed_kernel() -> None:
    layer = nn.ConvTranspose2d(8, 4, 3, bias=False)
    (note,) = notes(layer, Orthogonal())
    assert note == "the rows of Orthogonal run over the inputs of the layer; axis = 1"
    assert notes(layer, Orthogonal(axis=1)) == ()
    torchinit.initialize(layer, Rule(Name("**"), Orthogonal(axis=1)), seed=0)
    rows = layer.weight.detach().movedim(1, 0).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)
    grouped = nn.ConvTranspose2d(8, 8, 3, groups=4, bias=False)
    assert "Orthogonal takes the 4 groups of the layer for one matrix; Normal" in notes(grouped, Orthogonal())[0]


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 4), nn.Embedding(8, 4), nn.Conv2d(3, 8, 3), nn.LayerNorm((4, 4))], ids=str
)
def test_one_matrix_is_one(layer: nn.Module) -> None:
    assert notes(layer, Orthogonal()) == ()


# --- bounds and resolution -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "init", [TruncNormal(std=0.02), Scaled(TruncNormal(std=0.02), 0.5), TruncNormal(0.1, 0.1, -1, 1)]
)
def test_bounds_that_cut_nothing_off(init: Any) -> None:
    (note,) = notes(nn.Linear(8, 8), init)
    assert note.endswith(' and cut nothing off; unit = "sigma" counts in std')


@pytest.mark.parametrize(
    "init",
    [
        Blocks((Zeros(), TruncNormal(std=0.02)), 2),
        Mapped(TruncNormal(std=0.02), "exp"),
        Stacked(TruncNormal(std=0.02)),
        ICNR(TruncNormal(std=0.02), 1),
    ],
)
def test_bounds_inside_of_other_fills(init: Any) -> None:
    (note,) = notes(Stack(4, 4, 4) if isinstance(init, Stacked | ICNR) else nn.Linear(8, 8), init)
    assert note == 'the bounds lie 100 std or more from the mean and cut nothing off; unit = "sigma" counts in std'


def test_bounds_in_sigmas_that_cut_nothing_off() -> None:
    """No word of the stream, and one of a billion of a true normal's draws, goes beyond six sigmas."""
    init = TruncNormal(1.0, 0.02, -10, 12, unit="sigma")
    assert notes(nn.Linear(8, 8), init) == ("the bounds lie 10 std or more from the mean and cut nothing off",)
    layer, plain = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    torchinit.initialize(layer, {"weight": init}, seed=0)
    torchinit.initialize(plain, {"weight": Normal(1.0, 0.02)}, seed=0)
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (TruncNormal(std=0.02, a=0.14, b=2), "7 std or more above the mean, so that all values crowd at 0.14"),
        (TruncNormal(1.0, 0.1, -1, 0.2), "8 std or more below the mean, so that all values crowd at 0.2"),
        (Scaled(TruncNormal(std=0.02, a=0.14, b=2), -1.0), "7 std or more below the mean, so that all values crowd at"),
    ],
)
def test_an_interval_that_the_normal_does_not_come_to(init: Any, text: str) -> None:
    (note,) = notes(nn.Linear(8, 8), init)
    assert note.startswith(f"the bounds lie {text}")
    layer = nn.Linear(64, 64)
    torchinit.initialize(layer, {"weight": init}, seed=0)
    assert layer.weight.std() < getattr(init, "std", 0.02) / 4


@pytest.mark.parametrize(
    "init",
    [
        TruncNormal(std=1.0), TruncNormal(std=0.02, a=-2, b=2, unit="sigma"), TruncNormal(std=0.02, a=-0.1, b=0.1),
        TruncNormal(std=0.02, a=0.0, b=math.inf), TruncNormal(std=0.02, a=0.1, b=1.0), TruncNormal(0.5, 0.0, 0, 1),
    ],
    ids=str,
)  # fmt: skip
def test_bounds_that_do(init: Any) -> None:
    assert notes(nn.Linear(8, 8), init) == ()


@pytest.mark.parametrize(
    ("init", "dtype", "text"),
    [
        (Normal(10.0, 1e-3), torch.bfloat16, "std is below the resolution of bfloat16 at 10"),
        (Normal(std=3e-9), torch.float16, "std is below the resolution of float16 at 0"),
        (Normal(1.0, 1e-9), torch.float32, "std is below the resolution of float32 at 1"),
        (Normal(std=1e-50), torch.float64, "std is below the resolution of float32, in which a seed draws, at 0"),
    ],
)
def test_a_deviation_that_the_dtype_cannot_hold_is_known_before(init: Any, dtype: torch.dtype, text: str) -> None:
    assert notes(nn.Linear(4, 4, dtype=dtype), init) == (text,)


@pytest.mark.parametrize(
    ("init", "dtype", "text"),
    [
        (
            Constant(1e-9),
            torch.float16,
            "values are below 6.1e-05, the smallest normal number of float16, and round to",
        ),
        (Constant(-1e-6), torch.float16, "values are below 6.1e-05, the smallest normal number of float16, and keep f"),
        (Normal(std=2e-5), torch.float16, "values are below 6.1e-05, the smallest normal number of float16, and keep"),
        (
            Scaled(Orthogonal(), 1e-40),
            torch.float32,
            "values are below 1.18e-38, the smallest normal number of float32",
        ),
        (
            Constant(1e-40),
            torch.bfloat16,
            "values are below 1.18e-38, the smallest normal number of bfloat16, and keep",
        ),
        (LogUniform(1e-6, 0.1), torch.float16, "values down to 1e-06 are below 6.1e-05, the smallest normal number of"),
        (Scaled(LogUniform(1e-9, 0.1), -1.0), torch.float16, "values down to 1e-09 are below 6.1e-05, .* and round to"),
        (
            Ramp(1, 1e-6, spacing="geometric"),
            torch.float16,
            "values down to 1e-06 are below 6.1e-05, the smallest norm",
        ),
    ],
    ids=str,
)
def test_values_below_the_normal_range(init: Any, dtype: torch.dtype, text: str) -> None:
    (note,) = notes(nn.Linear(8, 8, dtype=dtype), init)
    assert re.match(text, note)
    layer = nn.Linear(64, 64, dtype=dtype)
    torchinit.initialize(layer, {"weight": init}, seed=0)
    sizes = layer.weight.detach().double().abs()
    assert sizes.min() < torch.finfo(dtype).smallest_normal
    assert bool((sizes == 0).any()) == ("round to zero" in note) or isinstance(init, Normal | Scaled)


@pytest.mark.parametrize(
    ("init", "dtype"),
    [
        (Constant(0.0), torch.float16), (Constant(1e-4), torch.float16), (Normal(std=1e-4), torch.float16),
        (Uniform(0.0, 1.0), torch.float16), (Uniform(-1.0, 1.0), torch.float16), (Normal(1.0, 1e-3), torch.float16),
        (Constant(1e-9), torch.bfloat16), (Normal(std=1e-9), torch.float32), (Orthogonal(), torch.float32),
        (LogUniform(1e-3, 0.1), torch.float16), (Ramp(0.0, 1.0), torch.float16),
    ],
    ids=str,
)  # fmt: skip
def test_values_in_the_normal_range(init: Any, dtype: torch.dtype) -> None:
    assert notes(nn.Linear(8, 8, dtype=dtype), init) == ()


# --- bilinear kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "stride"), [(5, 2), (3, 1), ((4, 5), 2), (4, 4)])
def test_a_bilinear_kernel_for_another_stride(size: Any, stride: int) -> None:
    layer = nn.ConvTranspose2d(3, 3, size, stride, bias=False)
    factors = [(each + 1) // 2 for each in ((size, size) if isinstance(size, int) else size)]
    fact = f"Bilinear interpolates by {factors[0]} x {factors[1]}, and the layer has another stride"
    assert found(layer, Bilinear()) == [(fact, "take a kernel of 2 * stride - stride % 2 along each axis")]
    right = nn.ConvTranspose2d(3, 3, 2 * stride - stride % 2, stride, bias=False)
    assert notes(right, Bilinear()) == ()


def test_a_bilinear_kernel_in_a_convolution() -> None:
    (note,) = notes(nn.Conv2d(3, 3, 4, bias=False), Bilinear())
    assert note == "Bilinear blurs the inputs of Conv2d, and adds them up; it interpolates in a transposed convolution"
    assert notes(nn.ConvTranspose1d(3, 3, 3, 2, groups=3, bias=False), Scaled(Bilinear(), 2.0)) == ()


# --- parts of tensors that are cut without DTensor ---------------------------------------------------------------


def megatrons(rows: int, columns: int, dim: int) -> nn.Module:
    """A layer of one rank, marked as Megatron-LM marks its own."""
    layer = nn.Linear(columns, rows, bias=False)
    for name, value in (("tensor_model_parallel", True), ("partition_dim", dim), ("partition_stride", 1)):
        setattr(layer.weight, name, value)
    return layer


@pytest.mark.parametrize("init", [Xavier(), Normal(), Orthogonal(), Ramp(), Scaled(Normal(), 0.5)], ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_one_ranks_part_of_a_weight(init: Any, dim: int) -> None:
    layer = megatrons(4, 8, dim=dim)
    fact = (
        f"a part cut along dimension {dim} (tensor_model_parallel): its fans are the part's, and each rank draws the"
        " same under one seed"
    )
    remedy = "as a DTensor it has the fans and the values of the whole"
    assert notes(layer, init) == (f"{fact}; {remedy}",)
    assert found(layer, init) == [(fact, remedy)]
    plan = torchinit.plan(layer, {"weight": init}) if not isinstance(init, Scaled) else None
    assert plan is None or torchinit.Plan.from_json(plan.to_json()) == plan


def test_what_is_no_part() -> None:
    assert notes(megatrons(4, 8, dim=0), Zeros()) == ()
    whole: Any = nn.Linear(8, 4, bias=False)
    whole.weight.tensor_model_parallel, whole.weight.partition_dim = False, -1
    assert notes(whole, Xavier()) == ()


def test_the_way_out_for_a_part() -> None:
    """A DTensor has the whole's fans: cut in two, each rank has its rows of what one process draws."""
    alone = nn.Linear(8, 4, bias=False)
    torchinit.initialize(alone, {"weight": Xavier()}, seed=0)
    rows = []
    for mesh in each_rank(2):
        layer = nn.Linear(8, 4, bias=False)
        layer.weight = nn.Parameter(local_of(torch.empty(2, 8), mesh, TorchShard(0), 4, 8))
        (step,) = torchinit.plan(layer, {"weight": Xavier()})
        assert (step.notes, step.fill) == ((), Normal(0.0, (2 / 12) ** 0.5))
        (shard,) = local_shards(layer)["weight"]
        step.fill.write(shard, Keyed(0))
        rows.append(shard.local)
    assert torch.equal(torch.cat(rows), alone.weight)


# --- other names -----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A table that is the head, and one layer in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.table.weight
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)] * 3)


def test_tables_show_the_other_names_of_a_tensor() -> None:
    model, rule = Tied(), Rule(Name("**"), Normal())
    for shown in (torchinit.plan(model, rule), torchinit.initialize(model, rule, seed=0)):
        lines = {line.split(" ")[0]: line for line in shown.table(full=True).splitlines()}
        below = shown.table().splitlines()
        assert below[[line[:12] for line in below].index("table.weight") + 1] == "  also head.weight"
        assert lines["table.weight"].endswith("also head.weight")
        assert lines["layers.0.weight"].endswith("also layers.1.weight, layers.2.weight")


def test_a_report_of_nothing_special_has_no_column_for_it() -> None:
    assert "notes" not in torchinit.initialize(nn.Linear(4, 4), Rule(Name("**"), Normal()), seed=0).table()
    frozen = nn.Linear(4, 4).requires_grad_(False)
    assert torchinit.initialize(frozen, Rule(Name("**"), Normal()), seed=0).table().count("frozen: requires_grad") == 2


def test_a_tied_weight_is_noted_as_the_module_sees_it_that_the_rule_is_for() -> None:
    """A table has its outputs along the second dimension, the layer that shares it along the first."""
    model = Tied()
    rule = Rule(Layer("Linear") & Name("head.*"), Blocks(Xavier(), parts=(3, 5)))
    assert torchinit.plan(model, rule)["head.weight"].notes == ()
    assert [one.code for one in lint(model, recipe=rule, select=["TI703"])] == []
    table = Rule(Layer("Embedding"), Xavier())
    assert "true 1 in" in torchinit.plan(model, table)["table.weight"].notes[0]
