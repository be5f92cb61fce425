"""TI4, from TI407 on: faults that lie in several weights, or in a weight and its bias, together."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.linting.models import found
from torchinit import lint

Make = Callable[[], nn.Module]


def drawn(model: nn.Module, std: float) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    return model


def linears(number: int, width: int = 64, between: Make | None = None) -> nn.Sequential:
    layers = [[nn.Linear(width, width), *([between()] if between else [])] for _ in range(number)]
    return nn.Sequential(*(layer for group in layers for layer in group))


def measured(model: nn.Module, width: int = 64) -> float:
    """The factor by which a run of the model without biases makes its input larger."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        return float(model(torch.randn(512, width)).square().mean().sqrt())


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, nn.ReLU, nn.Dropout, lambda: nn.LeakyReLU(0.2)])
@pytest.mark.parametrize(("std", "code"), [(1.0, "TI407"), (1e-3, "TI408")])
def test_the_product_along_a_chain_is_what_a_run_measures(between: Make | None, std: float, code: str) -> None:
    model = drawn(linears(5, 64, between), std).eval()
    ((severity, site, message),) = found(model, code)
    told = float(message.partition("passes ")[2].split()[0])
    assert (severity, site) == ("warning", "0.weight")
    assert math.log(told) == pytest.approx(
        math.log(measured(model)), abs=0.7
    )  # five layers of 64 units, and elu's bend
    assert found(model, {"TI407": "TI408", "TI408": "TI407"}[code]) == []


def images() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(8, 8, 3), nn.MaxPool2d(2))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), inner, nn.Flatten(), nn.Linear(32, 8))


class Listed(nn.Module):
    def __init__(self, widths: tuple[int, ...], name: str = "layers", between: Make | None = None) -> None:
        super().__init__()
        pairs = [nn.Linear(*pair) for pair in pairwise(widths)]
        setattr(self, name, nn.ModuleList(nn.Sequential(each, between()) if between else each for each in pairs))


@pytest.mark.parametrize(
    ("model", "codes"),
    [
        (drawn(linears(3), 1.0), []),  # 512 times
        (drawn(linears(4), 1.0), ["TI407"]),
        (drawn(images(), 2.0), ["TI407"]),
        (drawn(images(), 1e-3), ["TI408"]),
        (drawn(Listed((32, 64, 64, 64, 10)), 1.0), ["TI407"]),
        (drawn(Listed((64, 64, 64, 64, 64)), 1.0), []),  # experts beside each other look so, too
        (drawn(nn.ModuleList(nn.Linear(64, 64) for _ in range(5)), 1.0), []),
        (drawn(Listed((64,) * 9), 1.0), ["TI407"]),  # so many like layers are one behind the other as a rule
        (drawn(Listed((64,) * 31, between=nn.ReLU), 0.02), ["TI408"]),
        (drawn(Listed((64,) * 9, "experts"), 1.0), []),
        (drawn(Listed((64,) * 31, between=nn.ReLU), math.sqrt(2 / 64)), []),
        (drawn(linears(5, 64, lambda: nn.LayerNorm(64)), 1.0), []),
        (drawn(linears(9, 64, nn.Tanh), 1.0), []),  # which a bounded activation hides
        (drawn(linears(9, 64, nn.Tanh), 0.02), ["TI408"]),
        (drawn(linears(5, 64, nn.Sigmoid), 1e-3), []),  # a half comes out of it, whatever comes in
        (nn.Sequential(*linears(12, 64, nn.ReLU)), ["TI408"]),  # as torch initializes it: 0.41 a layer
        (nn.Sequential(*linears(8, 64, nn.ReLU)), []),
        (drawn(linears(30, 64, nn.ReLU), math.sqrt(2 / 64)), []),
        (drawn(linears(30, 64, nn.Tanh), 1 / 8), []),
        (drawn(linears(30, 64, nn.GELU), 1.5335 / 8), []),
    ],
)
def test_chains(model: nn.Module, codes: list[str]) -> None:
    assert [one.code for one in lint(model, select=["TI407", "TI408"])] == codes


