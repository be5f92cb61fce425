"""Layouts: both ways to count connections, against a count of the connections that layers really make."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchinit import sites
from torchinit.model import Layout, Slot, register_layout
from torchinit.model.layouts import describe
from torchinit.model.sites import Site


def site(layer: nn.Module, leaf: str = "weight") -> Site:
    return next(found for found in sites(layer) if found.name == leaf)


def with_ones(layer: nn.Module) -> nn.Module:
    """The layer with 1 for each weight and 0 for each bias, so that its outputs count their inputs."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(0.0 if "bias" in name else 1.0)
    return layer


def counted(layer: nn.Module, inputs: Tensor, inner: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Connections an output and connections an input, away from the borders, from the layer's Jacobian.

    With weights of 1, an output changes by 1 for each weight between it and an input that changes by 1.
    ``inner`` picks the inputs or outputs that no border cuts off.
    """
    inputs = inputs.clone().requires_grad_()
    outputs: Tensor = with_ones(layer)(inputs)
    fan_in = inner(layer(torch.ones_like(inputs)))
    (received,) = torch.autograd.grad(outputs.sum(), inputs)
    return float(fan_in.detach().mean()), float(inner(received).mean())


def middle(dims: int, period: int = 1) -> Callable[[Tensor], Tensor]:
    """The values at the middle of the last ``dims`` dimensions, over whole periods of a stride."""

    def pick(values: Tensor) -> Tensor:
        for axis in range(values.dim() - dims, values.dim()):
            values = values.narrow(axis, values.shape[axis] // 2 // period * period, period)
        return values

    return pick


CONVOLUTIONS: list[tuple[nn.Module, int, int]] = [
    (nn.Conv1d(4, 6, 3), 1, 1),
    (nn.Conv1d(4, 6, 5, stride=2), 1, 2),
    (nn.Conv2d(3, 5, 3), 2, 1),
    (nn.Conv2d(4, 8, (3, 5), groups=2), 2, 1),
    (nn.Conv2d(6, 6, 3, groups=6), 2, 1),
    (nn.Conv2d(6, 12, 3, groups=6), 2, 1),
    (nn.Conv2d(2, 4, 4, stride=2), 2, 2),
    (nn.Conv2d(2, 4, 3, dilation=2), 2, 1),
    (nn.Conv3d(2, 3, 2), 3, 1),
    (nn.ConvTranspose1d(4, 6, 3), 1, 1),
    (nn.ConvTranspose1d(4, 6, 4, stride=2), 1, 2),
    (nn.ConvTranspose2d(3, 5, 3), 2, 1),
    (nn.ConvTranspose2d(4, 8, 3, groups=2), 2, 1),
    (nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2), 2, 2),
    (nn.ConvTranspose3d(2, 3, 2), 3, 1),
]


@pytest.mark.parametrize(("layer", "dims", "period"), CONVOLUTIONS, ids=str)
def test_true_fans_of_convolutions_are_the_connections_counted(layer: nn.Module, dims: int, period: int) -> None:
    channels = int(getattr(layer, "in_channels", 0))
    inputs = torch.ones(1, channels, *(24,) * dims)
    assert site(layer).fans("true") == counted(layer, inputs, middle(dims, period))


@pytest.mark.parametrize("layer", [case[0] for case in CONVOLUTIONS], ids=str)
def test_torch_fans_of_convolutions_are_torchs(layer: nn.Module) -> None:
    assert site(layer).fans() == nn.init._calculate_fan_in_and_fan_out(layer.get_parameter("weight"))


def test_fans_in_figures() -> None:
    """Figures worked out by hand: 32 * 9 and 16 * 9; 64 * 9 and 1 * 9."""
    up = site(nn.ConvTranspose2d(16, 32, 3))
    assert (up.fans(), up.fans("true")) == ((288, 144), (144, 288))
    depthwise = site(nn.Conv2d(64, 64, 3, groups=64))
    assert (depthwise.fans(), depthwise.fans("true")) == ((9, 576), (9, 9))


def test_linear() -> None:
    assert site(nn.Linear(7, 5)).fans("true") == counted(nn.Linear(7, 5), torch.ones(1, 7), lambda x: x)
    assert site(nn.Linear(7, 5)).fans() == (7, 5)


def test_bilinear_sums_over_pairs_of_inputs() -> None:
    layer = with_ones(nn.Bilinear(3, 4, 5))
    assert float(layer(torch.ones(1, 3), torch.ones(1, 4)).detach()[0, 0]) == 12
    assert site(layer).fans("true") == (12, 5)
    assert site(layer).fans() == nn.init._calculate_fan_in_and_fan_out(layer.get_parameter("weight"))


@pytest.mark.parametrize("table", [nn.Embedding(10, 4), nn.EmbeddingBag(10, 4)], ids=str)
def test_a_row_is_picked_not_summed(table: nn.Module) -> None:
    assert site(table).fans("true") == (1, 4)
    assert site(table).fans() == (4, 10)


@pytest.mark.parametrize("table", [nn.Embedding(10, 4, padding_idx=-1), nn.EmbeddingBag(10, 4, padding_idx=9)], ids=str)
def test_the_padding_row_stays_zero(table: nn.Module) -> None:
    assert site(table).zero_row == 9


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.LSTM(7, 5), 7),
        (nn.GRU(7, 5), 7),
        (nn.RNN(7, 5), 7),
        (nn.LSTMCell(7, 5), 7),
        (nn.GRUCell(7, 5), 7),
        (nn.RNNCell(7, 5), 7),
    ],
    ids=str,
)
def test_recurrent_layers_gate_by_gate(layer: nn.Module, inputs: int) -> None:
    """Each gate is a matrix of its own: hidden x inputs, and hidden x hidden."""
    found = {one.name.removesuffix("_l0"): one for one in sites(layer)}
    assert found["weight_ih"].fans("true") == (inputs, 5)
    assert found["weight_hh"].fans("true") == (5, 5)
    assert found["weight_ih"].fans() == (inputs, len(layer.get_parameter(found["weight_ih"].name)))
    assert {name: one.parameter_kind for name, one in found.items()} == {
        "weight_ih": "weight",
        "weight_hh": "weight",
        "bias_ih": "bias",
        "bias_hh": "bias",
    }
    assert {one.layout.blocks for one in found.values() if one.layout} == {
        len(layer.get_parameter(found["bias_ih"].name)) // 5
    }


def test_lstm_with_projection_both_ways_and_layers() -> None:
    found = {one.name: one for one in sites(nn.LSTM(7, 6, num_layers=2, bidirectional=True, proj_size=3))}
    assert found["weight_hr_l0"].fans("true") == found["weight_hr_l0"].fans() == (6, 3)
    assert found["weight_hh_l1_reverse"].fans("true") == (3, 6)
    assert found["weight_ih_l1"].fans("true") == (6, 6)


def test_attention_packed() -> None:
    found = {one.name: one for one in sites(nn.MultiheadAttention(8, 2))}
    assert found["in_proj_weight"].fans("true") == (8, 8)
    assert found["in_proj_weight"].fans() == (8, 24)
    assert found["in_proj_bias"].parameter_kind == "bias"
    assert found["out_proj.weight"].owner.name == "NonDynamicallyQuantizableLinear"
    assert found["out_proj.weight"].fans("true") == (8, 8)


def test_attention_separate() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)
    found = {one.name: one for one in sites(layer)}
    assert found["q_proj_weight"].fans("true") == (8, 8)
    assert found["k_proj_weight"].fans("true") == (4, 8)
    assert found["v_proj_weight"].fans("true") == (6, 8)
    assert {found[name].parameter_kind for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")} == {"weight"}
    assert found["bias_k"].parameter_kind == "other"


NORMS = [
    nn.BatchNorm2d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm1d(4, affine=True),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.LayerNorm((3, 4)),
    nn.RMSNorm((3, 4)),
    nn.PReLU(4),
]


@pytest.mark.parametrize("layer", NORMS, ids=str)
def test_elementwise_scales_connect_one_to_one(layer: nn.Module) -> None:
    slot = describe(layer, "weight")
    assert slot.kind == "weight"
    assert slot.layout is not None
    assert slot.layout.fans(tuple(layer.get_parameter("weight").shape)) == (1, 1)
    if not isinstance(layer, (nn.RMSNorm, nn.PReLU)):
        assert describe(layer, "bias").kind == "bias"


def test_lazy_layers_have_the_layout_of_what_they_become() -> None:
    layer = nn.LazyConvTranspose2d(32, 3, groups=2)
    assert site(layer).state == "lazy"
    layer(torch.ones(1, 16, 8, 8))
    assert site(layer).fans("true") == site(nn.ConvTranspose2d(16, 32, 3, groups=2)).fans("true") == (72, 144)


def test_a_layer_known_by_its_qualified_name_alone() -> None:
    """The layer of GPT-2 lives in transformers, which is not imported here: y = x @ weight + bias."""

    class Conv1D(nn.Module):
        def __init__(self, outputs: int, inputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(inputs, outputs))
            self.bias = nn.Parameter(torch.empty(outputs))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    assert site(Conv1D(5, 7)).layout is None
    Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
    found = site(Conv1D(5, 7))
    assert found.fans("true") == counted(Conv1D(5, 7), torch.ones(1, 7), lambda x: x) == (7, 5)
    assert found.fans() == (5, 7)


class Mixer(nn.Module):
    """Experts side by side: (experts, inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(4, 3, 5))
        self.shift = nn.Parameter(torch.empty(5))
        self.weight = nn.Parameter(torch.empty(5, 5))


class Mixed(Mixer):
    pass


def test_a_users_layer_and_its_subclasses() -> None:
    @register_layout(Mixer)
    def _(module: nn.Module, leaf: str) -> Layout | Slot | None:
        if leaf == "kernel":
            return Layout(in_axes=(1,), out_axes=(2,), batch_axes=(0,))
        return Slot("bias") if leaf == "shift" else None

    assert site(Mixed(), "kernel").fans("true") == (3, 5)
    assert site(Mixed(), "kernel").fans() == (15, 20)
    assert site(Mixed(), "shift").parameter_kind == "bias"
    assert site(Mixed(), "weight").parameter_kind == "weight"
    assert site(Mixed(), "weight").layout is None


@pytest.mark.parametrize("layer", [Mixer(), nn.Embedding(2, 2), nn.LSTM(2, 2), nn.GRUCell(2, 2), nn.LayerNorm(2)])
def test_a_name_that_is_not_known_is_other(layer: nn.Module) -> None:
    assert describe(layer, "gamma") == Slot("other")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"in_axes": (0,), "out_axes": (0,)}, "an axis has one meaning"),
        ({"in_axes": (-1,)}, "counts from 0"),
        ({"in_axes": (1, 1)}, "an axis has one meaning"),
        ({"groups": 0}, "groups, stride and blocks are at least 1"),
        ({"blocks": -3}, "groups, stride and blocks are at least 1"),
        ({"stride": 0}, "groups, stride and blocks are at least 1"),
    ],
)
def test_bad_layouts(axes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**axes)  # type: ignore[arg-type]  # wrong on purpose


