"""The catalogue: complete, up to date, and each of its lines does what it says, by an oracle of another make."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, linalg, stats
from torch import Tensor, nn
from torch.nn import functional as F

import torchinit
from tests.catalogue import ENTRIES, NAMES, PAGE, inline, page, way
from tests.stats import assert_distribution, assert_mean, assert_std
from torchinit import Name, Rule
from torchinit.recipes import schemes

SELECTORS = {"layer", "name", "regex", "within", "param"}
RUN = [number for number, entry in ENTRIES.items() if "no" not in entry]


def start(number: int, model: Any, **data: Any) -> Any:
    """The model, started by the lines of an entry; ``data`` are the names that its Python uses."""
    entry = ENTRIES[number]
    recipe: Any = entry.get("scheme")
    if "rules" in entry:
        recipe = {"rules": [rule if SELECTORS & rule.keys() else {**rule, "name": "**"} for rule in entry["rules"]]}
    elif "python" in entry:
        recipe = Rule(Name("**"), eval(entry["python"], {**NAMES, **data}))
    torchinit.initialize(model, recipe, seed=number).assert_ok()
    return model


def tensor(number: int, *shape: int, dtype: torch.dtype = torch.float32, **data: Any) -> Tensor:
    """A tensor alone, started by the lines of an entry."""
    alone = nn.ParameterDict({"w": nn.Parameter(torch.full(shape, torch.nan, dtype=dtype))})
    weight: Tensor = start(number, alone, **data)["w"].detach()
    return weight


def stack(make: Callable[[], nn.Module], depth: int = 8, **more: nn.Module) -> Any:
    """A model of ``depth`` like blocks."""
    return nn.ModuleDict({"layers": nn.ModuleList(make() for _ in range(depth)), **more})


def holding(**shapes: tuple[int, ...]) -> nn.Module:
    """A module that holds parameters of these names."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.full(shape, torch.nan)))
    return module


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_is_up_to_date() -> None:
    assert page() == PAGE.read_text("utf-8"), "run: python -m tests.catalogue"


def test_it_is_complete() -> None:
    assert [*ENTRIES] == [*range(1, 178)]
    names = [entry["name"] for entry in ENTRIES.values()]
    assert len(set(names)) == len(names)
    for entry in ENTRIES.values():
        written = sum(key in entry for key in ("rules", "python", "no"))
        assert written == 1 or (not written and "scheme" in entry), entry["name"]
        assert entry.keys() <= {
            "n",
            "name",
            "start",
            "source",
            "arxiv",
            "rules",
            "python",
            "scheme",
            "arguments",
            "no",
            "note",
            "own",
        }


def test_every_line_has_an_oracle() -> None:
    assert set(RUN) == ORACLES.keys()


def test_inline() -> None:
    assert inline({"a": [1, True, "x"], "*.b": {}}) == '{ a = [1, true, "x"], "*.b" = {  } }'
    assert way({"no": "because"}) == "no"
    for entry in ENTRIES.values():  # that its arguments are such
        assert "scheme" not in entry or torchinit.load_recipe(entry["scheme"], entry.get("arguments"))
    assert {entry.get("scheme") for entry in ENTRIES.values()} <= {None, *schemes()}


# --- distributions by SciPy ------------------------------------------------------------------------------------------

SHAPE = (200, 300)


def normal(std: float, mean: float = 0.0) -> Any:
    return stats.norm(mean, std)


def uniform(bound: float) -> Any:
    return stats.uniform(-bound, 2 * bound)


def second_moment(function: Callable[[float], float]) -> float:
    return float(integrate.quad(lambda z: function(z) ** 2 * stats.norm.pdf(z), -12, 12, points=[0.0])[0])


def mish(z: float) -> float:
    return z * math.tanh(math.log1p(math.exp(z)))


CUT = 0.87962566103423978
"""The std of a standard normal that is cut at two standard deviations."""

LAWS: dict[int, Any] = {
    4: stats.uniform(-0.1, 0.4), 5: normal(0.02, 0.5), 6: stats.truncnorm(-1.5, 2.5, scale=0.02),
    7: stats.truncnorm(-2, 2, scale=0.02 / CUT), 8: stats.truncnorm(-3, 3, scale=0.02), 28: normal(0.02, 1.0),
    31: normal(300**-0.5), 32: uniform(math.sqrt(6 / 500)), 33: normal(math.sqrt(2 / 1.04 / 300)),
    34: uniform(math.sqrt(6 / math.sqrt(200 * 300))), 35: uniform(0.1), 36: normal(0.1),
    38: uniform(math.sqrt(3 / 250)), 39: uniform(0.143), 41: normal(5 / 3 / math.sqrt(300)),
    42: normal((300 * second_moment(mish)) ** -0.5), 44: normal(300**-0.5), 55: normal(1), 56: normal(300**-0.5),
    43: normal((300 * second_moment(lambda z: z if z > 0 else math.expm1(z))) ** -0.5), 59: normal(1),
    60: uniform(1e-4), 61: normal(1), 73: normal(1e-6), 74: stats.truncnorm(-100, 100, scale=0.02),
    81: normal(math.sqrt(2 / 1500)), 83: normal(math.sqrt(0.4)), 84: normal(300**-0.5),
    108: stats.truncnorm(-2, 2, scale=math.sqrt(0.1 / 300) / CUT), 112: normal(1), 122: uniform(1 / 300),
    123: uniform(math.sqrt(0.02) / 30), 124: uniform(10), 125: normal(10),
}  # fmt: skip


