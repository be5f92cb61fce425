"""Models of forms that set no bound: what is told of them is what is wrong with them, and the way out mends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.html import check
from tests.probing.nets import Wired, mlp
from torchinit import ProbeError, initialize, lint, probe
from torchinit.probing.result import page_of


def weight_normed() -> nn.Module:
    torch.manual_seed(0)
    layers = [(parametrizations.weight_norm(nn.Conv1d(16, 16, 3, padding=1)), nn.ReLU()) for _ in range(8)]
    net = nn.Sequential(*[each for pair in layers for each in pair])
    return Wired(lambda self, x: self.head(self.net(x).mean(2)), net=net, head=nn.Linear(16, 4))


def test_layers_whose_weight_is_computed_are_the_chain_and_not_what_computes_them() -> None:
    """As torch starts them they lose 0.4 a layer; the entry that is told mends it."""
    x = torch.randn(16, 16, 64)
    result = probe(weight_normed(), x)
    (chain,) = result.measurement.chains
    assert [each.name for each in chain.outputs] == [f"net.{at}" for at in range(0, 16, 2)]
    assert {each.kind for each in chain.outputs} == {"Conv1d"}
    finding = result.findings[0]
    assert (finding.code, finding.site) == ("TI801", "net.0")
    assert '{type = "Kaiming", mode = "fan_in", layer = "Conv1d"}' in finding.remedy
    assert probe(weight_normed(), x, recipe=[{"type": "Kaiming", "mode": "fan_in", "layer": "Conv1d"}]).healthy


class Doubled(nn.Module):
    """A parametrization that takes any size, and one (``fixed``) that takes none."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        return 96 * x / x.norm() if self.fixed else 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x if self.fixed else x / 2


WRAPS: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]] = {
    "spectral norm": (parametrizations.spectral_norm, True),
    "older spectral norm": (nn.utils.spectral_norm, True),
    "orthogonal": (parametrizations.orthogonal, True),
    "householder": (lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"), True),
    "a stranger's": (lambda layer: parametrize.register_parametrization(layer, "weight", Doubled(True)), True),
    "weight norm": (parametrizations.weight_norm, False),
    "older weight norm": (nn.utils.weight_norm, False),
    "twice": (lambda layer: parametrize.register_parametrization(layer, "weight", Doubled(False)), False),
}


def wrapped(wrap: Callable[[nn.Module], nn.Module], times: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [wrap(nn.Linear(64, 64)) for _ in range(30)]
    for layer in layers:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    net = nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())), nn.Linear(64, 4))
    for layer in layers:
        layer.register_forward_hook(lambda _module, _inputs, output: output * times)
    return net


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", WRAPS)
def test_the_way_out_fits_what_a_parametrization_leaves_to_an_initialization(name: str) -> None:
    wrap, is_fixed = WRAPS[name]
    x, entry = torch.randn(64, 64), {"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}
    result = probe(wrapped(wrap), x)
    remedy = result.findings[0].remedy
    assert result.findings[0].code in ("TI801", "TI802")
    assert ("no initialization can" in remedy, "Kaiming" in remedy) == (is_fixed, not is_fixed)
    (lint_remedy,) = {each.remedy for each in lint(wrapped(wrap), select=["TI407", "TI408"])}
    assert ("no initialization" in lint_remedy, "Kaiming" in lint_remedy) == (is_fixed, not is_fixed)
    if is_fixed:
        assert probe(wrapped(wrap, float(remedy.split()[-1])), x).healthy
    else:
        net = wrapped(wrap)
        initialize(net, [entry], seed=0)
        assert probe(net, x).healthy


def test_logits_whose_size_a_parametrization_decides() -> None:
    x = torch.randn(64, 64)
    for wrap, is_fixed in ((parametrizations.spectral_norm, True), (parametrizations.weight_norm, False)):
        torch.manual_seed(0)
        found = probe(nn.Sequential(wrap(nn.Linear(64, 4))), 100 * x).findings
        assert ["divide" in each.remedy for each in found if each.code == "TI810"] == [is_fixed]
        layers = {name: wrap(nn.Linear(64, 64)) for name in "qkv"}
        attention = Wired(lambda self, x: (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x), **layers)
        found = probe(attention, 3 * x.view(8, 8, 64)).findings
        assert ["divide" in each.remedy for each in found if each.code == "TI808"] == [is_fixed]
    loud = lint(wrapped(WRAPS["a stranger's"][0]), select=["TI404"])
    assert {each.remedy.partition(" ")[0] for each in loud} == {"no"}


def test_blocks_whose_size_a_parametrization_decides() -> None:
    def block(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), wrap(nn.Linear(64, 64)))
        return Wired(lambda self, x: x + 4 * self.layers(x), layers=layers)

    for wrap, is_fixed in ((parametrizations.spectral_norm, True), (parametrizations.weight_norm, False)):
        torch.manual_seed(0)
        net = nn.Sequential(*(block(wrap) for _ in range(24)))
        remedy = next(each.remedy for each in probe(net, torch.randn(64, 64)).findings if each.code == "TI802")
        assert ("multiply each branch" in remedy, "start it at zero" in remedy) == (is_fixed, not is_fixed)


