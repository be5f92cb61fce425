"""The table: against what is published, each form against the others, and the move of a multiplier in training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchinit import ConfigError
from torchinit.transfer import OPTIMIZERS, PARAMETRIZATIONS, Factors
from torchinit.transfer.table import Growth, Powers, Settings, factors_of

# std, mult, Adam lr and SGD lr of input, hidden and output, as the papers print them: Yang et al. 2022 (tables 8, 3 and
# 9), and the mean-field form.
PUBLISHED = {
    "table8": ("1 1 1 r_o", "r_i^-1/2 1 r_i^-1 r_o/r_i", "1 r_i^-1 1 r_i"),
    "folded": ("1 1 1 r_o", "r_i^-1/2 1 r_i^-1 r_o/r_i", "r_i^-1 1 r_i^-1 r_i^-1"),
    "table9": ("r_o^-1/2 r_o^1/2 r_o^-1/2 1", "r_i^-1/2 1 r_i^-1 r_o/r_i", "r_i^-1/2 r_i^-1/2 r_i^-1/2 1"),
    "mean_field": ("1 1 1 r_o", "1 r_i^-1/2 r_i^-1/2 r_o", "1 r_i^-1 1 r_i"),
}


@pytest.mark.parametrize("place", PUBLISHED)
def test_each_published_form_is_the_table_with_multipliers_elsewhere(place: str) -> None:
    rows = PARAMETRIZATIONS["mup"].placed(place)
    assert tuple(" ".join(map(str, rows[kind])) for kind in ("input", "hidden", "output")) == PUBLISHED[place]


def train(factors: Factors, optimizer: str, steps: int = 6) -> Tensor:
    """The outputs of a net whose hidden weight has a multiplier, trained in float64."""
    torch.manual_seed(0)
    first, last = nn.Linear(3, 5, dtype=torch.float64), nn.Linear(5, 2, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(5, 5, dtype=torch.float64) * factors.std)
    x = torch.randn(7, 3, dtype=torch.float64)
    rest = [*first.parameters(), *last.parameters()]
    made: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    eps = {} if optimizer == "sgd" else {"eps": 1e-3 * factors.eps}
    own = {"params": [weight], "lr": 0.05 * factors.lr, "weight_decay": 0.1 * factors.wd, **eps}
    others = {"params": rest, "lr": 0.05, "weight_decay": 0.1, **({"eps": 1e-3} if eps else {})}
    optim = made([own, others], **({"momentum": 0.9} if optimizer == "sgd" else {}))

    def out() -> Tensor:
        result: Tensor = last(torch.tanh(factors.mult * (torch.tanh(first(x)) @ weight.T)))
        return result

    for _ in range(steps):
        optim.zero_grad()
        out().square().mean().backward()
        optim.step()
    return out()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@given(mult=st.sampled_from([0.25, 0.425, 3.0]))
def test_a_moved_multiplier_is_the_same_training(optimizer: str, mult: float) -> None:
    before = Factors(mult=mult)
    after = before.moved(1.0, OPTIMIZERS[optimizer])
    torch.testing.assert_close(train(before, optimizer), train(after, optimizer), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(train(before, optimizer), train(after._replace(lr=1.0, eps=1.0), optimizer), rtol=1e-6)


# Dey et al. 2025, table 1: m_L is the growth of depth, α the exponent. Branch multiplier, AdamW's rate, eps, in blocks.
@pytest.mark.parametrize(("name", "alpha"), [("completep", 1.0), ("completep", 0.75), ("depth_mup", 0.5)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_depth(name: str, alpha: float, optimizer: str) -> None:
    width, depth = 4.0, 8.0
    settings = Settings.of(name, optimizer=optimizer, alpha=alpha if name == "completep" else 1.0)
    growth = Growth(r_i=width, r_o=width, head=width, depth=depth)
    row = factors_of("hidden", growth, settings, is_branch=True)
    assert row.mult == pytest.approx(depth**-alpha)
    assert row.std == pytest.approx(width**-0.5)
    if optimizer == "adamw":
        assert row.lr == pytest.approx(depth ** (alpha - 1) / width)
        assert row.eps == pytest.approx(depth**-alpha / width)
        assert row.lr * row.wd == pytest.approx(1)
    else:
        assert row.lr == pytest.approx(depth ** (2 * alpha - 1))
    gain = factors_of("vector", Growth(r_o=width, head=width, depth=depth), settings)
    assert gain.lr == pytest.approx(depth ** (alpha - 1) if optimizer == "adamw" else width * depth ** (2 * alpha - 1))


# The public repository of Megatron-LM, pull requests 3058 and 3715: hidden std x m^-1/2 and lr x 1/m, the output as
# embedding with logits x 1/m; SGD: what is like a vector, the output included, x m; Muon of unit RMS norm x 1.
@pytest.mark.parametrize("m", [0.5, 2.0, 4.0])
def test_megatron(m: float) -> None:
    both, grow_in, grow_out = Growth(m, m, m), Growth(r_i=m, head=m), Growth(r_o=m, head=m)
    adam, sgd, muon = (Settings.of("mup", optimizer=name) for name in ("adamw", "sgd", "muon:unit_rms_norm"))
    assert factors_of("hidden", both, adam)[:3] == pytest.approx((m**-0.5, 1, 1 / m))
    assert factors_of("output", grow_in, adam)[:3] == pytest.approx((1, 1 / m, 1))
    assert factors_of("input", grow_out, adam)[:3] == pytest.approx((1, 1, 1))
    assert factors_of("input", grow_out, sgd).lr == factors_of("vector", grow_out, sgd).lr == m
    assert factors_of("output", grow_in, sgd).lr == m and factors_of("hidden", both, sgd).lr == 1
    assert factors_of("hidden", both._replace(fans=(64 * m, 256 * m), base_fans=(64, 256)), muon).lr == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("muon", 1.0), ("muon:match_rms_adamw", 0.5), ("muon:unit_rms_norm", 1.0), ("muon:none", 1.0)],
)
@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_muon_under_even_growth(name: str, rate: float, shape: tuple[int, int]) -> None:
    fans = tuple(map(float, shape))
    growth = Growth(4, 4, 4, fans=(4 * fans[0], 4 * fans[1]), base_fans=(fans[0], fans[1]))
    row = factors_of("hidden", growth, Settings.of("mup", optimizer=name))
    assert row.lr == pytest.approx(rate)
    assert factors_of("hidden", growth, Settings.of("mup", optimizer=name, wd="sqrt")).wd == pytest.approx(rate**-0.5)


@given(i=st.sampled_from([-1.5, -1, -0.5, 0, 0.5, 1]), o=st.sampled_from([-1, -0.5, 0, 0.5, 1]))
def test_powers_say_what_they_are(i: float, o: float) -> None:
    text = str(Powers(i, o)).replace("r_i", "(4.0)").replace("r_o", "(9.0)").replace("^", "**").replace(" ", "*")
    for part, number in (("-3/2", "(-1.5)"), ("3/2", "(1.5)"), ("-1/2", "(-.5)"), ("1/2", "(.5)"), ("**-1", "**(-1)")):
        text = text.replace(part, number)
    assert math.isclose(eval(text), Powers(i, o).at(4.0, 9.0))  # numbers and powers


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"parametrization": "mupp"}, r"parametrization is one of .*, but got 'mupp'; did you mean 'mup'\?"),
        ({"form": "table3"}, "form is one of table8, folded, but got 'table3'"),
        ({"wd": "root"}, "wd is one of product, sqrt, constant, but got 'root'"),
        ({"optimizer": torch.optim.Rprop}, "no table of a parametrization is published for the optimizer 'rprop'"),
        ({"optimizer": "adafactor"}, "no table .* 'adafactor'"),
        ({"alpha": 0.5}, "alpha is completep's, but got 0.5 for mup"),
    ],
)
def test_settings_that_there_are_not(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Settings.of(**options)
