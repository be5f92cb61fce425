"""TI5: values that float16 holds badly, modules of two dtypes or on two devices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.linting.models import Net, Rotary, found, only
from torchinit import lint


def test_std_where_float16_has_few_digits() -> None:
    model = Net()
    nn.init.normal_(model.head.weight, std=2e-5)
    found = only(lint(model.half()), "TI501")
    assert found.site == "head.weight"


def test_bias_of_another_dtype() -> None:
    model = Net().to(torch.bfloat16)
    model.blocks[0].get_submodule("1").bias = nn.Parameter(torch.zeros(64))
    found = only(lint(model), "TI503")
    assert (found.site, found.message) == ("blocks.0.1", "weight bfloat16 but bias float32")


def test_float16_that_overflows_when_squared() -> None:
    model = nn.Linear(4, 4).half()
    with torch.no_grad():
        model.weight[0, 0] = 300
    assert found(model, "TI502") == [("warning", "weight", "holds 300, and float16 ends at 65504")]
    assert found(model.to(torch.bfloat16), "TI502") == []


def test_a_module_on_two_devices() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with FakeTensorMode():  # a device that need not be there
        model[0].bias = nn.Parameter(torch.empty(4, device="cuda"))
    assert found(model, "TI504") == [("error", "0", "weight cpu but bias cuda:0")]


def test_state_spaces_and_scales_may_have_dtypes_of_their_own() -> None:
    model = nn.Linear(4, 4).to(torch.bfloat16)
    model.register_parameter("A_log", nn.Parameter(torch.zeros(4)))
    model.weight = nn.Parameter(model.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert found(model, "TI503") == []


class Frequencies(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        made = 10000.0 ** -(torch.arange(0, width, 2) / width)
        self.register_buffer("turns", made, persistent=False)
        self.register_buffer("short", made.half(), persistent=False)
        self.register_buffer("kept", made.clone())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_that_a_conversion_rounded(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"own": Frequencies(), "named": Rotary(), "fc": nn.Linear(4, 4)})
    assert found(model, "TI505") == []
    name = str(dtype).removeprefix("torch.")
    names = f"own.turns ({name} for float32), named.inv_freq ({name} for float32)"
    text = f"fewer digits than made in 2 buffers: {names}"
    assert found(copy.deepcopy(model).to(dtype), "TI505") == [("note", "", text)]
    assert found(model.double(), "TI505") == []
    with torch.device("meta"):
        sketch = nn.ModuleDict({"named": Rotary()}).to(torch.bfloat16)
    assert [severity for severity, *_ in found(sketch, "TI505")] == ["note"]


def test_what_is_made_in_half_precision_is_not_rounded() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turns", torch.ones(4, dtype=torch.bfloat16), persistent=False)

    assert found(Half(), "TI505") == []