def test_a_list_that_may_be_no_chain_is_a_warning_that_says_so() -> None:
    for model in (Listed((64,) * 61), Listed((64,) * 61, between=nn.ReLU)):
        ((severity, _, message),) = found(drawn(model, 1.0), "TI407")
        assert severity == "warning"
        assert message.endswith("times as large, if they are one behind the other")


def test_a_chain_that_leaves_its_dtype_is_an_error() -> None:
    assert [severity for severity, *_ in found(drawn(linears(50), 1.0), "TI407")] == ["error"]
    assert [severity for severity, *_ in found(drawn(linears(20), 1e-4), "TI408")] == ["error"]
    assert not torch.isfinite(drawn(linears(50), 1.0)(torch.randn(1, 64))).all()
    assert [severity for severity, *_ in found(drawn(linears(6), 1.0).half(), "TI407")] == ["error"]


def test_what_was_loaded_or_is_zero_ends_a_chain() -> None:
    model = drawn(linears(5), 1.0)
    assert lint(model, select=["TI407"], loaded=model.state_dict()).codes == ()
    nn.init.zeros_(model.get_parameter("2.weight"))
    assert lint(model, select=["TI407", "TI408"]).codes == ()


def test_a_table_that_a_head_multiplies_by() -> None:
    table, head = nn.Embedding(1000, 768), nn.Linear(768, 1000, bias=False)
    assert found(nn.ModuleDict({"table": table, "head": head}), "TI404") == []
    head.weight = table.weight
    text = "std 1 with 768 inputs makes what passes through head.weight 27.7 times as large"
    with torch.no_grad():
        table.weight /= table.weight.std()
    assert found(nn.ModuleDict({"table": table, "head": head}), "TI404") == [("warning", "table.weight", text)]
    assert found(nn.ModuleDict({"head": head, "table": table}), "TI404")[0][:2] == ("warning", "head.weight")
    nn.init.normal_(table.weight, std=0.02)
    assert found(nn.ModuleDict({"table": table, "head": head}), "TI404") == []


# --- biases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.log(1e-300), -50.0, 1e4, 25.0])
def test_a_bias_beyond_its_weight(value: float) -> None:
    layer = nn.Linear(64, 10)
    layer.bias.data[3] = value
    ((severity, site, message),) = found(nn.Sequential(layer), "TI411")
    assert (severity, site) == ("warning", "0.bias")
    assert f"reaches {abs(value):.4g}" in message


def test_a_bias_that_is_drawn_wide_and_biases_that_are_meant() -> None:
    layers = nn.ModuleList([nn.Linear(64, 10), nn.LSTM(8, 8), nn.MultiheadAttention(16, 2), nn.Conv2d(3, 8, 3)])
    for name, parameter in layers.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=30)
    biases = {name for name, _ in layers.named_parameters() if "bias" in name}
    assert {site for _, site, _ in found(layers, "TI411")} == biases
    prior = nn.Conv2d(256, 80, 3)
    nn.init.normal_(prior.weight, std=0.01)
    nn.init.constant_(prior.get_parameter("bias"), -math.log(99999))
    loud = nn.Linear(64, 8)
    nn.init.normal_(loud.weight, std=1.0)
    nn.init.constant_(loud.bias, 40.0)
    assert found(nn.ModuleList([prior, loud, nn.BatchNorm2d(4)]), "TI411") == []


def before_relu(bias: float | None, weight: float | None = None) -> nn.Module:
    layer = nn.Linear(64, 32, bias=bias is not None)
    if bias is not None:
        nn.init.constant_(layer.get_parameter("bias"), bias)
    if weight is not None:
        nn.init.normal_(layer.weight, std=weight)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 4))


