"""Factors: float8 and int8 times the scale that lies beside them; BatchNorms in evaluation; weight norm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import weight_norm as older
from torch.nn.utils.parametrizations import weight_norm as newer

from tests.checkpoints.forms import FORMS, INT8, SIZE, Net, file_of, floats
from tests.ranks import fake_rank
from torchinit import (
    CheckpointError,
    Name,
    Normal,
    Plan,
    Pretrained,
    Rule,
    RunError,
    initialize,
    load_recipe,
    materialize,
    plan,
)
from torchinit.checkpoints.adapters import (
    Adapter,
    BatchNormAffine,
    Chain,
    Dequantize,
    FoldBatchNorm,
    Fuse,
    Split,
    Transpose,
    WeightNorm,
)
from torchinit.model import Box

E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
ALL = {"**": Dequantize()}


def rule(source: Any, **options: Any) -> Rule:
    return Rule(Name("**"), Pretrained(source, **options))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantized(weight: Tensor, blocks: tuple[int, ...], dtype: torch.dtype = E4M3) -> tuple[Tensor, Tensor]:
    """Values and scales of a weight, block by block, as a writer of such files makes them: in loops, and plainly."""
    counts = [-(-size // block) for size, block in zip(weight.shape, blocks, strict=True)]
    values, scale, most = torch.empty_like(weight), torch.empty(counts), 127 if dtype == INT8 else 448
    for place in torch.cartesian_prod(*map(torch.arange, counts)).view(-1, len(counts)).tolist():
        cut = tuple(slice(at * block, (at + 1) * block) for at, block in zip(place, blocks, strict=True))
        scale[tuple(place)] = weight[cut].abs().max() / most
        values[cut] = weight[cut] / scale[tuple(place)]
    return (values.round() if dtype == INT8 else values).to(dtype), scale


def is_near(made: Tensor, weight: Tensor, dtype: torch.dtype = E4M3) -> bool:
    """Whether a weight is that before it was quantized, but for the rounding: 3 bits of mantissa, or steps of 1/127."""
    bound = weight.abs() / 16 + weight.abs().max() / 448 / 512 if dtype == E4M3 else weight.abs().max() / 127 * 0.51
    return bool(((made - weight).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [E4M3, INT8])
@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((200, 300), (200, 300)), ((200, 300), (1, 300)), ((200, 300), (200, 1)), ((200, 300), (128, 128)),
     ((256, 384), (128, 128)), ((130, 70), (128, 128)), ((300, 200), (128, 128)), ((6, 256), (1, 128)),
     ((96, 96), (32, 48)), ((3, 5), (1, 1))],
)  # fmt: skip
def test_every_grain(shape: tuple[int, int], blocks: tuple[int, int], dtype: torch.dtype) -> None:
    weight = drawn(*shape)
    values, scale = quantized(weight, blocks, dtype)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    file = {"weight": values, "weight_scale": scale}
    with pytest.raises(CheckpointError, match=r"with adapt=\{'\*\*': Dequantize\(\)\} 1 more would be found"):
        plan(layer, rule(file))
    report = initialize(layer, rule(file, adapt=ALL), strict=True).assert_ok(complete=True)
    assert is_near(layer.weight.detach(), weight, dtype)
    assert report.loads[0].elements[0] == weight.numel()
    assert not report.loads[0].doubts


@pytest.mark.parametrize("scale", [(), (1,), (1, 1), (8,), (8, 1), (1, 6), (6,)])
def test_shapes_of_scales(scale: tuple[int, ...]) -> None:
    values, factor = drawn(8, 6).to(E4M3), drawn(*scale, seed=1)
    spread = factor.view(8, 1) if scale == (8,) else factor  # rows are meant, where torch would take it for columns
    made = Dequantize().adapt([values, factor], (8, 6), "weight")
    assert torch.equal(made, values.float() * spread)
    assert made.dtype == torch.float32


@pytest.mark.parametrize("scale", [(4,), (4, 1, 1), (4, 8), (4, 8, 1), (4, 1, 6), (4, 2, 3)])
def test_stacked_experts(scale: tuple[int, ...]) -> None:
    values, factor = drawn(4, 8, 6).to(E4M3), drawn(*scale, seed=1)
    made = Dequantize().adapt([values, factor], (4, 8, 6), "experts.up")
    tall = factor.view(*scale, *(1,) * (3 - len(scale)))
    for expert in range(4):
        one = tall[expert].repeat_interleave(8 // tall.shape[1], 0).repeat_interleave(6 // tall.shape[2], 1)
        assert torch.equal(made[expert], values[expert].float() * one)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, E8M0])
@pytest.mark.parametrize("site", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_float32_and_rounded_once(stored: torch.dtype, site: torch.dtype) -> None:
    values, scale = drawn(4, 4).to(E5M2), torch.tensor([0.5, 2.0, 0.25, 4.0]).view(4, 1).to(stored)
    layer = nn.Linear(4, 4, bias=False, dtype=site)
    initialize(layer, rule({"weight": values, "weight_scale": scale}, adapt=ALL))
    assert torch.equal(layer.weight, (values.float() * scale.float()).to(site))


NAMES = ["weight_scale", "weight_scale_inv", "scale_weight", "scale", "weight.scale", "weight_weight_scale"]


@pytest.mark.parametrize("name", [*NAMES, "weight_scales", "weight._scale", "weight_dequant_scale"])
def test_what_the_scale_is_called(name: str) -> None:
    file = {"fc.weight": drawn(SIZE, SIZE).to(E4M3), f"fc.{name}": torch.tensor(0.5), "fc.bias": floats(SIZE)}
    net = nn.ModuleDict({"fc": nn.Linear(SIZE, SIZE)})
    offered = Dequantize() if name in NAMES else Dequantize(name.replace("weight", "*", 1))
    with pytest.raises(CheckpointError) as caught:
        plan(net, rule(file))
    assert f"with adapt={{'**': {offered}}} 1 more would be found" in str(caught.value)
    for prefix in ("", "model."):
        state = {prefix + key: value for key, value in file.items()}
        initialize(net, rule(state, adapt={"**": offered}, prefix=prefix), strict=True)
        assert torch.equal(net.state_dict()["fc.weight"], file["fc.weight"].float() / 2)


@pytest.mark.parametrize("form", [form for form, (_, text) in FORMS.items() if text.startswith("multiply")])
def test_what_is_offered_loads(form: str) -> None:
    """Of every form of such files: either the offer is right, or there is none."""
    state = file_of(form)
    state["fc.weight"] = (9 * drawn(SIZE, SIZE)).to(state["fc.weight"].dtype)
    with pytest.raises(CheckpointError) as caught:
        plan(Net(), rule(state))
    if "Dequantize()" not in str(caught.value):
        assert form in ("mxfp8", "of activations alone", "called as the module", "another word")
        return
    scale = next(value for key, value in state.items() if "scale" in key and "in" not in key.replace("_inv", ""))
    net = Net()
    initialize(net, rule(state, adapt=ALL))
    factor = scale.float()
    if factor.shape == (2, 2):
        factor = factor.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(net.fc.weight, state["fc.weight"].float() * factor)


def test_the_offer_counts_what_it_makes() -> None:
    state: dict[str, Tensor] = {}
    for n in range(3):
        state |= {
            f"{n}.weight": drawn(4, 4).to(E4M3),
            f"{n}.weight_scale": floats(4 if n else 3),
            f"{n}.bias": floats(4),
        }
    net = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    with pytest.raises(CheckpointError, match=r"adapt=\{'\*\*': Dequantize\(\)\} 2 more would be found"):
        plan(net, rule(state))
    with pytest.raises(
        CheckpointError, match=r"0.weight a scale of \[3\] is none for rows, columns or blocks of \[4, "
    ):
        plan(net, rule(state, adapt=ALL))


def test_sites_without_a_scale_are_loaded_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    file = {**file_of("a scale"), "norm.weight": drawn(SIZE).to(torch.bfloat16)}
    (account,) = initialize(Net(), rule(file, adapt=ALL), strict=True).loads
    assert account.adapted == (("fc.weight", "Dequantize(scale='*_scale')"),)
    assert {*account.loaded} == {"fc.bias", "norm.weight", "norm.bias"}
    assert not caplog.messages
    bare = {key: value for key, value in file.items() if "scale" not in key}
    (account,) = initialize(Net(), rule(bare, adapt=ALL), strict=True).loads
    assert account.doubts[0].startswith("fc.weight: float8 in the file and no scale beside it")
    wide = {**file, "fc.weight": floats(SIZE, SIZE)}  # full precision: the scale is not for it, or nobody knows
    (account,) = plan(Net(), rule(wide, adapt=ALL)).loads
    assert account.adapted == ()
    assert "nothing reads it" in account.doubts[0]
    named = {"fc.weight": Dequantize("*_scale")}
    assert plan(Net(), rule(wide, adapt=named)).loads[0].adapted == (("fc.weight", "Dequantize(scale='*_scale')"),)


class Own(nn.Module):
    """A layer that multiplies by a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.weight_scale = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(1))


