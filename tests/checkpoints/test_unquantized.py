"""Honest files: scales that a model has, plain casts and hooks that know better are not taken for quantization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import strategies
from tests.checkpoints.forms import E4M3, E8M0, INT8, INT32, SIZE, Net, file_of, float8, floats, rules
from torchinit import CheckpointError, initialize, lint, plan
from torchinit.checkpoints.quantized import quantized
from torchinit.mmengine import load_state_dict

E5M2 = torch.float8_e5m2


class Scaled(nn.Module):
    """A model whose own parameters are called as scales are."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        self.weight_scale = nn.Parameter(torch.zeros(8))
        self.input_scale = nn.Parameter(torch.zeros(1))
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.scale = nn.Parameter(torch.zeros(8))
        self.zero_point = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, E4M3, E5M2])
def test_scales_that_the_model_has_are_parameters_like_any_other(dtype: torch.dtype) -> None:
    state = {key: torch.full_like(value, 2.0) for key, value in Scaled(dtype).state_dict().items()}
    for model in (Scaled(), Scaled(dtype)):
        (account,) = initialize(model, rules(state), seed=0).loads
        assert account.complete
        assert bool(account.doubts) == (dtype.itemsize == 1 and model.weight.dtype == torch.float32)
        assert load_state_dict(Scaled(), state).found == 6
        assert not lint(Scaled(), loaded=state, select=["TI201"])


ANYTHING = st.dictionaries(
    st.lists(
        st.sampled_from(["fc", "0", "weight", "scale", "weight_scale", "input_scale", "logit_scale", "scales", "q",
                         "codes", "quant", "zero_point", "data", "blocks", "packed", "qweight", "layer_scale_1"]),
        min_size=1, max_size=3).map(".".join),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64]),
    min_size=1, max_size=8,
)  # fmt: skip


@given(ANYTHING, ANYTHING)
def test_of_floats_alone_nothing_is_refused(file: dict[str, torch.dtype], model: dict[str, torch.dtype]) -> None:
    assert not quantized({key: torch.ones(4, 4).to(dtype) for key, dtype in file.items()}, model)


@given(st.dictionaries(st.sampled_from(["fc.weight", "fc.scale", "fc.weight_scale", "scale", "fc.bias"]),
                       st.sampled_from([torch.float32, INT8, INT32, E4M3, E8M0, torch.int64])))  # fmt: skip
def test_whatever_it_is_what_the_model_has_whole_is_not_refused(file: dict[str, torch.dtype]) -> None:
    assert not quantized({key: torch.ones(4, 4).to(dtype) for key, dtype in file.items()}, file)


@given(st.lists(st.sampled_from(sorted(strategies.LAYERS)), min_size=1, max_size=5), st.booleans())
def test_models_are_not_refused_their_own_states(chosen: list[str], matrices: bool) -> None:
    model = strategies.build(chosen)
    state = dict(model.state_dict())
    dtypes = {key: value.dtype for key, value in state.items()}
    cast = {
        key: value.to(E4M3) if value.is_floating_point() and (value.dim() > 1 or not matrices) else value
        for key, value in state.items()
    }
    assert not quantized(state, dtypes)
    assert not quantized(cast, dtypes)


@pytest.mark.parametrize(
    ("name", "other"),
    [("weight", "pos_weight"), ("mask", "mask_token"), ("weight", "layer_scale_1"), ("attn.weight", "logit_scale"),
     ("weight", "weight_fake_quant.scale"), ("weight", "norm.weight"), ("conv.weight", "quant_conv.weight")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, E4M3, torch.bool, torch.int64])
def test_what_the_model_lacks_is_not_always_a_scale(name: str, other: str, dtype: torch.dtype) -> None:
    ours = torch.float32 if dtype.is_floating_point else dtype
    state = {name: torch.ones(4, 4).to(dtype), other: torch.ones(4).to(E4M3 if dtype == E4M3 else torch.float32)}
    if "fake" not in other or dtype != E4M3:
        assert not quantized(state, {name: ours})
    assert not quantized({other: torch.ones(4)}, {name: ours})


# --- doubts ------------------------------------------------------------------------------------------------------


def test_float8_without_a_scale_is_a_doubt_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    state = {key: value for key, value in file_of("a scale").items() if key != "fc.weight_scale"}
    report = initialize(Net(), rules(state), seed=0, strict=True)
    (doubt,) = report.loads[0].doubts
    assert doubt.startswith("fc.weight: float8 in the file and no scale beside it: right for a plain cast")
    assert f"dict in memory: {doubt}" in report.loads[0].warnings
    assert f"dict in memory: {doubt}" in caplog.messages
    assert doubt in report.loads[0].summary()
    caplog.clear()
    assert load_state_dict(Net(), state).doubts == (doubt,)
    assert f"state_dict: {doubt}" in caplog.messages


def test_a_scale_that_nothing_reads_is_a_doubt() -> None:
    state = {**file_of("a scale"), "fc.weight": torch.ones(SIZE, SIZE)}
    (account,) = plan(Net(), rules(state)).loads
    (doubt,) = account.doubts
    assert doubt == "fc.weight: a scale of that name is in the file, and nothing reads it: wrong if it was divided out"
    for harmless in ("input_scale", "weight_quantizer._amax", "output_scale", "weight_g"):
        state = {"fc.weight": torch.ones(SIZE, SIZE), "fc.bias": floats(SIZE), f"fc.{harmless}": floats()}
        assert plan(Net(), rules(state)).loads[0].doubts == ()


def test_float8_for_float8_is_no_doubt() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(SIZE, SIZE, bias=False, dtype=E4M3, device="meta")})
    assert plan(net, rules({"fc.weight": float8()})).loads[0].doubts == ()
    with pytest.raises(CheckpointError, match=r"fc.weight is float8_e4m3fn .* without fc.weight_scale"):
        plan(net, rules({"fc.weight": float8(), "fc.weight_scale": floats()}))


# --- hooks that know ---------------------------------------------------------------------------------------------


class Dequantizing(nn.Linear):
    """A layer that multiplies by the scale while it is loaded, if it is told to."""

    works = True

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if self.works and f"{prefix}weight_scale" in state:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].float() * state.pop(f"{prefix}weight_scale")
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_module_may_dequantize_what_it_is_given() -> None:
    state = {"fc.weight": float8(), "fc.weight_scale": floats(), "fc.bias": floats(SIZE)}
    net = nn.ModuleDict({"fc": Dequantizing(SIZE, SIZE)})
    account = load_state_dict(net, state)
    assert (account.complete, account.doubts) == (True, ())
    assert torch.equal(net.state_dict()["fc.weight"], state["fc.weight"].float() * state["fc.weight_scale"])
    net.fc.works = False  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"fc.weight is float8_e4m3fn .* without fc.weight_scale"):
        load_state_dict(net, state)
