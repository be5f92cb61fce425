"""Quantized: what means nothing without a scale beside it is refused wherever weights are loaded, and says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.checkpoints.files import raw_safetensors, write
from tests.checkpoints.forms import E4M3, FORMS, SIZE, UINT8, Net, companions, file_of, float8, floats, rules, whole
from tests.ranks import fake_rank
from torchinit import (
    CheckpointError,
    Name,
    Normal,
    Pretrained,
    Rule,
    initialize,
    lint,
    materialize,
    open_checkpoint,
    plan,
)
from torchinit.checkpoints.adapters import Adapter, Fuse
from torchinit.cli import main
from torchinit.mmengine import load_state_dict
from torchinit.mmengine.checkpoints import load_checkpoint, load_pretrained

WAYS: dict[str, Callable[[Path], object]] = {
    "plan": lambda path: plan(Net(), rules(str(path))),
    "initialize": lambda path: initialize(Net(), rules(str(path)), seed=0),
    "skipping shapes": lambda path: initialize(Net(), rules(str(path), on_shape="skip"), seed=0),
    "from memory": lambda path: initialize(Net(), rules(open_checkpoint(path)), seed=0),
    "materialize": lambda path: materialize(Net().to("meta"), rules(str(path)), seed=0),
    "init_cfg": lambda path: Net({"type": "Pretrained", "checkpoint": str(path)}).init_weights(),
    "load_checkpoint": lambda path: load_checkpoint(Net(), str(path)),
    "load_pretrained": lambda path: load_pretrained(Net(), str(path)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_quantized_weights_are_refused_with_what_they_need_and_the_way_out(form: str, way: str, tmp_path: Path) -> None:
    save_file(file_of(form), path := tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        WAYS[way](path)
    text = str(caught.value)
    assert "fc.weight is " in text
    assert all(key in text for key in companions(form)), text
    assert FORMS[form][1] in text
    assert "or take a file that is not quantized" in text
    assert "norm.weight is" not in text
    assert "fc.bias is" not in text


@pytest.mark.parametrize("form", ["zip", "legacy", "sharded-safetensors"])
def test_in_files_of_other_formats(form: str, tmp_path: Path) -> None:
    for name in ("blocks, called inverse", "gptq")[form == "legacy" :]:  # in which torch cannot keep float8
        (folder := tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=r"fc.weight is .*fc\.(weight_scale_inv|qweight)"):
            plan(Net(), rules(str(write(form, folder, file_of(name)))))


def test_a_dtype_that_torch_lacks_may_be_what_is_packed(tmp_path: Path) -> None:
    header = {"fc.weight_packed": {"dtype": "F4", "shape": [SIZE, SIZE], "data_offsets": [0, 128]},
              "fc.weight_scale": {"dtype": "U8", "shape": [SIZE, 1], "data_offsets": [128, 128 + SIZE]}}  # fmt: skip
    path = raw_safetensors(tmp_path / "a.safetensors", header, bytes(128 + SIZE))
    with pytest.raises(CheckpointError, match=r"fc.weight is in the file in quantized form only: fc.weight_packed, fc"):
        plan(Net(), rules(str(path)))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_written(form: str) -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for load in (lambda: load_state_dict(net, file_of(form)), lambda: initialize(net, rules(file_of(form)), seed=0)):
        with pytest.raises(CheckpointError):
            load()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_lint_says_so_of_what_was_loaded(form: str) -> None:
    (finding,) = [one for one in lint(Net(), loaded=file_of(form), select=["TI201"]) if one.site]
    assert (finding.severity, finding.site) == ("error", "fc.weight")
    assert all(key in finding.message for key in companions(form))
    assert FORMS[form][1] in finding.remedy
    assert not [one for one in lint(Net(), loaded=file_of(form), select=["TI201"]) if not one.site]


@pytest.mark.parametrize("prefix", ["model.", "model.diffusion_model.", "module."])
@pytest.mark.parametrize("form", FORMS)
def test_below_a_prefix_and_under_another_name(form: str, prefix: str) -> None:
    options = {} if prefix == "module." else {"prefix": prefix}
    for state, more in (
        (file_of(form, prefix=prefix), options),
        ({re.sub("fc(?=[._])", "old", f"{prefix}{key}"): value for key, value in file_of(form).items()},
         {**options, "rename": [("^old", "fc")]}),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"fc\.weight is "):
            plan(Net(), rules(state, **more))


def test_a_rename_of_the_weights_alone_does_not_hide_the_scales() -> None:
    state = {key.replace("fc.", "old."): value for key, value in file_of("a scale").items()}
    with pytest.raises(CheckpointError, match=r"fc.weight is float8_e4m3fn .* without old.weight_scale"):
        plan(Net(), rules(state, rename=[("^old[.](weight|bias)$", r"fc.\1")]))


def test_a_marker_tells_of_a_whole_file() -> None:
    state = {"fc.weight": float8(), "fc.bias": floats(SIZE), "scaled_fp8": whole(E4M3, 0)}
    with pytest.raises(CheckpointError, match="values are meaningless without scaled_fp8"):
        plan(Net(), rules(state))
    inner = {"a.fc.weight": float8(), "a.fc.bias": floats(SIZE), "b.scaled_fp8": whole(E4M3, 0)}
    assert plan(Net(), rules(inner, prefix="a")).loads[0].doubts  # it tells of what lies beside it


class Experts(nn.Module):
    """Weights of experts, stacked, as transformers keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 8))
        self.down_proj = nn.Parameter(torch.zeros(2, 8, 4))


