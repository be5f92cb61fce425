"""Coordinate checks: slopes against their law, starts that grow and stay flat, and what cannot be checked."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit import Normal, ProbeError, ReportError, coord_check
from torchinit.probing import CoordCheck, assert_flat
from torchinit.probing.slopes import fit

WIDTHS = (64, 256, 1024)
LR = 3e-3


def batch(samples: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 16, generator=generator), torch.randint(10, (samples,), generator=generator)


def started(width: int) -> nn.Sequential:
    """Three layers as the theory has them: variance 2 / fan-in, the readout at zero."""
    layers = [nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features) if layer.out_features == width else 0.0)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def by_hand(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """MuP for Adam, set by hand: matrices that read the width learn at lr / width."""
    model = started(width)
    rates = [64 / width if name in ("2.weight", "4.weight") else 1.0 for name, _ in model.named_parameters()]
    pairs = zip(model.parameters(), rates, strict=True)
    return model, torch.optim.Adam([{"params": [each], "lr": LR * rate} for each, rate in pairs])


class Blocks(nn.Module):
    """A pre-norm transformer whose heads and feed-forward layers grow with its width; logits at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(32, width)
        nn.init.normal_(self.table.weight, std=0.5)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 32, bias=False)
        nn.init.zeros_(self.head.weight)
        for name, each in self.blocks.named_parameters():
            if each.dim() > 1:
                nn.init.normal_(each, std=each.shape[1] ** -0.5)
            if "in_proj_weight" in name:
                nn.init.zeros_(each[:width])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.blocks(self.table(ids))))
        return logits