def test_equal_units_that_no_gradient_reaches() -> None:
    """One number throughout; a norm makes zero of what is alike. Zero branches that wake are no equal units."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32, elementwise_affine=False), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        for each in net.parameters():
            each.fill_(0.02)
    found = probe(net, torch.randn(16, 16)).findings
    assert [each.site for each in found if each.code == "TI812"] == ["0.weight", "3.weight"]
    slept = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    for layer, fill in ((slept[0], 0.02), (slept[2], 0.0)):
        nn.init.constant_(layer.weight, fill)  # type: ignore[arg-type]
    nn.init.normal_(slept[0].bias)  # type: ignore[arg-type]
    measured = probe(slept, torch.randn(16, 16)).measurement.parameters
    assert [each.stays_zero for each in measured if each.equal_rows] == [False]


class Noised(nn.Module):
    """A net over images with an embedding of the time, whose numbers are large, added inside of it."""

    def __init__(self, std: float = 1.0) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32))
        self.down, self.middle, self.up = (nn.Conv2d(wide, 32, 3, padding=1) for wide in (3, 32, 32))
        self.norm, self.out = nn.GroupNorm(8, 32), nn.Conv2d(32, 3, 3, padding=1)
        with torch.no_grad():
            for name in ("2.weight", "4.weight"):
                self.time.get_parameter(name).mul_(std)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        beside = self.time(time.float()[:, None])[:, :, None, None]
        x = self.down(x)
        x = x + self.middle(torch.relu(self.norm(x + beside)))
        y: Tensor = self.out(torch.relu(self.up(x)))
        return y


BATCH = torch.randn(16, 3, 8, 8), torch.arange(16) * 60


def test_layers_beside_each_other_are_chains_of_their_own() -> None:
    """What the embedding makes of times up to 900 says nothing of the images' way, nor the other way round."""
    result = probe(Noised(), BATCH)
    names = [[each.name for each in chain.outputs] for chain in result.measurement.chains]
    assert names == [["time.0", "time.2", "time.4"], ["down", "middle", "up"]]
    assert not result.findings.errors


def test_one_that_is_bad_beside_a_good_one_is_found() -> None:
    found = probe(Noised(std=1e-3), BATCH).findings.errors
    assert found[0].code == "TI801"
    assert all(each.site.startswith("time.") for each in found)


def test_two_layers_of_an_encoder_and_a_decoder_are_its_blocks_not_what_is_inside() -> None:
    """Six attentions, which are in branches, and two layers each: of a class of which there are no three."""
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    result = probe(model, (torch.randn(16, 8, 32), torch.randn(16, 8, 32)))
    names = [[each.name for each in chain.outputs] for chain in result.measurement.chains]
    assert names == [[f"{side}.layers.{at}" for at in range(2)] for side in ("encoder", "decoder")]
    assert result.healthy


