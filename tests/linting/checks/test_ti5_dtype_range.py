"""TI5: values that float16 holds badly, modules of two dtypes or on two devices."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.linting.models import Net, found, only
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