def law(number: int) -> Callable[[], None]:
    def check() -> None:
        assert_distribution(tensor(number, *SHAPE), LAWS[number].cdf)

    return check


# --- numbers one by one ----------------------------------------------------------------------------------------------


def each(*shape: int) -> Callable[[Callable[..., float]], NDArray[np.float64]]:
    """The values of a function of places, one after the other."""
    return lambda function: np.vectorize(function)(*np.indices(shape)).astype(np.float64)


def sylvester(size: int) -> NDArray[np.float64]:
    made: NDArray[np.float64] = linalg.hadamard(size).astype(np.float64)
    return made


def hippo(n: int, k: int) -> float:
    return -math.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1.0) if n == k else 0.0


def ring(at: int) -> float:
    head, point = at // 2 // 4 // 4, at // 2 % 4
    x, y = math.cos(math.pi * head / 4), math.sin(math.pi * head / 4)
    return (x, y)[at % 2] / max(abs(x), abs(y)) * (point + 1)


SPECTRUM = np.fft.fft(np.eye(32) * np.hanning(33)[:32], axis=1).T[:17].real

EXACT: dict[int, NDArray[np.float64]] = {
    1: np.zeros((3, 4)), 2: np.ones((3, 4)), 3: np.full((3, 4), 0.5), 9: np.eye(4, 6), 10: np.eye(4, 6) / 2,
    19: sylvester(64)[:40, :24] / 2**2.5,
    20: each(8, 64)(lambda i, j: 0.1 * math.sin(2 * math.pi * (i + 1) * j / 64 + i)),
    24: SPECTRUM, 26: np.array([1.0, 0, 0, 0, 1, 0]), 30: np.arange(6.0).reshape(2, 3),
    25: each(9, 6)(lambda p, k: (math.cos if k % 2 else math.sin)(p / 10000 ** (k // 2 / 3))),
    27: each(3, 16)(lambda _, n: math.log(n + 1)), 62: np.full(80, math.log(0.01 / 0.99)),
    64: np.full(50, -math.log(50)),
    69: np.full(7, -2.0), 71: each(256)(ring), 72: np.full((1,), math.log(1 / 0.07)), 75: 2.0 ** -np.arange(1.0, 9),
    100: np.tile(np.eye(4), (3, 1)), 116: each(9, 9)(hippo),
}  # fmt: skip


def exact(number: int) -> Callable[[], None]:
    def check() -> None:
        np.testing.assert_allclose(tensor(number, *EXACT[number].shape), EXACT[number], rtol=1e-6, atol=1e-6)

    return check


# --- the others, each by what it is for ----------------------------------------------------------------------------

ORACLES: dict[int, Callable[[], None]] = {
    **{number: law(number) for number in LAWS},
    **{number: exact(number) for number in EXACT},
}


def oracle(*numbers: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a check, of several entries with their number."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        for number in numbers:
            assert number not in ORACLES
            ORACLES[number] = check if len(numbers) == 1 else lambda number=number: check(number)  # type: ignore[misc]
        return check

    return register


def gram(weight: Tensor) -> Tensor:
    rows = weight.detach().flatten(1)
    return rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows


def close(one: Tensor, other: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one.detach(), torch.as_tensor(other, dtype=one.dtype), atol=tolerance, rtol=tolerance)


@oracle(11)
def _() -> None:
    conv = start(11, nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False))
    images = torch.randn(2, 6, 5, 5)
    close(conv(images), images)


@oracle(12)
def _() -> None:
    weight = tensor(12, 1000, 200)
    assert ((weight == 0).sum(0) == 900).all()
    assert_std(weight[weight != 0], 0.01)


@oracle(13)
def _() -> None:
    close(gram(tensor(13, 20, 30)), 2.25 * torch.eye(20))


@oracle(14)
def _() -> None:
    for gate in tensor(14, 32, 8).chunk(4):
        close(gram(gate), torch.eye(8))


@oracle(15)
def _() -> None:
    kernel = tensor(15, 9, 6, 3, 3)
    close(kernel.flatten(2).transpose(0, 2).transpose(1, 2)[4].T @ kernel[:, :, 1, 1], torch.eye(6))
    assert kernel.square().sum() == pytest.approx(6)


@oracle(16, 18, 115)
def _(number: int) -> None:
    for rows, columns in ((40, 10), (10, 40)):
        values = torch.linalg.svdvals(tensor(number, rows, columns))
        least = 1.0 if number == 16 else 0.0
        close(values, torch.full((10,), max(least, math.sqrt(rows / columns))))


@oracle(22)
def _() -> None:
    layer = start(22, nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=False))
    images = torch.randn(1, 2, 9, 9)
    larger = F.interpolate(images, scale_factor=2.0, mode="bilinear")
    close(layer(images)[..., 2:-2, 2:-2], larger[..., 2:-2, 2:-2])


@oracle(23)
def _() -> None:
    layer = start(23, nn.Conv2d(32, 128, 3, bias=False))
    images = torch.randn(1, 32, 7, 7)
    larger = F.pixel_shuffle(layer(images), 2)
    close(larger, F.interpolate(larger[..., ::2, ::2], scale_factor=2.0))
    assert_std(layer.weight[::4], math.sqrt(2 / 288))


@oracle(29)
def _() -> None:
    weight = tensor(29, 400, 400, dtype=torch.complex64)
    for part in (weight.real, weight.imag):
        assert_distribution(part, normal(0.1 / math.sqrt(2)).cdf)

    disc = torch.full((400, 400), torch.nan, dtype=torch.complex64)
    for init, cdf in (
        ({"type": "Uniform", "a": -0.3, "b": 0.3}, lambda square: square / 0.09),
        (
            {"type": "TruncNormal", "std": 0.1, "a": -0.2, "b": 0.2},
            lambda square: (1 - np.exp(-square / 0.01)) / (1 - np.exp(-4)),
        ),
    ):
        alone = nn.ParameterDict({"w": nn.Parameter(disc.clone())})
        torchinit.initialize(alone, {"rules": [{**init, "name": "**"}]}, seed=29)
        assert_distribution(alone["w"].detach().abs().double().square(), cdf)


@oracle(37)
def _() -> None:
    layer = start(37, nn.Linear(300, 200000))
    assert_distribution(layer.bias, uniform(300**-0.5).cdf)
    assert_distribution(layer.weight[:200], uniform(300**-0.5).cdf)


@oracle(40)
def _() -> None:
    weight = tensor(40, 50, 8)
    close(weight.norm(dim=1), torch.full((50,), 0.7 * 50 ** (1 / 8)))
    assert_mean(weight, 0.0, float(weight.std()))


@oracle(45)
def _() -> None:
    """Behind a rectifier and dropout, the variance of outputs is that of the inputs before."""
    layer = start(45, nn.Linear(2000, 500, bias=False))
    hidden = F.dropout(torch.randn(400, 2000, generator=torch.Generator().manual_seed(0)).relu(), 0.25)
    assert float(layer(hidden).detach().var()) == pytest.approx(1.0, rel=0.05)


@oracle(46)
def _() -> None:
    layer = start(46, nn.Sequential(OrderedDict(fc=nn.Linear(600, 700))))[0]
    assert_distribution(layer.bias, normal(math.sqrt(0.05)).cdf)
    std = 600 * torchinit.plan(nn.Linear(600, 2), {"rules": [ENTRIES[46]["rules"][0]]})["weight"].fill.std ** 2  # type: ignore[attr-defined]
    assert_std(layer.weight, math.sqrt(std / 600))

    def squared(f: Callable[[float], float], length: float) -> float:
        return second_moment(lambda z: f(math.sqrt(length) * z))

    length = 0.5
    for _ in range(200):  # until it is what a layer keeps
        length = std * squared(math.tanh, length) + 0.05
    chi = std * squared(lambda z: 1 - math.tanh(z) ** 2, length)
    assert chi == pytest.approx(1.0, abs=1e-4)


@oracle(47)
def _() -> None:
    """Behind a concatenated rectifier it is linear: f(a + b) = f(a) + f(b)."""
    weight = tensor(47, 12, 8)

    def layer(x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], dim=-1) @ weight.T

    one, other = torch.randn(2, 5, 4)
    close(layer(one + other), layer(one) + layer(other))
    close(gram(weight[:6, :4]), torch.eye(4))


@oracle(50)
def _() -> None:
    """As timm's builder of EfficientNets has it: fan-out k k out / groups."""
    for groups in (1, 8, 64):
        conv = start(50, nn.Conv2d(64, 640, 3, groups=groups, bias=False))
        assert_std(conv.weight, math.sqrt(2 / (9 * 640 / groups)))


@oracle(51)
def _() -> None:
    assert_std(tensor(51, 30, 200, 6), 200**-0.5)


@oracle(52)
def _() -> None:
    assert_std(tensor(52, 4, 100, 200), math.sqrt(2 / 200))


@oracle(53, 105)
def _(number: int) -> None:
    weight = start(number, nn.Linear(100, 300, bias=False)).weight
    assert_std(weight, math.sqrt(2 / 200), kurtosis=3.0 if number == 53 else 1.8)


@oracle(54)
def _() -> None:
    assert_std(start(54, nn.ConvTranspose1d(50, 90, 5, bias=False)).weight, math.sqrt(2 / (50 * 5)))


@oracle(57)
def _() -> None:
    """A layer whose weight comes out of it keeps the variance."""
    generator = torch.Generator().manual_seed(0)
    made = start(57, nn.Linear(20, 512 * 40, bias=False))(torch.randn(50, 20, generator=generator)).detach()
    outputs = made.view(50, 40, 512) @ torch.randn(50, 512, 30, generator=generator)
    assert float(outputs.var()) == pytest.approx(1.0, rel=0.1)


@oracle(63)
def _() -> None:
    counts = torch.tensor([5.0, 3.0, 2.0])
    close(tensor(63, 3, counts=counts).softmax(0), [0.5, 0.3, 0.2])


@oracle(65)
def _() -> None:
    model = start(65, nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 4)}))
    assert model["head"](torch.randn(2, 3)).abs().max() == 0
    assert model["body"].weight.abs().max() > 0