def test_units_are_equal_along_the_axis_of_the_outputs() -> None:
    """A transposed convolution has its outputs in the second dimension."""
    torch.manual_seed(0)
    layers = [each for _ in range(3) for each in (nn.ConvTranspose1d(8, 8, 3), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 14, 4))
    for at in (2, 4):
        nn.init.constant_(model.get_parameter(f"{at}.weight"), 0.1)
        nn.init.zeros_(model.get_parameter(f"{at}.bias"))
    found = probe(model, torch.randn(16, 8, 8)).findings
    assert (found[0].code, found[0].site) == ("TI812", "2.weight")


def test_random_labels_are_not_the_ids_that_were_made_of_the_same_seed() -> None:
    """A table that is its own head gives each id back: with the ids as labels it would seem to know all."""
    torch.manual_seed(0)
    table, head = nn.Embedding(500, 64), nn.Linear(64, 500, bias=False)
    nn.init.normal_(table.weight)
    head.weight = table.weight
    model = Wired(lambda self, x: self.head(self.table(x)), table=table, head=head)
    result = probe(model)
    assert "random labels" in result.measurement.objective.text
    assert result.measurement.objective.loss > 50  # an id's own logit is its norm, 64 or so, and that of a label 0


def test_the_last_output_of_a_reverse_direction_is_told_as_such() -> None:
    rnn, head = nn.LSTM(8, 16, batch_first=True, bidirectional=True), nn.Linear(32, 4)
    model = Wired(lambda self, x: self.head(self.rnn(x)[0][:, -1]), rnn=rnn, head=head)
    (found,) = probe(model, torch.randn(16, 10, 8)).findings.errors
    assert (found.code, found.site) == ("TI811", "rnn.weight_hh_l0_reverse")
    assert found.remedy.startswith("the last output of a reverse direction has read one step")


def test_a_batch_for_a_forward_that_takes_the_dict_itself() -> None:
    model = Wired(lambda self, batch: self.a(batch["pixels"]), a=nn.Linear(8, 3))
    batch = {"pixels": torch.randn(16, 8)}
    with pytest.raises(ProbeError, match=r"the batch has 'pixels'.*if it takes the whole dict: batch=\(batch,\)"):
        probe(model, batch)
    assert probe(model, (batch,)).healthy


def test_dropout_is_off_and_said() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.9), nn.Linear(64, 4))
    (note,) = probe(model).notes
    assert note == "1 dropout off, p = 0.9 at most: training makes what passes one up to 3.16 times as large"
    assert probe(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.0), nn.Linear(64, 4))).notes == ()


# --- where predictions end --------------------------------------------------------------------------------------------


def attending() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0, norm_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(32))


@pytest.mark.parametrize(
    ("make", "batch", "first"),
    [
        (lambda: Wired(lambda self, x: self.a(x.softmax(-1)), a=nn.Linear(8, 3)), torch.randn(16, 8), "a"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.AvgPool1d(2), nn.Linear(4, 3)), torch.randn(16, 8), "1"),
    ],
)
def test_it_is_said_from_where_on_nothing_is_promised(make: Callable[[], nn.Module], batch: Any, first: str) -> None:
    torch.manual_seed(0)
    result = probe(make(), batch)
    outputs = result.measurement.outputs
    unknown = [each.name for each in outputs if each.predicted is None]
    text = f"nothing is promised of {len(unknown)} of {len(outputs)} outputs, from {first} on"
    assert unknown[0] == first
    assert text in str(result)
    assert text in check(page_of(result).html()).text
    assert text in json.loads(result.to_json())["notes"][0]


def test_nothing_is_said_where_all_is_promised() -> None:
    assert probe(mlp(0, depth=4)).notes == ()
    assert probe(attending(), torch.randn(16, 8, 32)).notes == ()