def test_receptive_field_is_whatever_axis_has_no_other_meaning() -> None:
    assert Layout().fans((8, 4, 3, 5, 7)) == (4 * 105, 8 * 105)
    assert math.prod(Layout(in_axes=(), out_axes=(), batch_axes=(0, 1)).fans((8, 4))) == 1


class Mixture(nn.Module):
    """Experts in one tensor, as transformers keeps them: of rows that are outputs, or of columns."""

    def __init__(self, size: int, inner: int, *, parts: int = 2, transposed: bool = False, **words: object) -> None:
        super().__init__()
        up, down = (3, parts * inner, size), (3, size, inner)
        if transposed:
            up, down = (3, size, parts * inner), (3, inner, size)
        setattr(self, "gate_up_proj" if parts == 2 else "up_proj", nn.Parameter(torch.zeros(up)))
        self.down_proj = nn.Parameter(torch.zeros(down))
        self.__dict__.update(words)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "inner"), [(8, 5), (8, 8), (8, 4), (4, 8), (6, 12), (12, 6), (1, 1)])
def test_experts_are_told_by_the_two_ways(size: int, inner: int, transposed: bool) -> None:
    """One expert is a layer of its own: so many inputs feed one output of a part of it. Any sizes may be equal."""
    model = Mixture(size, inner, transposed=transposed)
    assert site(model, "gate_up_proj").fans("true") == (size, inner)
    assert site(model, "down_proj").fans("true") == (inner, size)
    assert site(model, "down_proj").parameter_kind == site(model, "gate_up_proj").parameter_kind == "weight"


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_without_gates_say_themselves_which_axis_is_which(transposed: bool) -> None:
    model = Mixture(8, 5, parts=1, transposed=transposed, is_transposed=transposed)
    assert site(model, "up_proj").fans("true") == (8, 5)
    assert site(model, "down_proj").fans("true") == (5, 8)
    silent = Mixture(8, 5, parts=1, transposed=transposed)
    assert site(silent, "up_proj").layout is None


def test_what_is_only_called_so_is_not_known() -> None:
    odd = Mixture(8, 5)
    odd.down_proj = nn.Parameter(torch.zeros(3, 7, 5))
    assert site(odd, "gate_up_proj").layout is site(odd, "down_proj").layout is None
    flat = nn.Module()
    flat.up_proj, flat.down_proj = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(2, 4))
    assert site(flat, "up_proj").layout is None
    assert describe(nn.ModuleDict({"up_proj": nn.Linear(2, 2), "down_proj": nn.Linear(2, 2)}), "up_proj").layout is None