class Residual(nn.Module):
    """A block of a residual network."""

    def __init__(self, width: int = 8, norms: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1: nn.Module = nn.BatchNorm2d(width) if norms else nn.Identity()
        self.bn2: nn.Module = nn.BatchNorm2d(width) if norms else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return out


@oracle(66)
def _() -> None:
    block, images = start(66, Residual()), torch.randn(2, 8, 5, 5)
    close(block(images), images)
    assert bool((block.bn1.weight == 1).all())


@oracle(67)
def _() -> None:
    """The sum of both biases opens the gate of forgetting, and no other."""
    lstm = start(67, nn.LSTM(3, 4))
    close(lstm.bias_ih_l0 + lstm.bias_hh_l0, np.repeat([0, 1, 0, 0], 4))


@oracle(68)
def _() -> None:
    bias = tensor(68, 4 * 5000).view(4, 5000)
    assert torch.equal(bias[0], -bias[1])
    assert bias[2:].abs().max() == 0
    assert_distribution(bias[1].double().exp(), stats.uniform(1, 782).cdf)


@oracle(70)
def _() -> None:
    lstm = start(70, nn.LSTM(90, 50))
    assert_distribution(lstm.weight_ih_l0, uniform(math.sqrt(6 / 290)).cdf)
    close(gram(lstm.weight_hh_l0), torch.eye(50))
    close(lstm.bias_ih_l0 + lstm.bias_hh_l0, np.repeat([0, 1, 0, 0], 50))


class Centered(nn.Module):
    """A norm that multiplies by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


@oracle(76)
def _() -> None:
    model = nn.ModuleDict({"a": nn.LayerNorm(6), "b": Centered(), "c": nn.PReLU()})
    for module in (start(76, model)["a"], model["b"]):
        assert float(module(torch.randn(9, 6)).detach().square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert model["c"](torch.tensor(-1.0)) == -0.25


@oracle(77)
def _() -> None:
    table = start(77, nn.Embedding(100, 50, padding_idx=3))
    assert table(torch.tensor(3)).abs().max() == 0
    assert_std(table.weight[4:], 0.02)


@oracle(78)
def _() -> None:
    block: Any = nn.ModuleDict({"attn": halves(q_proj=(50, 100)), "mlp": nn.ModuleDict({"fc1": nn.Linear(50, 100)})})
    model = start(78, nn.ModuleDict({"wte": nn.Embedding(100, 50), "block": block, "norm": nn.LayerNorm(50)}))
    for layer in (model["wte"], block["attn"]["q_proj"], block["mlp"]["fc1"]):
        assert_distribution(layer.weight, normal(0.02).cdf)
    assert block["mlp"]["fc1"].bias.abs().max() == 0
    assert bool((model["norm"].weight == 1).all())


def halves(**sizes: tuple[int, int]) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})


@oracle(79)
def _() -> None:
    parts = {"attn": {"c_attn": (40, 120), "c_proj": (40, 40)}, "mlp": {"c_fc": (40, 160), "c_proj": (160, 40)}}
    model = stack(lambda: nn.ModuleDict({name: halves(**sizes) for name, sizes in parts.items()}))
    start(79, model)
    for block in model["layers"]:
        assert_std(block["attn"]["c_attn"].weight, 0.02)
        assert_std(block["attn"]["c_proj"].weight, 0.02 / 4)
        assert_std(block["mlp"]["c_fc"].weight, 0.02)
        assert_std(block["mlp"]["c_proj"].weight, 0.02 / 4)


@oracle(80, 82, 109)
def _(number: int) -> None:
    model = start(number, stack(lambda: halves(fc=(100, 64))))
    for index, layer in enumerate(block["fc"] for block in model["layers"]):
        std = {80: 0.02 / math.sqrt(2 * (index + 1)), 82: 2 / 8 / 8, 109: math.sqrt(2 / 100 / 8)}[number]
        assert_std(layer.weight, std)


@oracle(85)
def _() -> None:
    """As transformers starts T5: d_model 32, d_kv 8, 64 heads, d_ff 512."""
    parts = {"q": (32, 512, 1 / 16), "k": (32, 512, 32**-0.5), "o": (512, 32, 512**-0.5), "wi": (32, 512, 32**-0.5),
             "wo": (512, 32, 512**-0.5)}  # fmt: skip
    block: Any = halves(**{name: (columns, rows) for name, (columns, rows, _) in parts.items()})
    block["relative_attention_bias"], block["layer_norm"] = nn.Embedding(2000, 8), nn.LayerNorm(32, bias=False)
    start(85, nn.ModuleDict({"block": block, "shared": nn.Embedding(90, 32)}))
    for name, (_, _, std) in parts.items():
        assert_std(block[name].weight, std)
    assert_std(block["relative_attention_bias"].weight, 32**-0.5)


@oracle(86)
def _() -> None:
    """Every block begins as the identity; what comes in of the first convolution is He's by 1 / √L."""
    model = start(86, stack(lambda: Residual(24, norms=False), depth=9, fc=nn.Linear(24, 3)))
    images = torch.randn(2, 24, 5, 5)
    close(nn.Sequential(*model["layers"])(images), images)
    assert_std(torch.cat([block.conv1.weight for block in model["layers"]]), math.sqrt(2 / 216) / 3)
    assert model["fc"](torch.randn(24)).abs().max() == 0


@oracle(87)
def _() -> None:
    layers = stack(lambda: halves(linear1=(60, 90), linear2=(90, 60), out_proj=(60, 60), q=(60, 60)), depth=16)[
        "layers"
    ]
    start(87, nn.ModuleDict({"layers": layers}))
    for name, total in (("linear1", 150), ("linear2", 150), ("out_proj", 120), ("q", 120)):
        factor = 1.0 if name == "q" else 0.67 / 2
        values = torch.stack([block[name].weight for block in layers])
        assert_distribution(values, uniform(factor * math.sqrt(6 / total)).cdf)


@oracle(89, 90)
def _(number: int) -> None:
    name = {89: "skip_gain", 90: "resweight"}[number]
    model = start(number, stack(lambda: holding(**{name: ()})))
    assert all(getattr(block, name) == 0 for block in model["layers"])


@oracle(91)
def _() -> None:
    model = start(91, stack(lambda: holding(gamma=(4,))))
    assert all(bool((block.gamma == np.float32(1e-5)).all()) for block in model["layers"])


@oracle(92, 93)
def _(number: int) -> None:
    """Torchscale's factors for 8 layers of an encoder: (8 L)^(-1/4), √log(2 L)."""
    names = ("q_proj", "v_proj", "out_proj", "fc1", "fc2")
    model = start(number, stack(lambda: halves(**dict.fromkeys(names, (50, 50)))))
    for name in names:
        factor = 1.0 if name == "q_proj" else {92: 0.35355339, 93: 1.66510922}[number]
        assert_std(torch.stack([block[name].weight for block in model["layers"]]), factor * math.sqrt(2 / 100))


@oracle(97)
def _() -> None:
    model = start(97, halves(q_proj=(8, 8), v_proj=(8, 8), out_proj=(8, 8)))
    tokens = torch.randn(3, 8)
    close(model["out_proj"](model["v_proj"](tokens)), tokens)


@oracle(101, 177)
def _(number: int) -> None:
    """The block, or the adapter, adds nothing."""
    name = {101: "adaLN_modulation", 177: "adapter_up"}[number]
    way_out = nn.Sequential(nn.SiLU(), nn.Linear(4, 12)) if number == 101 else nn.Linear(4, 12)
    model = start(number, nn.ModuleDict({"block": nn.ModuleDict({name: way_out, "mlp": nn.Linear(4, 4)})}))
    assert way_out(torch.randn(5, 4)).abs().max() == 0
    assert model["block"]["mlp"].weight.abs().max() > 0


@oracle(102)
def _() -> None:
    blocks = stack(lambda: halves(c_q=(64, 64), c_fc=(64, 256), c_proj=(256, 64)), depth=4)["layers"]
    model = nn.ModuleDict({"wte": nn.Embedding(90, 64), "h": blocks, "lm_head": nn.Linear(64, 90, bias=False)})
    start(102, model)
    for block in blocks:
        assert block["c_proj"].weight.abs().max() == 0
        for name in ("c_q", "c_fc"):
            assert_distribution(block[name].weight, uniform(math.sqrt(3) / 8).cdf)
    head: Any = model["lm_head"]
    assert_std(head.weight, 0.001)
    assert_std(model["wte"].get_parameter("weight"), 1.0)


@oracle(103)
def _() -> None:
    close(tensor(103, 40, 30).norm(dim=1), torch.ones(40))


@oracle(104)
def _() -> None:
    mlp = nn.ModuleDict({"fc1": nn.Linear(48, 192), "fc2": nn.Linear(192, 48)})
    model: Any = nn.ModuleDict(
        {"patch": nn.Conv2d(3, 48, 8), "mlp": nn.ModuleDict({"mlp": mlp}), "head": nn.Linear(48, 10)}
    )
    start(104, model)
    assert_distribution(mlp["fc1"].get_parameter("weight"), uniform(math.sqrt(6 / 240)).cdf)
    assert_std(mlp["fc1"].get_parameter("bias"), 1e-6)
    assert_distribution(model["patch"].weight, stats.truncnorm(-2, 2, scale=192**-0.5 / CUT).cdf)
    close(model["head"](torch.randn(48)).softmax(0), torch.full((10,), 0.1))
    assert float(model["head"].bias.detach().sigmoid().mean()) == pytest.approx(1 / 11)  # of ten, one in eleven odds


@oracle(110)
def _() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time_decay, self.time_mix_key = (nn.Parameter(torch.empty(n)) for n in (9, 7))
            self.key = nn.Linear(7, 21, bias=False)

    model = start(110, stack(Block, depth=4))
    for i, block in enumerate(model["layers"]):
        close(gram(block.key.weight), 3 * torch.eye(7))
        close(block.time_decay, [-5 + 8 * (j / 8) ** (0.7 + 1.3 * i / 3) for j in range(9)])
        close(block.time_mix_key, [(j / 7) ** (1 - i / 4) for j in range(7)])


@oracle(111)
def _() -> None:
    """What comes out stays as large at any width, and what the head gives out less so."""
    for width in (64, 256, 1024):
        model: Any = nn.ModuleDict(
            {"fc": nn.Linear(width, 500, bias=False), "lm_head": nn.Linear(width, 500, bias=False)}
        )
        start(111, model)
        inputs = torch.randn(500, width, generator=torch.Generator().manual_seed(0))
        assert float(model["fc"](inputs).detach().std()) == pytest.approx(0.02 * 16, rel=0.04)
        assert float(model["lm_head"](inputs).detach().std()) == pytest.approx(
            0.02 * 16 * math.sqrt(256 / width), rel=0.04
        )


@oracle(117)
def _() -> None:
    layer: Any = start(117, holding(log_A_real=(3, 8), A_imag=(3, 8)))
    values = torch.complex(-layer.log_A_real.exp(), layer.A_imag).detach()
    for row in values.tolist():
        assert row == pytest.approx([-0.5 + 1j * math.pi * n for n in range(8)])


@oracle(118)
def _() -> None:
    layer: Any = start(118, nn.ModuleDict({"mixer": holding(A_log=(5, 16), D=(5,))}))["mixer"]
    close(-layer.A_log.exp(), -np.tile(np.arange(1.0, 17), (5, 1)))
    assert bool((layer.D == 1).all())


@oracle(119)
def _() -> None:
    layer: Any = start(119, nn.ModuleDict({"mixer": nn.ModuleDict({"dt_proj": nn.Linear(16, 3000)})}))["mixer"][
        "dt_proj"
    ]
    assert_distribution(layer.weight, uniform(0.25).cdf)
    assert_distribution(F.softplus(layer.bias.double()), stats.loguniform(0.001, 0.1).cdf)


@oracle(120)
def _() -> None:
    assert_distribution(tensor(120, 5000).double().exp(), stats.uniform(1, 15).cdf)


@oracle(121)
def _() -> None:
    """The squares of radii are uniform, and so are the angles."""
    layer: Any = start(121, nn.ModuleDict({"lru": holding(nu_log=(5000,), theta_log=(5000,))}))["lru"]
    nu, theta = layer.nu_log.double(), layer.theta_log.double()
    assert_distribution((-nu.exp()).exp() ** 2, stats.uniform(0.81, 0.999**2 - 0.81).cdf)
    assert_distribution(theta.exp(), stats.uniform(0, 2 * math.pi).cdf)


@oracle(168, 169)
def _(number: int) -> None:
    layer = nn.ModuleDict({"lora_A": halves(default=(900, 150)), "lora_B": halves(default=(150, 900))})
    start(number, nn.ModuleDict({"q_proj": layer}))
    a, b = (layer[name].get_parameter("default.weight") for name in ("lora_A", "lora_B"))
    assert b.abs().max() == 0
    assert_distribution(a, (uniform(1 / 30) if number == 168 else normal(1 / 150)).cdf)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def loaded(number: int, file: dict[str, Tensor], model: Any, **data: Any) -> Any:
    torch.save(file, "old.pth")
    return start(number, model, **data)


@oracle(141)
def _() -> None:
    file = {"backbone.conv1.weight": torch.randn(4, 3, 1, 1), "head.weight": torch.randn(2, 4)}
    model = loaded(141, file, nn.ModuleDict({"stem": nn.Conv2d(3, 4, 1, bias=False)}))
    assert torch.equal(model["stem"].weight, file["backbone.conv1.weight"])


@oracle(142)
def _() -> None:
    file = {"fc.weight": torch.randn(3, 5), "fc.bias": torch.randn(5)}
    model, x = loaded(142, file, nn.ModuleDict({"fc": nn.Linear(3, 5)})), torch.randn(2, 3)
    close(model["fc"](x), x @ file["fc.weight"] + file["fc.bias"])


@oracle(143)
def _() -> None:
    old = nn.ModuleDict({"head": nn.Linear(3, 5)})
    model, x = loaded(143, old.state_dict(), nn.ModuleDict({"head": nn.Linear(3, 2)})), torch.randn(4, 3)
    close(model["head"](x), old["head"](x)[:, [3, 1]].detach())


@oracle(144)
def _() -> None:
    old, grey = nn.Conv2d(3, 4, 3), torch.randn(1, 1, 5, 5)
    close(loaded(144, old.state_dict(), nn.Conv2d(1, 4, 3))(grey), old(grey.expand(-1, 3, -1, -1)).detach())


@oracle(145)
def _() -> None:
    old, image = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 6, 6)
    video = image[:, :, None].expand(-1, -1, 3, -1, -1)
    close(loaded(145, old.state_dict(), nn.Conv3d(3, 4, 3))(video)[:, :, 0], old(image).detach())