def test_a_scale_that_the_model_has_is_not_multiplied_in() -> None:
    file = {"weight": drawn(4, 4).to(E4M3), "weight_scale": torch.tensor([3.0])}
    initialize(own := Own(), rule(file, adapt=ALL))
    assert torch.equal(own.weight, file["weight"].float())
    assert own.weight_scale.item() == 3


def test_several_scales_are_not_chosen_among() -> None:
    file = {**file_of("a scale"), "fc.weight_scale_inv": floats()}
    with pytest.raises(
        CheckpointError, match=r"any of \*_scale, \*_scale_inv may be its scale: name one, Dequantize\(s"
    ):
        plan(Net(), rule(file, adapt=ALL))
    with pytest.raises(CheckpointError, match=r"fc.weight needs more than one scale: fc.weight_scale"):
        plan(Net(), rule(file, adapt={"**": Dequantize("*_scale_inv")}))
    for more in ({"fc.weight_scale_2": floats()}, {"fc.weight_zero_point": torch.zeros(1, dtype=INT8)}):
        with pytest.raises(CheckpointError, match=r"needs more than one scale: fc.weight_(scale_2|zero_point)"):
            plan(Net(), rule({**file_of("int8"), **more}, adapt=ALL))


@pytest.mark.parametrize("form", ["bnb nf4", "bnb int8", "gptq", "awq", "compressed-tensors", "mlx", "nvfp4", "mxfp4"])
def test_what_is_packed_stays_refused(form: str) -> None:
    with pytest.raises(CheckpointError, match=r"fc.weight (is|needs)") as caught:
        plan(Net(), rule(file_of(form), adapt=ALL))
    assert FORMS[form][1] in str(caught.value)
    assert "more would be found" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "text"),
    [({"scale": ""}, "scale must name the factor"), ({"scale": "SCB"}, "scale must name the factor of a tensor"),
     ({"scale": "*.absmax"}, "must name the factor"), ({"scale": "zero_point"}, "must name the factor"),
     ({"scale": 3}, "scale must be text"), ({"block": 0}, "block must be a whole number from 1")],
)  # fmt: skip
def test_arguments(given: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        Dequantize(**given)


@pytest.mark.parametrize(
    ("scale", "block", "text"),
    [((3, 2), None, "give block, the size of a block"), ((2, 2), 32, r"over \[100, 200\] in blocks of 32"),
     ((100, 200, 1), None, "is none for rows, columns or blocks"), ((7,), None, r"a scale of \[7\] is none for rows")],
)  # fmt: skip
def test_scales_that_do_not_fit(scale: tuple[int, ...], block: int | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Dequantize(block=block).check([(100, 200), scale], (100, 200), "weight")


def test_a_block_may_be_said() -> None:
    weight = drawn(80, 192)
    values, scale = quantized(weight, (32, 96))
    with pytest.raises(ValueError, match=r"cannot spread a scale of \[3, 2\] over \[80, 192\] in equal parts: give"):
        Dequantize().check([(80, 192), (3, 2)], (80, 192), "weight")
    values, scale = quantized(weight, (32, 32))
    assert is_near(Dequantize(block=32).adapt([values, scale], (80, 192), "weight"), weight)


def test_with_other_adapters() -> None:
    parts = [quantized(drawn(8, 6, seed=n), (1, 6)) for n in range(3)]
    file = {f"{one}.weight": values for one, (values, _) in zip("qkv", parts, strict=True)}
    file |= {f"{one}.weight_scale": scale for one, (_, scale) in zip("qkv", parts, strict=True)}
    net, fuse = nn.ModuleDict({"qkv": nn.Linear(6, 24, bias=False)}), Fuse("qkv", ("q", "k", "v"))
    chain = Chain((Dequantize(), fuse))
    with pytest.raises(CheckpointError) as caught:
        plan(net, rule(file, adapt={"qkv.weight": fuse}))
    assert f"with adapt={{'qkv.weight': {chain}}} 1 more would be found" in str(caught.value)
    two = nn.ModuleList([net, net.__class__({"qkv": nn.Linear(6, 24, bias=False)})])
    held = {f"{n}.{key}": value for n in range(2) for key, value in file.items()}
    with pytest.raises(CheckpointError) as caught:
        plan(two, rule(held, adapt={"**.qkv.*": fuse}))
    assert f"with adapt={{'**.qkv.*': {chain}}} 2 more would be found" in str(caught.value)
    initialize(net, rule(file, adapt={"qkv.weight": chain}), strict=True)
    assert is_near(net.state_dict()["qkv.weight"], torch.cat([drawn(8, 6, seed=n) for n in range(3)]))
    plain = {f"{one}.weight": drawn(8, 6, seed=n) for n, one in enumerate("qkv")}
    made = plan(net, rule(plain, adapt={"qkv.weight": chain}))
    assert made["qkv.weight"].fill.adapter == fuse  # type: ignore[attr-defined]
    split = Chain((Dequantize(), Transpose(), Split("c_attn", ("q", "k"))))
    whole, scale = quantized(drawn(6, 16), (6, 1))
    net = nn.ModuleDict({one: nn.Linear(6, 8, bias=False) for one in "qk"})
    initialize(net, rule({"c_attn.weight": whole, "c_attn.weight_scale": scale}, adapt={"**": split}), strict=True)
    assert is_near(net.state_dict()["k.weight"], drawn(6, 16).T[8:])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 130), st.data())