@pytest.mark.parametrize(
    ("bias", "weight", "severities"),
    [
        (-10.0, None, ["warning"]),
        (-2.0, None, []),
        (-10.0, 0.5, []),
        (-0.1, 1e-3, ["warning"]),
        (10.0, None, []),
        (None, 0.0, ["error"]),
        (0.0, 0.0, ["error"]),
        (-1.0, 0.0, ["error"]),
        (0.1, 0.0, []),
    ],
)
def test_units_that_a_relu_never_lets_pass(bias: float | None, weight: float | None, severities: list[str]) -> None:
    model = before_relu(bias, weight)
    assert [severity for severity, *_ in found(model, "TI409")] == severities
    passes = model[:2](torch.randn(4096, 64))  # type: ignore[index]
    assert bool((passes == 0).all()) == bool(severities)


def test_some_units_are_dead_and_other_activations_kill_none() -> None:
    model = before_relu(0.0)
    model.get_parameter("0.bias").data[:5] = -20
    ((_, site, message),) = found(model, "TI409")
    assert site == "0.weight"
    assert message.startswith("5 of 32 units never pass the ReLU: the bias is down to -20, and the weight makes 0.5")
    for other in (nn.Tanh(), nn.LeakyReLU(), nn.Identity()):
        assert found(nn.Sequential(model[0], other), "TI409") == []  # type: ignore[index]
    state = model.state_dict()
    assert lint(model, select=["TI409"], loaded=state).codes == ()


# --- pairs ------------------------------------------------------------------------------------------------------------


def zeroed(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        nn.init.zeros_(model.get_parameter(name))
    return model


def lora(names: tuple[str, str] = ("lora_A", "lora_B")) -> nn.Module:
    down, up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
    return nn.ModuleDict({"base": nn.Linear(64, 64), names[0]: down, names[1]: up})


class RawLora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(4, 64)), nn.Parameter(torch.zeros(64, 4))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))


def block(name: str, module: nn.Module) -> nn.Module:
    return nn.ModuleDict({name: module})


def some_learn(model: nn.Module, x: Tensor, *names: str) -> bool:
    """Whether some of these have a gradient."""
    model(x).square().sum().backward()
    return any(
        bool(parameter.grad.any()) for name in names if (parameter := model.get_parameter(name)).grad is not None
    )


@pytest.mark.parametrize(
    ("model", "severities"),
    [
        (zeroed(lora(), "lora_A.weight", "lora_B.weight"), ["error"]),
        (zeroed(lora(), "lora_B.weight"), []),
        (zeroed(lora(), "lora_A.weight"), []),
        (zeroed(lora(("lora_down", "lora_up")), "lora_down.weight", "lora_up.weight"), ["error"]),
        (zeroed(RawLora(), "lora_A"), ["error"]),
        (RawLora(), []),
        (zeroed(linears(2), "0.weight", "0.bias", "1.weight"), ["error"]),
        (zeroed(linears(2), "0.weight", "1.weight"), []),  # the first bias makes a gradient for the second weight
        (zeroed(linears(2, 64, nn.GELU), "0.weight", "0.bias", "2.weight"), ["error"]),
        (zeroed(linears(2, 64, nn.Sigmoid), "0.weight", "0.bias", "2.weight"), []),
        (zeroed(linears(3), "0.weight", "0.bias", "2.weight"), []),
        (block("attention", zeroed(Attention(), "q.weight", "k.weight")), ["warning"]),
        (block("attention", zeroed(Attention(), "v.weight")), []),
    ],
)
def test_pairs_of_zeros(model: nn.Module, severities: list[str]) -> None:
    assert [severity for severity, *_ in found(model, "TI410")] == severities


def test_that_pairs_of_zeros_have_no_gradient_is_true() -> None:
    model: nn.Module
    for between in (None, nn.GELU, nn.Tanh, nn.ReLU):
        model = linears(2, 8, between)
        names = ("0.weight", "0.bias", "2.weight" if between else "1.weight")
        assert not some_learn(zeroed(model, *names), torch.randn(4, 8), "0.weight", names[2])
    model = zeroed(linears(2, 8, nn.Sigmoid), "0.weight", "0.bias", "2.weight")
    assert some_learn(model, torch.randn(4, 8), "2.weight")