@oracle(146)
def _() -> None:
    old = torch.randn(1, 17, 6)
    new = loaded(146, {"pos_embed": old}, holding(pos_embed=(1, 26, 6))).pos_embed
    grid = old[:, 1:].view(1, 4, 4, 6).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, (5, 5), mode="bicubic", antialias=True, align_corners=False)
    close(new, torch.cat([old[:, :1], larger.flatten(2).mT], 1))


@oracle(147)
def _() -> None:
    old = torch.randn(9, 2)
    new = loaded(147, {"table": old}, holding(table=(25, 2))).table
    larger = F.interpolate(old.T.view(1, 2, 3, 3), (5, 5), mode="bicubic", align_corners=False)
    close(new, larger.flatten(2)[0].T)


@oracle(148)
def _() -> None:
    """Patches that were enlarged give what they gave before."""
    old, patch = nn.Conv2d(3, 5, 4), torch.randn(1, 3, 4, 4)
    larger = F.interpolate(patch, (6, 6), mode="bicubic", antialias=True, align_corners=False)
    close(loaded(148, old.state_dict(), nn.Conv2d(3, 5, 6))(larger), old(patch).detach(), 1e-3)


@oracle(149)
def _() -> None:
    old = torch.randn(40, 6)
    new = loaded(149, {"weight": old}, nn.Embedding(50, 6)).weight
    assert torch.equal(new[:40], old)
    close(new[40:], old.mean(0).expand(10, 6), 0.1)


