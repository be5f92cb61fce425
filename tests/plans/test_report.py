"""Reports: a record for each site, found by name, printed, kept as JSON, and proof that fails when it should."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.model.test_sites import Decoder, Table
from torchinit import (
    Constant,
    Kaiming,
    Leaf,
    Name,
    Normal,
    Report,
    ReportError,
    Rule,
    TruncNormal,
    fingerprint,
    initialize,
    sites,
)
from torchinit.initializers import Moments
from torchinit.noise import Keyed
from torchinit.plans import Record, local_shards, make_plan, run

RULES = (
    Rule(Leaf("weight"), Normal(std=0.02), label="weights"),
    Rule(Name("2.weight"), Kaiming()),
    Rule(Name("nix.*"), Constant(0.0)),
    Rule(Name("1.num*"), Constant(0.0), buffers=True),
)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(100, 80), nn.BatchNorm1d(80), nn.Linear(80, 50))


def report_of(built: nn.Module, *rules: Rule, stats: bool = True) -> Report:
    return run(make_plan(sites(built), rules), local_shards(built), Keyed(1), stats=stats)


def test_a_record_says_what_happened() -> None:
    built = model()
    record = report_of(built, *RULES)["2.weight"]
    weight = built.get_parameter("2.weight").detach().double()
    assert (record.name, record.shape, record.dtype) == ("2.weight", (50, 80), "float32")
    assert (record.fill, record.rule, record.origin) == ("Normal(std=0.2)", "Name('2.weight') -> Kaiming()", "rules[1]")
    assert record.expected == Moments(0.0, math.sqrt(2 / 50))
    assert record.measured is not None
    assert record.measured.mean == pytest.approx(float(weight.mean()))
    assert record.measured.std == pytest.approx(float(weight.std(correction=0)))
    assert (record.measured.min, record.measured.max) == (float(weight.min()), float(weight.max()))
    assert record.over == ("weights",)
    assert record.bytes == 50 * 80 * 4
    assert record.seconds > 0
    assert record.problems == ()


def test_what_was_left_out() -> None:
    report = report_of(model(), *RULES)
    assert len(report) == len(list(report)) == 3
    assert report.untouched == ("0.bias", "1.bias", "2.bias")
    assert report.buffers == ("1.running_mean", "1.running_var")
    assert report.skipped == (("1.num_batches_tracked", "holds whole numbers"),)
    assert report.unused == ("rules[2] Name('nix.*') matches none of 9 names",)
    assert report.noise == "Keyed(seed=1)"


def test_records_by_any_name() -> None:
    report = report_of(Decoder(), Rule(Leaf("weight"), Normal()))
    assert report["head.weight"] is report["embed.weight"]
    assert report["embed.weight"].aliases == ("head.weight",)
    with pytest.raises(KeyError, match=r"no record of 'head\.wieght'; did you mean 'head\.weight'\?"):
        report["head.wieght"]


def test_without_statistics() -> None:
    report = report_of(model(), *RULES, stats=False)
    assert {record.measured for record in report} == {None}
    assert report.assert_ok() is report


def test_complete_asks_for_parameters() -> None:
    report = report_of(model(), *RULES)
    assert report.assert_ok() is report
    with pytest.raises(ReportError, match=r"3 findings: the values are not as planned\n  0\.bias: not written"):
        report.assert_ok(complete=True)
    assert report_of(model(), Rule(Name("**"), Normal())).assert_ok(complete=True)


def test_values_that_are_not_as_planned() -> None:
    report = report_of(model(), *RULES)
    first, *others = report.records
    wrong = replace(first, measured=Moments(0.0, 0.021, -0.1, 0.1))
    with pytest.raises(ReportError, match=r"1 finding: .*\n  0\.weight: std is 0\.021, planned 0\.02 ± ") as caught:
        replace(report, records=(wrong, *others)).assert_ok()
    assert caught.value.problems == replace(report, records=(wrong,)).problems


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite(bad: float) -> None:
    record = Record("w", (3,), "float32", "f", "r", measured=Moments(bad, bad, bad, bad))
    assert record.problems == ("w: holds NaN or Inf",)


def test_the_tolerance_is_that_of_what_is_here() -> None:
    """A tenth of a tensor tells less of its spread than all of it."""
    record = Record("w", (1000, 100), "float32", "f", "r", "", Moments(0.0, 1.0), Moments(0.0, 1.03, -4.0, 4.0))
    assert record.problems != ()
    assert replace(record, bytes=1000 * 10 * 4).problems == ()
    assert replace(record, dtype="complex64", shape=(100, 100)).problems == ()
    assert replace(record, dtype="complex64", bytes=100_000 * 8).problems != ()


def test_json_there_and_back() -> None:
    for rules in (RULES, (Rule(Leaf("weight"), TruncNormal(a=-math.inf, b=1.0)),), ()):
        report = report_of(model(), *rules)
        assert Report.from_json(report.to_json()) == report
        assert Report.from_json(report.to_json(indent=None)) == report


def test_json_of_what_is_not_finite_is_json() -> None:
    built = Table(torch.zeros(3))
    report = report_of(built, Rule(Leaf("weight"), Constant(-math.inf))).assert_ok()

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    data = json.loads(report.to_json(), parse_constant=refuse)
    assert data["records"][0]["measured"]["min"] == "-inf"
    back = Report.from_json(report.to_json())["weight"].measured
    assert back is not None
    assert back.min == -math.inf
    assert back.std is not None
    assert math.isnan(back.std)


def test_table() -> None:
    report = replace(report_of(model(), *RULES), seconds=1.234)
    lines = str(report).splitlines()
    assert lines[:2] == ["3 sites written: 3 kinds, 12,080 elements, 0.0 MiB, 1.23 s, Keyed(seed=1)", ""]
    assert lines[2].split() == ["tensor", "shape", "started", "as", "mean", "std", "planned", "std", "elements", "rule"]
    cells = re.split("  +", lines[3])
    assert cells[:3] == ["0.weight", "80x100", "N(0, 0.02)"]
    assert float(cells[4]) == pytest.approx(0.02, rel=0.05)
    assert cells[5:] == ["0.02", "8,000", "weights"]
    assert lines[7:] == [
        "3 tensors measured: as planned",
        "3 parameters untouched: 0-2.bias ×3",
        "2 buffers untouched: 1.running_mean, 1.running_var",
        "skipped 1.num_batches_tracked: holds whole numbers",
        "unused: rules[2] Name('nix.*') matches none of 9 names",
    ]


def test_a_table_without_figures() -> None:
    text = Report((Record("w", (), "float32", "Ramp()", "all"),)).table()
    assert text.splitlines()[0].endswith("0.00 s, no noise")
    assert text.splitlines()[3].split() == ["w", "scalar", "Ramp()", "1", "all"]


def test_complex_values_are_measured_in_their_parts() -> None:
    built = Table(torch.zeros(60, 60, dtype=torch.complex64))
    record = report_of(built, Rule(Leaf("weight"), Normal(std=0.02))).assert_ok()["weight"]
    assert record.expected is not None
    assert record.expected.std == pytest.approx(0.02 / math.sqrt(2))
    twice = replace(record, expected=Moments(0.0, 0.02))
    assert "std is" in twice.problems[0]


def test_a_report_keeps_its_fingerprint() -> None:
    model = nn.Linear(2, 3)
    report = initialize(model, Rule(Leaf("weight"), Constant(1.0)), seed=0, fingerprint=True)
    assert report.fingerprint == fingerprint(model)
    assert Report.from_json(report.to_json()) == report
    assert str(report).endswith(f"fingerprint {fingerprint(model).total}")


@pytest.mark.parametrize("field", ["fingerprint", "loads", "lacking", "unfilled"])
def test_a_report_written_before_there_was(field: str) -> None:
    data = Report().to_dict()
    del data[field]
    assert Report.from_json(json.dumps(data)) == Report()


def test_what_holds_no_values() -> None:
    report = Report(
        untouched=("a", "b", "c"), lacking=(("b", "is sparse: do"), ("d", "is odd: do")), unfilled=("c", "e")
    )
    assert Report.from_json(report.to_json()) == report
    assert report.summary().splitlines()[-1] == "2 tensors never filled: c, e"
    with pytest.raises(
        ReportError, match=r"2 findings: .*\n  c: never filled, .* reset_parameters\(\) of its module first"
    ):
        report.assert_ok()
    with pytest.raises(ReportError) as caught:
        report.assert_ok(complete=True)
    said = [text.split(",")[0] for text in caught.value.problems]
    assert said == ["c: never filled", "e: never filled", "a: not written", "b: is sparse: do", "d: is odd: do"]