def test_pairs_that_do_not_learn_or_were_loaded_are_left_out() -> None:
    model = zeroed(lora(), "lora_A.weight", "lora_B.weight")
    assert lint(model, select=["TI410"], loaded=model.state_dict()).codes == ()
    assert found(model.requires_grad_(False), "TI410") == []


# --- slips ------------------------------------------------------------------------------------------------------------


def with_std(layer: nn.Module, std: float) -> nn.Module:
    nn.init.normal_(layer.get_parameter("weight"), std=std)
    return layer


FAN, TWICE, SHAPE = (
    "the std is gain / fan",
    "the std is that of a gain applied twice",
    "the spread is that of fans read",
)


@pytest.mark.parametrize(
    ("model", "slip"),
    [
        (with_std(nn.Linear(512, 512), 1 / 512), FAN),
        (with_std(nn.Linear(256, 300), math.sqrt(2) / 256), FAN),
        (with_std(nn.Conv2d(32, 64, 3), 1 / 288), FAN),
        (nn.Sequential(with_std(nn.Linear(512, 512), 2 / math.sqrt(512)), nn.ReLU()), TWICE),
        (nn.Sequential(with_std(nn.Linear(300, 300), (5 / 3) ** 2 / math.sqrt(300)), nn.Tanh()), TWICE),
        (with_std(nn.Linear(512, 512), 2 / math.sqrt(512)), TWICE),
        (with_std(nn.Conv2d(64, 64, 3, groups=64), math.sqrt(2 / 576)), SHAPE),
        (with_std(nn.Conv1d(32, 64, 5, groups=8), math.sqrt(1 / 320)), SHAPE),
        (with_std(nn.ConvTranspose2d(256, 16, 3), math.sqrt(2 / 144)), SHAPE),
        (with_std(nn.ConvTranspose2d(64, 64, 3, groups=64), math.sqrt(2 / 576)), SHAPE),
    ],
)
def test_slips(model: nn.Module, slip: str) -> None:
    ((severity, site, message),) = found(model, "TI412")
    assert (severity, site) == ("note", "")
    assert message.startswith(slip)


def test_usual_formulas_are_no_slips() -> None:
    layers: list[nn.Module] = [
        nn.Linear(512, 256), nn.Linear(256, 512), nn.Conv2d(64, 128, 3, stride=2), nn.Conv2d(64, 64, 3, groups=64),
        nn.ConvTranspose2d(64, 32, 4, stride=2), nn.GRU(64, 64), nn.Conv2d(64, 64, 3, groups=4),
    ]  # fmt: skip
    assert found(nn.ModuleList(layers), "TI412") == []
    for mode in ("fan_in", "fan_out"):
        for layer in layers[:3]:
            nn.init.kaiming_normal_(layer.get_parameter("weight"), mode=mode, nonlinearity="relu")
        assert found(nn.ModuleList(layers), "TI412") == []
    for layer in layers[:2]:
        nn.init.xavier_uniform_(layer.get_parameter("weight"))
    nn.init.normal_(layers[2].get_parameter("weight"), std=0.02)
    assert found(nn.ModuleList(layers), "TI412") == []


# --- complex weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_without_a_part(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 32, dtype=dtype)
    assert found(layer, "TI413") == []
    layer.weight.data.imag.zero_()
    assert found(layer, "TI413") == [("warning", "weight", "all 2048 imaginary parts are zero")]
    assert lint(layer, select=["TI413"], loaded=layer.state_dict()).codes == ()
    layer.weight.data *= 1j
    assert [message for *_, message in found(layer, "TI413")] == ["all 2048 real parts are zero"]
    layer.weight.data = torch.where(torch.rand(32, 64) < 0.6, 0, torch.randn(32, 64, dtype=dtype))  # sparse
    assert found(layer, "TI413") == []
    layer.bias.data = torch.randn(32).to(dtype)
    assert [site for _, site, _ in found(layer, "TI413")] == ["bias"]
