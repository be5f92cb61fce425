"""The page of a probe: its numbers are those that were measured, its densities those of what was planned."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

import torchinit
from tests.html import check
from tests.probing.nets import Wired, mlp
from torchinit import Leaf, MissingExtraError, Normal, Orthogonal, Rule, TruncNormal, Uniform, Zeros, probe
from torchinit.initializers import Initializer
from torchinit.pages import Distribution, Page
from torchinit.probing import CoordCheck, CoordinateSlope, Probe
from torchinit.probing.moments import values_of
from torchinit.probing.result import page_of

ZERO = Rule(Leaf("bias"), Zeros())
KAIMING = [{"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}]


@pytest.fixture(scope="module")
def bad() -> Probe:
    return probe(mlp(0.02))


@pytest.fixture(scope="module")
def good() -> Probe:
    return probe(mlp(0.02), recipe=KAIMING)


def test_the_verdict_comes_first_with_the_way_out(bad: Probe) -> None:
    parsed = check(page_of(bad).html())
    text = " ".join(parsed.text.split())
    places = [
        text.index(each)
        for each in ("Vanishing signal", "Kaiming (std", "By depth: 30 layers", "Findings", "To see the same")
    ]
    assert places == sorted(places)
    assert page_of(bad).severity == "error"


def test_figures_are_what_was_measured_beside_another_start(bad: Probe, good: Probe) -> None:
    page = page_of(bad, good)
    figures = {each.name: each for each in page.panels[0].figures}
    assert [*figures] == ["signal", "gradient", "rms", "spread"]
    outputs, others = bad.measurement.chains[0].outputs, good.measurement.chains[0].outputs
    mine, theirs = figures["signal"].series
    assert mine.values == tuple(each.forward.signal for each in outputs)
    assert theirs.values == tuple(each.forward.signal for each in others)
    assert (mine.dashed, theirs.dashed) == (False, True)
    assert figures["gradient"].series[0].values == tuple(each.gradient.rms for each in outputs if each.gradient)
    assert page.panels[0].numbers[0][0] == outputs[0].name
    assert len(page.panels[0].numbers) == 30
    assert f"Compared with 1 rule: {good.verdict}" in page.lead


def test_a_healthy_start_lies_in_the_band_and_a_bad_one_leaves_it(bad: Probe, good: Probe) -> None:
    for result, inside in ((bad, False), (good, True)):
        for figure in page_of(result).panels[0].figures[:2]:
            assert figure.band is not None
            low, high = figure.band
            assert all(low <= value <= high for value in figure.series[0].values) is inside


def test_predictions_are_drawn_where_there_are_any(good: Probe) -> None:
    chain = good.measurement.chains[0]
    outputs = tuple(replace(each, predicted=each.forward.rms * 1.1, predicted_gradient=None) for each in chain.outputs)
    measured = replace(good.measurement, chains=(replace(chain, outputs=outputs),))
    page = page_of(replace(good, runs=(measured,)))
    figures = {each.name: each for each in page.panels[0].figures}
    assert figures["rms"].series[0].predicted == tuple(each.forward.rms * 1.1 for each in outputs)
    assert "as predicted" in figures["rms"].caption
    assert "as predicted" not in figures["gradient"].caption
    assert page.html().count('class="predicted"') == 1


@pytest.mark.parametrize(
    ("fill", "density"),
    [
        (Normal(mean=0.5, std=0.2), stats.norm(0.5, 0.2)),
        (Uniform(-1.0, 3.0), stats.uniform(-1, 4)),
        (TruncNormal(std=0.5, a=-0.6, b=0.6), stats.truncnorm(-1.2, 1.2, scale=0.5)),
        (TruncNormal(mean=0.1, std=0.2, a=-0.2, b=0.4), stats.truncnorm(-1.5, 1.5, loc=0.1, scale=0.2)),
    ],
)
def test_histograms_lie_under_the_density_that_was_planned(fill: Initializer, density: stats.rv_frozen) -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    (drawn,) = page_of(probe(model, recipe=(Rule(Leaf("weight"), fill), ZERO))).distributions
    wide = (drawn.high - drawn.low) / len(drawn.counts)
    middles = [drawn.low + (at + 0.5) * wide for at in range(len(drawn.counts))]
    assert drawn.curve == pytest.approx(density.pdf(middles), rel=2e-2)
    # Counts are binomial: within five standard deviations of the exact mass of each.
    total, edges = sum(drawn.counts), [drawn.low + at * wide for at in range(len(drawn.counts) + 1)]
    for count, (low, high) in zip(drawn.counts, pairwise(edges), strict=True):
        mass = density.cdf(high) - density.cdf(low)
        assert abs(count - total * mass) <= 5 * (total * mass * (1 - mass)) ** 0.5 + 1


def test_a_density_that_nobody_knows_is_not_drawn() -> None:
    model = nn.Linear(64, 64)
    page = page_of(probe(model, recipe=(Rule(Leaf("weight"), Orthogonal()), ZERO)))
    assert [each.curve for each in page.distributions] == [()]
    assert "against the plan" not in page.html()


def test_values_are_those_of_the_parameters() -> None:
    torch.manual_seed(0)
    one, two, many = nn.Linear(40, 30), nn.Linear(40, 30), nn.Linear(300, 300)
    with torch.no_grad():
        many.bias[:7] = float("nan")
    found = {each.label: each for each in values_of(nn.ModuleList([one, two, nn.LayerNorm(30), many])).parameters}
    stds = sorted(float(each.weight.detach().double().std(correction=0)) for each in (one, two))
    assert found["0-1.weight"].stds == pytest.approx(tuple(stds))
    assert sum(found["0-1.weight"].counts) == 2400
    assert found["2.weight"].counts == ()  # all are 1
    assert sum(found["3.bias"].counts) == 293
    # Of many values a sample: its standard deviation is within four standard errors.
    exact = float(many.weight.detach().std(correction=0))
    assert found["3.weight"].stds[0] == pytest.approx(exact, rel=4 / (2 * sum(found["3.weight"].counts)) ** 0.5)


def test_values_that_are_none_or_complex_or_elsewhere() -> None:
    model = nn.ParameterDict({
        "empty": nn.Parameter(torch.empty(0)), "complex": nn.Parameter(torch.randn(9, dtype=torch.complex64)),
        "nan": nn.Parameter(torch.full((3,), torch.nan)), "meta": nn.Parameter(torch.empty(3, device="meta")),
        "short": nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float16)),
        "whole": nn.Parameter(torch.arange(3), requires_grad=False),
    })  # fmt: skip
    found = {each.label: sum(each.counts) for each in values_of(model).parameters}
    assert found == {"empty": 0, "complex": 18, "nan": 0, "meta": 0, "short": 2, "whole": 0}


def test_the_plan_says_what_the_other_start_is(good: Probe, bad: Probe) -> None:
    html = page_of(good, probe(mlp(0.02), recipe=(Rule(Leaf("weight"), Normal(std=0.3)), ZERO))).html()
    assert "N(0, 0.3)" in check(html).text
    parsed = check(page_of(good, bad).html())
    assert "std 0.0" in parsed.text
    own = check(page_of(bad, good).html()).text
    assert "N(0, 0.17" in own
    assert "as the model's own code left them" in own.lower()


def test_attention_and_recurrent_nets_have_figures_of_their_own() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, batch_first=True, dropout=0.0), 3)
    names = {figure.name for panel in page_of(probe(encoder)).panels for figure in panel.figures}
    assert {"attention", "signal"} <= names

    rnn, head = nn.RNN(4, 16, batch_first=True), nn.Linear(16, 3)
    last = Wired(lambda self, x: self.head(self.rnn(x)[0][:, -1]), rnn=rnn, head=head)
    result = probe(last, torch.randn(16, 12, 4))
    (figure,) = [each for panel in page_of(result).panels for each in panel.figures if each.name == "time"]
    assert len(figure.places) == 12
    assert "Gradient over time" in str(result)


def test_lint_and_everything_else_is_on_the_page(bad: Probe, tmp_path: Path) -> None:
    bad.save_html(tmp_path / "page.html", lint=torchinit.lint(mlp(0.02)))
    text = check((tmp_path / "page.html").read_text("utf-8")).text
    assert "TI408" in text
    facts = page_of(bad, lint=torchinit.lint(mlp(0.02))).facts
    assert facts[-2:] == (("2", "errors and warnings"), ("1", "errors and warnings of lint"))
    assert bad.start is not None
    assert bad.start.fingerprint == torchinit.fingerprint(mlp(0.02)).total
    assert bad.start.fingerprint in text


def test_a_notebook_shows_the_first_part_or_the_text(good: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    html = good._repr_html_()
    assert html is not None
    check(html)
    assert "<script" not in html
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert good._repr_html_() is None
    with pytest.raises(MissingExtraError, match="an HTML page"):
        good.save_html("page.html")


def test_svg_needs_no_template_engine(good: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    names = [file.name for file in good.save_svg(tmp_path)]
    assert names[:4] == ["signal.svg", "gradient.svg", "rms.svg", "spread.svg"]
    assert {file.name for file in tmp_path.iterdir()} == {*names}


def test_a_report_has_a_page(tmp_path: Path) -> None:
    report = torchinit.initialize(mlp(0.02, depth=2), KAIMING, seed=0)
    report.save_html(tmp_path / "run.html", subject="a <b>run</b>")
    parsed = check((tmp_path / "run.html").read_text("utf-8"))
    assert "a <b>run</b>" in parsed.text
    assert "tensors measured: as planned." in parsed.text
    assert report.fingerprint is None or report.fingerprint.total in parsed.text
    record = replace(report.records[0], measured=replace(report.records[0].measured, std=9.0))  # type: ignore[type-var]
    broken = replace(report, records=(record, *report.records[1:]))
    assert broken.problems
    broken.save_html(tmp_path / "broken.html")
    assert "1 value not as planned" in check((tmp_path / "broken.html").read_text("utf-8")).text


def test_a_coordinate_check_has_a_page_and_its_picture_is_the_same(tmp_path: Path) -> None:
    slopes = (
        CoordinateSlope("a.<b>", "Linear", "mlp.up", "width", 0.0, 0.01, 0.0, 0.01, (0.5, 0.5, 0.5)),
        CoordinateSlope("head", "Linear", "head.lm", "width", 1.0, 0.01, 0.0, 0.01, (0.5, 1.0, 2.0)),
    )
    made = CoordCheck("width", (64, 128, 256), 5, 3, slopes, (1.0, 1.0, 1.0), "MLP, Adam")
    assert [(each.label, each.dashed) for each in made.figure().series] == [
        ("a.<b> +0.00", False),
        ("head +1.00", True),
    ]
    made.save_html(tmp_path / "check.html")
    text = check((tmp_path / "check.html").read_text("utf-8")).text
    assert "1 of 2 layers are flat; grows: head" in text
    assert "+1.00 ± 0.01" in text


def test_what_falls_as_it_should_is_not_called_flat() -> None:
    def slope(change: float, expected: float) -> CoordinateSlope:
        values = (1.0, 2**change, 4**change)
        return CoordinateSlope("out", "Linear", "attn.out", "depth", change, 0.01, 0.0, 0.01, values, expected)

    right, wrong = slope(-0.94, -1.0), slope(-0.4, -1.0)
    assert (right.verdict, right.told, wrong.told) == ("flat", "as expected", "grows")
    assert str(right) == "out (attn.out): its change as expected, slope -0.94 ± 0.01, of -1.00"
    assert str(wrong).endswith("its change grows, slope -0.40 ± 0.01, not -1.00")
    made = CoordCheck("depth", (4, 8, 16), 5, 2, (right, slope(0.0, 0.0)), (1.0, 1.0, 1.0), "Encoder, AdamW")
    assert made.summary().startswith("✓ 2 of 2 layers are flat or as steep as expected over depth 4 to 16")
    assert made.table().splitlines()[1].endswith("as expected")
    assert "flat or as steep as expected" in made.to_svg()


def test_pages_are_plain_data(good: Probe) -> None:
    page = page_of(good)
    assert isinstance(page, Page)
    assert all(isinstance(each, Distribution) for each in page.distributions)
    assert page == page_of(good)