def test_a_box_has_the_values_of_the_whole(rows: int, columns: int, block: int, data: st.DataObject) -> None:
    """For any cut of any blocks, element by element: value [i, j] times scale [i // block, j // block]."""
    values, scale = torch.ones(rows, columns), drawn(-(-rows // block), -(-columns // block))
    low, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    box = Box((low, left), (data.draw(st.integers(0, rows - low)), data.draw(st.integers(0, columns - left))))
    shapes = [(rows, columns), tuple(scale.shape)]
    made = Dequantize(block=block).read_plan(shapes, (rows, columns), box, "weight")
    part = made.combine([one.of(tensor) for one, tensor in zip(made.boxes, (values, scale), strict=True)])
    i = (torch.arange(rows) // (1 if scale.shape[0] == rows else block)).clamp(max=scale.shape[0] - 1)
    j = (torch.arange(columns) // (1 if scale.shape[1] == columns else block)).clamp(max=scale.shape[1] - 1)
    assert torch.equal(part, box.of(scale[i][:, j]))


def test_on_a_sharded_model() -> None:
    weight = drawn(260, 100)
    values, scale = quantized(weight, (128, 128))
    file = {"0.weight": values, "0.weight_scale_inv": scale}
    initialize(whole := nn.Sequential(nn.Linear(100, 260, bias=False)), rule(file, adapt=ALL))
    expected = whole.state_dict()["0.weight"]
    for rank in range(3):
        with fake_rank(rank, 3):
            with torch.device("meta"):
                net = nn.Sequential(nn.Linear(100, 260, bias=False))
            fully_shard(net, mesh=init_device_mesh("cpu", (3,), mesh_dim_names=("d",)))
            materialize(net, rule(file, adapt=ALL), seed=0, verify=False)
            local = net.state_dict()["0.weight"].to_local()
        assert torch.equal(local, expected[87 * rank : 87 * rank + len(local)])


def test_in_a_recipe_and_in_a_saved_plan(tmp_path: Path) -> None:
    save_file(file_of("blocks, called inverse"), tmp_path / "fp8.safetensors")
    (tmp_path / "r.toml").write_text(
        f'[[rules]]\ntype = "Pretrained"\nname = "**"\ncheckpoint = "{tmp_path}/fp8.safetensors"\n'
        'adapt = { "**" = { type = "Dequantize" } }\nexpect_unexpected = "head.**"\n'
    )
    (tmp_path / "r.json").write_text(
        f'{{"rules": [{{"type": "Pretrained", "name": "**", "checkpoint": "{tmp_path}/fp8.safetensors",'
        ' "adapt": {"**": {"type": "Dequantize", "block": 8}}, "expect_unexpected": ["head.**"]}]}'
    )
    assert load_recipe(tmp_path / "r.toml")[0].init.expect_unexpected == "head.**"  # type: ignore[attr-defined]
    for name, more in (("r.toml", ""), ("r.json", ", block=8")):
        made = plan(Net(), tmp_path / name)
        assert Plan.from_json(made.to_json()) == made
        assert str(made["fc.weight"].fill.adapter) == f"Dequantize(scale='*_scale_inv'{more})"  # type: ignore[attr-defined]
        initialize(net := Net(), tmp_path / name)
        blocks = floats(2, 2).repeat_interleave(8, 0).repeat_interleave(8, 1)
        assert torch.equal(net.fc.weight, file_of("blocks, called inverse")["fc.weight"].float() * blocks)


def test_values_are_looked_at_before_anything_is_written() -> None:
    for scale in (torch.tensor(float("nan")), torch.tensor(float("inf"))):
        file = {**file_of("a scale"), "fc.weight_scale": scale}
        before = (net := Net()).fc.bias.clone()
        with pytest.raises(Exception, match=r"fc.weight_scale holds NaN or infinity"):
            initialize(net, [Rule(Name("**"), Normal()), rule(file, adapt=ALL)], seed=0)
        assert torch.equal(net.fc.bias, before)


def test_products_that_are_too_large_for_the_dtype() -> None:
    file = {"weight": torch.full((4, 4), 400.0).to(E4M3), "weight_scale": torch.tensor(1e4)}
    half = nn.Linear(4, 4, bias=False, dtype=torch.float16)
    with pytest.raises(RunError, match=r"weight goes up to 3.84e.06, beyond the largest number of torch.float16"):
        initialize(half, rule(file, adapt=ALL))
    initialize(wide := nn.Linear(4, 4, bias=False, dtype=torch.bfloat16), rule(file, adapt=ALL))
    assert wide.weight.isfinite().all()


class Tied(nn.Module):
    """Two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("names", [("table",), ("head",), ("table", "head")])
def test_a_tied_tensor_under_either_name_or_both(names: tuple[str, ...]) -> None:
    values = drawn(8, 4).to(E4M3)
    file = {f"{name}.{key}": value for name in names for key, value in
            (("weight", values), ("weight_scale", torch.tensor(0.5)))}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"Dequantize\(\)\} 1 more would be found"):
        plan(Tied(), rule(file))
    (account,) = initialize(tied := Tied(), rule(file, adapt=ALL), strict=True).loads
    assert torch.equal(tied.table.weight, values.float() / 2)
    assert (account.unexpected, account.warnings) == ((), ())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_other_whole_numbers_are_not_offered_a_product(dtype: torch.dtype) -> None:
    file = {"weight": torch.ones(4, 4, dtype=dtype), "weight_scale": torch.tensor(0.5)}
    for options in ({}, {"adapt": ALL}, {"adapt": {"**": Dequantize("*_scale")}}):
        with pytest.raises(CheckpointError) as caught:
            plan(nn.Linear(4, 4, bias=False), rule(file, **options))
        assert "more would be found" not in str(caught.value)
        assert "neither prefix nor rename" not in str(caught.value)


# --- norms -----------------------------------------------------------------------------------------------------------


def trained(norm: nn.Module) -> nn.Module:
    """A norm in evaluation with numbers of its own, as after training."""
    for name, tensor in norm.state_dict().items():
        if name != "num_batches_tracked":
            tensor.copy_(torch.rand_like(tensor) + 0.5 * (name == "running_var"))
    return norm.eval()


def load(adapter: Adapter, site: str, state: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    wanted = [state[key] for key in adapter.wants(site)]
    adapter.check([tuple(tensor.shape) for tensor in wanted], shape, site)
    made = adapter.adapt(wanted, shape, site)
    assert tuple(made.shape) == shape
    return made


def test_affine() -> None:
    norm = trained(nn.BatchNorm2d(5, eps=1e-3))
    state = {f"bn1.{name}": tensor for name, tensor in norm.state_dict().items()}
    weight, bias = (load(BatchNormAffine(eps=1e-3), f"bn1.{leaf}", state, (5,)) for leaf in ("weight", "bias"))
    images = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(images * weight[:, None, None] + bias[:, None, None], norm(images))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("make", "axis", "shape"),
    [
        (lambda bias: nn.Conv2d(3, 5, 3, bias=bias), 0, (2, 3, 6, 6)),
        (lambda bias: nn.Conv1d(4, 5, 3, groups=1, bias=bias), 0, (2, 4, 6)),
        (lambda bias: nn.ConvTranspose2d(3, 5, 2, bias=bias), 1, (2, 3, 6, 6)),
        (lambda bias: nn.Linear(3, 5, bias=bias), 0, (2, 3)),
    ],
)
def test_folded(make: type[nn.Module], axis: int, shape: tuple[int, ...], bias: bool) -> None:
    layer = make(bias)
    norm = trained({2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](5))
    held = nn.ModuleDict({"conv": layer, "norm": norm}).state_dict()
    state = {f"layer1.{name}": tensor for name, tensor in held.items()}
    adapter = FoldBatchNorm("conv", "norm", bias=bias, axis=axis)
    folded, images = make(True), torch.randn(shape)
    for leaf, site in folded.state_dict().items():
        site.copy_(load(adapter, f"layer1.conv.{leaf}", state, tuple(site.shape)))
    torch.testing.assert_close(folded(images), norm(layer(images)), atol=1e-5, rtol=1e-5)


def test_the_norm_may_stand_beside_under_a_number() -> None:
    wants = FoldBatchNorm("0", "1").wants("stages.0.0.weight")
    assert wants == ("stages.0.1.weight", "stages.0.1.running_var", "stages.0.0.weight")


def test_half_precision_is_computed_in_float32() -> None:
    tensors = [torch.rand(3).bfloat16() for _ in range(4)]
    assert BatchNormAffine().adapt(tensors, (3,), "bn.bias").dtype == torch.float32


@pytest.mark.parametrize(
    ("adapter", "site", "shapes", "shape", "text"),
    [
        (
            BatchNormAffine(),
            "bn.weight",
            [(5,), (6,)],
            (5,),
            r"needs numbers for each channel, .* but got \[5\], \[6\]$",
        ),
        (BatchNormAffine(), "bn.weight", [(5,), (5,)], (6,), r"makes \[5\] of \[5\], \[5\], but the site has \[6\]$"),
        (
            FoldBatchNorm("conv", "bn"),
            "conv.weight",
            [(5,), (5,), (6, 3)],
            (6, 3),
            r"needs a weight with 5 channels in dimension 0, but got \[6, 3\]$",
        ),
        (FoldBatchNorm("conv", "bn", axis=2), "conv.weight", [(5,), (5,), (5, 3)], (5, 3), r"in dimension 2, but got"),
    ],
)
def test_shapes_that_do_not_fit(
    adapter: Adapter, site: str, shapes: list[tuple[int, ...]], shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        adapter.check(shapes, shape, site)


def test_arguments_and_keys() -> None:
    with pytest.raises(
        ValueError, match=r"^BatchNormAffine\(\) makes weights and biases, but 'bn.running_mean' is neither$"
    ):
        BatchNormAffine().wants("bn.running_mean")
    with pytest.raises(ValueError, match=r"^'conv2.weight' has no part 'conv1'; did you mean 'conv2'\?$"):
        FoldBatchNorm("conv1", "bn1").wants("conv2.weight")
    with pytest.raises(ValueError, match=r"^eps must be at least 0, but got -1$"):
        BatchNormAffine(-1)
    with pytest.raises(ValueError, match=r"^eps must be at least 0, but got -1$"):
        FoldBatchNorm("conv", "bn", eps=-1)
    with pytest.raises(ValueError, match=r"^axis must be a whole number from 0, but got -1$"):
        FoldBatchNorm("conv", "bn", axis=-1)


def normed(norm: Callable[..., nn.Module], layer: nn.Module, dim: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older one is told to be old
        made = norm(layer, dim=dim)
    for parameter in made.parameters():
        parameter.detach().uniform_(0.5, 2)
    return made


@pytest.mark.parametrize("norm", [older, newer])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("into", [None, older, newer])
def test_a_layer_computes_the_same(
    norm: Callable[..., nn.Module], dim: int | None, into: Callable[..., nn.Module] | None, tmp_path: Path
) -> None:
    trained = normed(norm, nn.Conv1d(4, 6, 3), dim)
    model = normed(into, nn.Conv1d(4, 6, 3), 2) if into else nn.Conv1d(4, 6, 3)
    torch.save({f"ups.{name}": tensor for name, tensor in trained.state_dict().items()}, tmp_path / "a.pth")
    adapter = WeightNorm(parametrized=norm is newer)
    rule = Pretrained(str(tmp_path / "a.pth"), prefix="ups", adapt={"weight": adapter})
    initialize(model, Rule(Name("**"), rule))
    sounds = torch.randn(2, 4, 9)
    torch.testing.assert_close(model(sounds), trained(sounds))


def test_lengths_that_do_not_fit() -> None:
    held = {"weight_g": torch.ones(5, 1, 1), "weight_v": torch.ones(6, 4, 3), "bias": torch.ones(6)}
    for length in (torch.ones(5, 1, 1), torch.ones(6), torch.ones(6, 4, 1)):
        rule = Pretrained({**held, "weight_g": length}, adapt={"weight": WeightNorm()})
        with pytest.raises(CheckpointError, match=r"needs one length, or one for each channel, of \[6, 4, 3\]"):
            initialize(nn.Conv1d(4, 6, 3), Rule(Name("**"), rule))