@oracle(151)
def _() -> None:
    old, x = nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"}), torch.randn(3, 4)
    new = loaded(151, old.state_dict(), nn.ModuleDict({"qkv": nn.Linear(4, 12)}))
    close(new["qkv"](x), torch.cat([old[name](x) for name in "qkv"], -1).detach())


@oracle(152)
def _() -> None:
    old = torch.randn(8, 5)
    close(loaded(152, {"weight": old}, nn.Linear(5, 4, bias=False)).weight, old.view(2, 2, 2, 5).mean(1).reshape(4, 5))


@oracle(153)
def _() -> None:
    mlp = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))
    experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(4))
    loaded(153, {f"mlp.{key}": value for key, value in mlp.state_dict().items()}, nn.ModuleDict({"experts": experts}))
    tokens = torch.randn(5, 3)
    for expert in experts:
        close(expert(tokens), mlp(tokens).detach())


@oracle(170, 171, 172)
def _(number: int) -> None:
    """B A is nothing, or the best of its rank, or the projection on the first columns; with the rest it is W."""
    weight = torch.randn(300, 200)
    layer: Any = nn.ModuleDict({"base_layer": nn.Linear(200, 300, bias=False)})
    layer["lora_A"], layer["lora_B"] = halves(default=(200, 150)), halves(default=(150, 300))
    layer = loaded(number, {"q.base_layer.weight": weight}, nn.ModuleDict({"q": layer}))["q"]
    a, b = (layer[name].get_parameter("default.weight").detach() for name in ("lora_A", "lora_B"))
    close(layer["base_layer"].weight + b @ a, weight, 1e-3)
    if number == 170:
        close(b @ a, torch.zeros(300, 200))
        assert a.abs().min() > 0
    else:
        factors = linalg.svd if number == 171 else linalg.qr
        u = torch.from_numpy(factors(weight.double().numpy())[0][:, :150]).float()
        close(b @ a, u @ u.T @ weight, 1e-3)