def transformer(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Blocks(width)
    is_hidden = {id(each) for name, each in model.named_parameters() if each.dim() > 1 and "table" not in name}
    groups = [{"params": [p], "lr": LR * (64 / width if id(p) in is_hidden else 1)} for p in model.parameters()]
    return model, torch.optim.Adam(groups)


def ids() -> torch.Tensor:
    return torch.randint(32, (8, 16), generator=torch.Generator().manual_seed(0))


@given(st.floats(-2, 2), st.floats(0.1, 10), st.integers(2, 5))
def test_the_slope_of_a_power_law_is_its_exponent(power: float, scale: float, number: int) -> None:
    sizes = [2**at for at in range(number)]
    line = fit(sizes, [[scale * size**power for size in sizes]])
    assert math.isclose(line.slope, power, abs_tol=1e-9)
    assert line.error < 1e-6


def test_the_error_is_that_of_the_mean_of_the_seeds() -> None:
    line = fit((1, 2), [(1.0, 2.0), (1.0, 4.0), (1.0, 8.0)])  # slopes 1, 2 and 3: sd 1
    assert line.slope == pytest.approx(2)
    assert line.error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(fit((1, 2), [(0.0, 1.0)]).slope)


def test_standard_rates_grow_and_those_of_mup_are_flat() -> None:
    standard = coord_check(started, widths=WIDTHS, batch=batch(), lr=LR)
    assert standard["2"].verdict == "grows" and standard["2"].change > 0.4
    assert standard["4"].verdict == "grows"
    assert not standard.flat
    mup = coord_check(by_hand, widths=WIDTHS, batch=batch())
    assert {each.verdict for each in mup} == {"flat"}
    assert_flat(mup, strict=True)


def test_the_first_step_of_standard_logits_grows_as_the_width() -> None:
    # From zero, each of n weights moves by lr in the same direction as the features that it meets: theory says 1.
    check = coord_check(started, widths=WIDTHS, batch=batch(), lr=1e-4, steps=1)
    assert check["4"].change == pytest.approx(1, abs=0.05)


def test_a_transformer_by_hand_is_flat_and_grows_without_its_rates() -> None:
    mup = coord_check(transformer, widths=(64, 256), batch=ids())
    assert mup.flat, mup
    standard = coord_check(Blocks, widths=(64, 256), batch=ids(), lr=LR)
    assert standard["blocks.layers.1"].verdict == "grows"


def test_an_embedding_that_learns_too_slowly_shows_in_the_change_and_not_in_the_activation() -> None:
    def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, optimizer = transformer(width)
        optimizer.param_groups[0]["lr"] *= (64 / width) ** 0.5
        return model, optimizer

    table = coord_check(make, widths=(64, 256), batch=ids())["table"]
    assert table.change == pytest.approx(-0.5, abs=0.05)
    assert abs(table.start) < 0.02
    with pytest.raises(ReportError, match=r"table \(Embedding\): its change falls, slope -0.(4|5)"):
        assert_flat(make, widths=(64, 256), batch=ids())
    followers = {"blocks.layers.0.norm1": -0.3}  # whose output changes as far as the table's does
    assert_flat(make, widths=(64, 256), batch=ids(), expected={"table": -0.5, **followers})


class Chain(nn.Module):
    """A residual stream of as many blocks as one wants, each at the same scale."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_over_depths_like_layers_are_one() -> None:
    check = coord_check(Chain, depths=(2, 8), batch=batch()[0], steps=2, seeds=1)
    assert [each.name for each in check][:3] == ["blocks.*.0", "blocks.*.1", "blocks.*.2"]
    assert check["(output)"].verdict == "grows"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.inner(x)
        return out


class Stream(nn.Module):
    """Its output is twice that of its last block."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return 2 * x


def test_over_depths_a_stream_is_that_of_the_last_block() -> None:
    check = coord_check(Stream, depths=(3, 12), batch=batch()[0], steps=2, seeds=1)
    assert check["(output)"].changes == pytest.approx([2 * each for each in check["blocks.*"].changes])


def test_a_result_is_a_table_json_and_a_picture() -> None:
    check = coord_check(by_hand, widths=WIDTHS, batch=batch(), seeds=1)
    assert re.search(r"^2 +Linear +[+-]0\.0\d ± 0\.\d\d .* flat$", str(check), re.MULTILINE)
    data = json.loads(check.to_json())
    assert data["format"] == "torchinit-coordinates-1" and data["sizes"] == [64, 256, 1024]
    assert data["slopes"][-1]["verdict"] == "flat"
    assert data["slopes"][-1]["start"] is None  # a readout at zero has no logarithm
    picture = ElementTree.fromstring(check.to_svg())
    lines = picture.findall(".//{http://www.w3.org/2000/svg}path[@class='line']")
    assert len(lines) == len(check)
    with pytest.raises(KeyError, match="no layer '22' was measured"):
        check["22"]


def test_a_name_in_a_picture_is_escaped(tmp_path: object) -> None:
    model = coord_check(lambda width: nn.ModuleDict({"<b>": nn.Linear(4, width)})["<b>"], widths=(2, 4), seeds=1)
    ElementTree.fromstring(CoordCheck("width", (2, 4), 1, 1, model.slopes, (1.0, 1.0), "<b>").to_svg())


def test_what_does_not_move_is_still_and_what_overflows_diverges() -> None:
    def frozen(width: int) -> nn.Module:
        model = started(width)
        model[0].requires_grad_(requires_grad=False)
        return model

    assert coord_check(frozen, widths=(8, 16), batch=batch(), seeds=1)["0"].verdict == "still"
    check = coord_check(started, widths=(8, 16), batch=batch(), lr=1e30, seeds=1)
    assert not check.flat and "diverges" in check.summary()


def test_a_recipe_and_a_meta_model_are_started() -> None:
    def make(width: int) -> nn.Module:
        with torch.device("meta"):
            return started(width)

    check = coord_check(make, widths=(8, 16), batch=batch(), recipe=Normal(std=0.1), steps=1, seeds=1)
    assert [each.verdict == "still" for each in check] == [False] * 5


def test_the_random_state_and_the_seed() -> None:
    seen: list[int] = []

    def make(width: int, seed: int) -> nn.Module:
        seen.append(seed)
        return started(width)

    before = torch.get_rng_state()
    first = coord_check(make, widths=(8, 16), batch=batch(), seeds=2, steps=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen == [0, 0, 1, 1]
    assert coord_check(make, widths=(8, 16), batch=batch(), seeds=2, steps=1) == first


def test_a_limit_of_time_ends_it_after_a_seed_and_is_said() -> None:
    check = coord_check(started, widths=(8, 16), batch=batch(), limit=0.0, steps=1)
    assert check.seeds == 1
    assert check.summary().endswith("Adam, 2 fewer than wanted, since none is begun after 0 seconds")
    assert coord_check(started, widths=(8, 16), batch=batch(), seeds=1, steps=1).slopes == check.slopes


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"widths": (4,)}, ValueError, "takes two sizes at least"),
        ({"widths": (4, 0)}, ValueError, "whole numbers from 1 on"),
        ({"widths": (4, 8), "depths": (1, 2)}, ValueError, "over widths or over depths"),
        ({"widths": (4, 8), "steps": 0}, ValueError, "a step and a seed at least"),
        ({"widths": (4, 8), "expected": {"a..b": 0.0}}, ValueError, "expected: a name is dotted text"),
    ],
)  # fmt: skip
def test_sizes_that_give_no_slope(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        coord_check(started, batch=batch(), **options)  # type: ignore[arg-type]


def test_factories_that_make_something_else() -> None:
    with pytest.raises(ProbeError, match=r"make\(8\) raised TypeError: .* takes 0 .*\n  make\(size\) is .* this depth"):
        coord_check(lambda: started(8), depths=(8, 16))
    with pytest.raises(ProbeError, match=r"make\(8\) returned str, not a model"):
        coord_check(lambda width: "model", widths=(8, 16))
    with pytest.raises(ProbeError, match="returned a model and int, which is not an optimizer"):
        coord_check(lambda width: (started(width), 3), widths=(8, 16))
    with pytest.raises(ProbeError, match="so optimizer= and lr= are not for it"):
        coord_check(by_hand, widths=(8, 16), lr=1e-3)

    class Detached(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    with pytest.raises(ProbeError, match="does not depend on any trained parameter of Detached"):
        coord_check(lambda width: Detached(16, width), widths=(8, 16), batch=batch()[0])

    class Odd(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("never")

    with pytest.raises(ProbeError, match="takes input, and what was made for it does not fit"):
        coord_check(lambda width: Odd(16, width), widths=(8, 16))