@pytest.mark.parametrize(
    ("values", "scale"),
    [(("", torch.zeros(2, 4, 8).to(E4M3)), "_scale_inv"), (("", torch.zeros(2, 4, 8).to(E4M3)), "_weight_scale"),
     (("_blocks", whole(UINT8, 2, 4, 4)), "_scales")],
)  # fmt: skip
def test_experts(values: tuple[str, Tensor], scale: str) -> None:
    state = {f"gate_up_proj{values[0]}": values[1], f"gate_up_proj{scale}": floats(2, 4, 1),
             "down_proj": floats(2, 8, 4)}  # fmt: skip
    with pytest.raises(CheckpointError, match=rf"gate_up_proj is .*gate_up_proj{scale}") as caught:
        plan(Experts(), rules(state))
    assert "down_proj is" not in str(caught.value)


def test_adapters_do_not_make_weights_of_them() -> None:
    state = {f"{one}.weight": float8() for one in "qkv"} | {f"{one}.weight_scale": floats() for one in "qkv"}
    net = nn.ModuleDict({"qkv": nn.Linear(SIZE, 3 * SIZE, bias=False)})
    with pytest.raises(CheckpointError, match=r"qkv.weight is float8_e4m3fn .* without q.weight_scale"):
        plan(net, rules(state, adapt={"qkv.weight": Fuse("qkv", ("q", "k", "v"))}))


@dataclass(frozen=True, slots=True)
class Dequantize(Adapter):
    """An adapter of somebody's own that does know what the scale is."""

    def wants(self, key: str) -> tuple[str, ...]:
        return key, f"{key}_scale"

    def adapt(self, tensors: Sequence[Tensor], shape: tuple[int, ...], key: str) -> Tensor:
        return tensors[0].float() * tensors[1]


def test_an_adapter_that_takes_the_scale_is_let_do() -> None:
    state, net = file_of("with activations"), Net()
    report = initialize(net, rules(state, adapt={"fc.weight": Dequantize()}), seed=0)
    assert torch.equal(net.fc.weight, state["fc.weight"].float() * state["fc.weight_scale"])
    assert report.loads[0].doubts == ()


def test_on_a_sharded_model() -> None:
    with fake_rank(0, 2), torch.device("meta"):
        net = Net()
        fully_shard(net, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("quantized",)))
        with pytest.raises(CheckpointError, match=r"fc.weight is float8_e4m3fn"):
            plan(net, rules(file_of("a scale")))