@oracle(154)
def _() -> None:
    old, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    wider = loaded(154, old.state_dict(), nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)))
    close(wider(x), old(x).detach())


@oracle(156, 163)
def _(number: int) -> None:
    def blocks(count: int) -> Any:
        return nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(3, 3) for _ in range(count))})

    small = blocks(2 if number == 156 else 4)
    old = [block.weight for block in small["blocks"]]
    new = loaded(number, small.state_dict(), blocks(4 if number == 156 else 2))
    for block, source in zip(new["blocks"], old * 2 if number == 156 else old[::2], strict=True):
        assert torch.equal(block.weight, source)


@oracle(159)
def _() -> None:
    """What was doubled gives out twice what it gave out."""
    old, x = torch.randn(3, 4), torch.randn(5, 4)
    new = loaded(159, {"weight": old}, nn.Linear(8, 6, bias=False))
    close(new(x.repeat(1, 2)), (x @ old.T).repeat(1, 2))


@oracle(162)
def _() -> None:
    big = torch.randn(6, 8)
    small = loaded(162, {"weight": big}, nn.Linear(4, 3, bias=False))
    assert torch.equal(small.weight, big[[0, 2, 4]][:, [0, 2, 4, 6]])


@oracle(165)
def _() -> None:
    one, other, x = nn.Linear(3, 4), nn.Linear(3, 4), torch.randn(2, 3)
    soup = start(165, nn.Linear(3, 4), one=one.state_dict(), other=other.state_dict())
    close(soup(x), (one(x) + other(x)).detach() / 2)