def test_what_no_rule_wants_is_no_matter() -> None:
    for form in FORMS:
        chosen = [Rule(Name("**"), Normal()), Rule(Name("norm.**"), Pretrained(file_of(form)))]
        assert initialize(Net(), chosen, seed=0).loads[0].complete
        assert plan(Net(), rules({k: v for k, v in file_of(form).items() if k != "fc.weight"},
                                 expect_missing="fc.weight")).loads[0].expected == ("fc.weight",)  # fmt: skip


# --- the ways out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(1, 1), (SIZE, 1), (2, 4)])
def test_the_products_are_the_weights(blocks: tuple[int, int]) -> None:
    """The oracle is the weight before it was quantized."""
    weight = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    rows, columns = (SIZE // number for number in blocks)
    tiles = weight.view(blocks[0], rows, blocks[1], columns)
    scale = tiles.abs().amax((1, 3), keepdim=True) / 448
    state = {"fc.weight": (tiles / scale).view(SIZE, SIZE).to(E4M3), "fc.weight_scale": scale.view(blocks)}
    state |= {"fc.bias": floats(SIZE), "norm.weight": floats(SIZE), "norm.bias": floats(SIZE)}
    with pytest.raises(CheckpointError, match=r"meaningless without fc.weight_scale"):
        plan(Net(), rules(state))
    spread = state.pop("fc.weight_scale").repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    net = Net()
    report = initialize(net, rules(state | {"fc.weight": state["fc.weight"].float() * spread}), seed=0)
    assert report.loads[0].doubts == ()
    torch.testing.assert_close(net.fc.weight.detach(), weight, rtol=2**-4, atol=float(scale.max()) / 512)


# --- the command line, and what is no file of plain tensors --------------------------------------------------------


MODEL = f"{Path(__file__).parents[2]}/examples/models.py:mlp"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A file for the example model, with scaled float8."""
    from examples.models import mlp

    state: dict[str, Tensor] = {}
    for key, value in mlp().state_dict().items():
        state |= {key: value.to(E4M3), f"{key}_scale": floats()} if value.dim() > 1 else {key: value}
    save_file(state, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("more", [[], ["--json"], ["--header-only"], ["--skip-shapes"]])
def test_check_ckpt(packed: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-ckpt", str(packed), "--model", MODEL, *more]) == 1
    text = capsys.readouterr().out
    assert "meaningless without" in text
    assert "multiply each tensor by its scale" in text
    if more == ["--json"]:
        assert "meaningless" in json.loads(text)["problems"][0]


def test_check_ckpt_of_a_plain_cast(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {key: open_checkpoint(packed).read(key) for key in open_checkpoint(packed) if "scale" not in key}
    save_file(tensors, path := packed.with_name("b.safetensors"))
    assert main(["check-ckpt", str(path), "--model", MODEL]) == 0
    assert "float8 in the file and no scale beside it" in capsys.readouterr().out


def test_apply(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe := tmp_path / "r.toml").write_text(
        f'[[rules]]\ntype = "Pretrained"\ncheckpoint = "{packed}"\nname = "**"\n'
    )
    assert main(["apply", MODEL, str(recipe), "-o", str(tmp_path / "out.safetensors"), "--seed", "0"]) == 1
    assert "meaningless without" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_gguf(tmp_path: Path) -> None:
    (path := tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    with pytest.raises(CheckpointError, match=r"is a GGUF file.*transformers, GgufConfig\(dequantize=True\)"):
        open_checkpoint(path)


def test_pickles_of_classes_that_stand_for_quantized_tensors(tmp_path: Path) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    torch.save({"weight": TwoTensor(torch.ones(2), torch.ones(2))}, path := tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"_rebuild_wrapper_subclass, .* dequantize\(\) them and save those"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_such_classes_in_memory() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    odd: Mapping[str, Tensor] = {
        "wrapped (TwoTensor)": TwoTensor(torch.ones(2), torch.ones(2)),
        "quantized": torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8),
    }
    for kind, tensor in odd.items():
        with pytest.raises(CheckpointError, match=rf"a is a {re.escape(kind)} tensor; .*: dequantize\(\) it first"):
            open_checkpoint({"a": tensor}).read("a")