@oracle(166)
def _() -> None:
    online, x = nn.Linear(3, 4), torch.randn(2, 3)
    assert torch.equal(start(166, nn.Linear(3, 4), online=online)(x), online(x))


@oracle(167)
def _() -> None:
    old = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, bias=False), bn=nn.BatchNorm2d(4)))
    old(torch.randn(8, 3, 5, 5)).sum().backward()
    new, x = loaded(167, old.state_dict(), nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)})), torch.randn(2, 3, 5, 5)
    close(new["conv"](x), old.eval()(x).detach(), 1e-4)


@pytest.mark.parametrize("number", RUN)
def test_what_it_says(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(number)
        ORACLES[number]()


TORCH: dict[int, Callable[[Tensor], object]] = {
    4: lambda w: nn.init.uniform_(w, -0.1, 0.3),
    5: lambda w: nn.init.normal_(w, 0.5, 0.02),
    6: lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.03, b=0.05),
    9: nn.init.eye_,
    12: lambda w: nn.init.sparse_(w, 0.9),
    13: lambda w: nn.init.orthogonal_(w, 1.5),
    32: nn.init.xavier_uniform_,
    33: lambda w: nn.init.kaiming_normal_(w, a=0.2),
    36: lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    37: lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
    41: lambda w: nn.init.kaiming_normal_(w, nonlinearity="tanh"),
}


@pytest.mark.parametrize("number", TORCH)
def test_without_a_seed_the_bits_are_those_of_torch(number: int) -> None:
    ours, theirs = nn.Linear(30, 20, bias=False), nn.Linear(30, 20, bias=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torchinit.initialize(ours, {"rules": [{**ENTRIES[number]["rules"][0], "name": "**"}]})
        torch.manual_seed(1)
        TORCH[number](theirs.weight)
    assert torch.equal(ours.weight, theirs.weight)
