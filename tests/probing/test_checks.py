"""Verdict: bounds, noise, unsure values, and starts that are known to be good or bad."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import torchinit
from benchmarks import probe_nets as nets
from tests.probing.nets import mlp
from torchinit import ReportError, assert_healthy, probe
from torchinit.linting.registry import SEVERITIES
from torchinit.probing import PROBE_CHECKS, Measurement
from torchinit.probing.checks.registry import ANY, Bound, judge, near_bounds
from torchinit.probing.measurement import (
    Attention,
    Objective,
    Output,
    ParameterGradient,
    SignalChain,
    TimeSteps,
    Units,
)  # fmt: skip
from torchinit.probing.moments import BatchMoments, NotFinite

PAGE = Path(__file__).parents[2] / "docs/guides/probe.md"
QUIET = Measurement("", 16, Objective("", 2.3))


def chain(
    signals: list[float], gradients: list[float] | None = None, spreads: list[float] | None = None
) -> SignalChain:
    """A chain of blocks with these numbers."""
    slopes, angles = gradients or [1.0] * len(signals), spreads or [1.0] * len(signals)
    outputs = [
        Output(
            f"h.{at}",
            "Block",
            0,
            (16, 8),
            BatchMoments(size, size, angle, 0.5, size),
            BatchMoments(slope, slope, 1, 1, slope),
        )
        for at, (size, slope, angle) in enumerate(zip(signals, slopes, angles, strict=True))
    ]
    return SignalChain("blocks", tuple(outputs))


def parameter(number: int, gradient: float | None, **more: object) -> ParameterGradient:
    return ParameterGradient(f"h.{number}.fc.weight", (8, 8), 0.1, gradient, **more)  # type: ignore[arg-type]


def with_chain(*args: list[float]) -> Measurement:
    made = chain(*args)
    return replace(QUIET, chains=(made,), outputs=made.outputs)


def steps(first: float) -> Measurement:
    return replace(QUIET, time_steps=(TimeSteps("rnn", (first, 1e-3, 1.0)),))


def units(function: str, dead: float, saturated: float) -> Measurement:
    return replace(QUIET, units=(Units("0", function, 64, 0.1, 0.1), Units("3", function, 64, dead, saturated)))


def logits(rms: float, sure: bool = True) -> Measurement:
    return replace(QUIET, objective=Objective("cross entropy", 9.0, 10, rms, 2.3, sure))


def parameters(*several: ParameterGradient) -> Measurement:
    return replace(QUIET, parameters=several, chains=(chain([1.0, 1.0, 1.0]),))


def gradients(ratio: float) -> Measurement:
    return parameters(*(parameter(at, value) for at, value in enumerate((1e-3, 1e-3 * ratio, 1e-3))))


FP16 = {"dtype": "float16", "largest": 65504.0}

CASES: list[tuple[str, str, Measurement]] = [
    ("TI801", "warning h.0", with_chain([1.0, 0.15, 0.02, 3e-3])),
    ("TI801", "error h.0", with_chain([1.0, 1e-2, 1e-4])),
    ("TI801", "error h.2", with_chain([1.0, 0.9, 1e-5, 1e-5])),
    ("TI801", "error h.2", with_chain([1.0, 0.9, 0.0, 0.0])),
    ("TI802", "warning h.0", with_chain([1.0, 10.0, 100.0])),
    ("TI802", "error h.0", with_chain([1.0, 100.0, 1e4])),
    ("TI802", "error h.1", with_chain([1.0, math.inf, math.inf])),
    ("TI803", "error h.0", with_chain([1.0, 1.0, 1.0], [1e-6, 1e-3, 1.0])),
    ("TI803", "error h.0", with_chain([1.0, 1.0, 1.0], [0.0, 1e-3, 1.0])),
    ("TI804", "warning h.0", with_chain([1.0, 1.0, 1.0], [100.0, 10.0, 1.0])),
    ("TI804", "error h.0", with_chain([1.0, 1.0, 1.0], [1e4, 100.0, 1.0])),
    ("TI805", "warning h.0", with_chain([1.0] * 4, [1.0] * 4, [1.0, 0.08, 6e-3, 5e-4])),
    ("TI805", "error h.0", with_chain([1.0] * 3, [1.0] * 3, [1.0, 1e-3, 1e-6])),
    ("TI806", "warning 3", units("relu", 0.95, 0.0)),
    ("TI806", "error 3", units("relu", 1.0, 0.0)),
    ("TI807", "warning 3", units("tanh", 0.0, 0.4)),
    ("TI807", "error 3", units("sigmoid", 0.0, 0.7)),
    ("TI808", "warning attn", replace(QUIET, attentions=(Attention("attn", 3.0, 0.5, 0.4),))),
    ("TI808", "error attn", replace(QUIET, attentions=(Attention("attn", 30.0, 0.1, 0.9),))),
    ("TI809", "warning rnn", steps(math.exp(-15))),
    ("TI809", "error rnn", steps(0.0)),
    ("TI809", "warning rnn", steps(math.exp(5))),
    ("TI809", "error rnn", steps(math.exp(10))),
    ("TI810", "warning", logits(6.0)),
    ("TI810", "error", logits(15.0)),
    ("TI810", "warning", logits(15.0, sure=False)),
    ("TI811", "error h.1.fc.weight", parameters(parameter(0, 1.0), parameter(1, 0.0, stays_zero=True))),
    ("TI812", "error h.0.fc.weight", parameters(parameter(0, 1.0, equal_rows=True))),
    ("TI813", "warning h.1.fc.weight", gradients(200)),
    ("TI814", "warning", replace(parameters(parameter(0, 1e-6, below=0.7)), **FP16)),  # type: ignore[arg-type]
    ("TI814", "error", replace(parameters(parameter(0, 1e-7, below=0.98)), **FP16)),  # type: ignore[arg-type]
    ("TI815", "error", replace(QUIET, objective=Objective("", math.nan))),
    ("TI815", "error h.1.fc.weight", parameters(parameter(0, 1.0), parameter(1, math.inf))),
    ("TI815", "error h.1", with_chain([1.0, math.inf, 1.0])),
    ("TI815", "error h.1", with_chain([1.0, 1.0, 1.0], [1.0, math.inf, 1.0])),
    ("TI815", "error", replace(QUIET, losses=(2.3, 2.2, math.nan))),
    ("TI815", "error", replace(QUIET, objective=Objective("", 2.3, odd="aux"))),
    ("TI816", "note h.0.fc.weight", parameters(parameter(0, None))),
    ("TI817", "error h.1", replace(with_chain([1.0, 1e5, 1.0]), **FP16)),  # type: ignore[arg-type]
    ("TI818", "warning h.0.fc.weight", parameters(parameter(0, 500.0))),
    ("TI818", "error h.0.fc.weight", parameters(parameter(0, 5e5))),
    ("TI819", "error norm.running_var", replace(QUIET, not_finite=(NotFinite("norm.running_var", "buffer", 8, 0, 1),))),
]


@pytest.mark.parametrize(("code", "expected", "measured"), CASES)
def test_a_check_finds_what_it_is_for(code: str, expected: str, measured: Measurement) -> None:
    found = [f"{each.severity} {each.site}".rstrip() for each in judge([measured]) if each.code == code]
    assert found == [expected]


@pytest.mark.parametrize(("first", "code", "each"), [(1e-6, "TI803", "0.001"), (1e4, "TI804", "1e+02")])
def test_what_the_gradient_does_at_each_step_is_told_on_its_way_back(first: float, code: str, each: str) -> None:
    gradient = [first, math.sqrt(first), 1.0]
    (found,) = (one for one in judge([with_chain([1.0, 1.0, 1.0], gradient)]) if one.code == code)
    assert f", {each} a block" in found.message


def test_every_check_has_a_case() -> None:
    assert {code for code, *_ in CASES} == set(PROBE_CHECKS)


GOOD = [
    with_chain([1.0, 1.2, 1.5], [1.1, 1.0, 1.0]), units("relu", 0.52, 0.0), units("sigmoid", 0.0, 0.17), steps(0.1),
    logits(3.0), gradients(20), replace(QUIET, attentions=(Attention("attn", 1.03, 1.0, 0.1),)), QUIET,
    parameters(parameter(0, 0.0), parameter(1, 1.0, below=1.0)), with_chain([1.0, 1e4, 1.0]),
]  # fmt: skip


@pytest.mark.parametrize("measured", GOOD)
def test_good_numbers_are_no_finding(measured: Measurement) -> None:
    assert [*judge([measured])] == []


def test_one_sample_and_small_batches_are_not_judged_by_what_they_cannot_show() -> None:
    bad = with_chain([1.0, 1e-2, 1e-9], [1e9, 1e3, 1.0], [1.0, 1e-3, 1e-9])
    alone = judge([replace(bad, samples=1)])
    assert {"TI801", "TI805"}.isdisjoint(alone.codes)
    assert "not run for want of two samples or more (TI801, TI805)" in alone.not_run()
    small = judge([replace(bad, small_batch=True)])
    assert "TI804" not in small.codes
    assert "not run for want of 16 samples, since there are batch norms (TI803, TI804)" in small.not_run()


def test_a_value_near_its_bound_is_measured_again_and_called_unsure() -> None:
    near, far, clear = (with_chain([1.0, value, value**2]) for value in (math.exp(-2.8), math.exp(-2), math.exp(-3.5)))
    assert near_bounds(near)[0] == "TI801"
    assert near_bounds(with_chain([1.0, 1.0, 1.0])) == ()
    (sure,) = (each for each in judge([near, clear, clear]) if each.code == "TI801")
    assert (sure.severity, "unsure" in sure.message) == ("warning", False)
    (unsure,) = (each for each in judge([near, far, far], "seeds") if each.code == "TI801")
    assert unsure.severity == "note"
    assert unsure.message.endswith("unsure: ln -5.6 to -4 over 3 seeds, bounds -5.3 and -9")
    worse = with_chain([1.0, 1e-3, 1e-5])
    assert [each.severity for each in judge([near, worse]) if each.code == "TI801"] == ["warning"]


def test_of_several_chains_each_is_read_again_as_itself_wherever_its_worst_step_is() -> None:
    def run(*signals: float) -> Measurement:
        bad = chain(list(signals))
        renamed = replace(bad, outputs=tuple(replace(each, module=f"g.{each.module}") for each in bad.outputs))
        return replace(QUIET, chains=(chain([1.0, 1.0, 1.0, 1.0]), renamed))

    runs = [run(1.0, 0.9, 4e-3, 4e-3), run(1.0, 4e-3, 4e-3, 4e-3), run(1.0, 4e-3, 4e-3, 4e-3)]
    (found,) = (each for each in judge(runs) if each.code == "TI801")
    assert (found.severity, found.site) == ("warning", "g.h.2")
    assert "unsure" not in found.message


def test_bounds() -> None:
    up = Bound(2.0, 5.0, 0.5)
    assert [up.severity(value) for value in (1.9, 2.0, 5.0, math.inf)] == [None, "warning", "error", "error"]
    assert up.severity(math.nan) is None
    assert [up.is_near(value) for value in (1.4, 1.6, 2.4, 4.6, 6.0)] == [False, True, True, True, False]
    assert (ANY.severity(1), ANY.severity(0)) == ("error", None)


@pytest.mark.parametrize("code", PROBE_CHECKS)
def test_a_check_tells_about_itself_and_stands_on_the_page(code: str) -> None:
    one = PROBE_CHECKS[code]
    assert re.fullmatch(r"TI8\d\d", code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", one.name)
    assert one.severity in SEVERITIES
    assert one.text.count("\n\n") >= 0
    assert one.remedy
    row = f"| `{code}` | {one.name} | {one.severity} | {one.summary} |\n"
    assert row in PAGE.read_text("utf-8"), row


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["MLP 30 ReLU, torch's own", "MLP 30 ReLU, Kaiming", "MLP 10 sigmoid, torch's own", "MLP 6, a dead layer",
     "MLP 6, constant 0.01", "MLP 4, head N(0, 1)", "pre-LN 6, last gain 0 and head 0",
     "RNN, last of 50 steps, torch's own", "RNN, recurrent weights times 3", "SIREN", "SIREN, torch's hidden layers"],
)  # fmt: skip
def test_known_starts_are_told_apart(name: str) -> None:
    net = next(net for net in nets.hand_made() if net.name == name)
    torch.manual_seed(0)
    findings = probe(net.make(), limit=600).findings
    if net.codes:
        severe = [each for each in findings.at_least("warning") if each.site.startswith(net.at)]
        assert {each.code for each in severe} & set(net.codes.split()), findings.table()
    else:
        assert not findings.errors, findings.table()


def entry_of(remedy: str) -> dict[str, object]:
    """The entry of a recipe that a remedy writes."""
    import tomllib

    assert max(map(len, remedy.splitlines())) <= 100
    line = next(each for each in remedy.splitlines() if each.startswith("{"))  # as it is pasted
    return tomllib.loads(f"entry = {line}")["entry"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("std", "act"), [(1.0, nn.ReLU), (0.02, nn.Tanh), (0.02, nn.GELU)])
def test_the_remedy_that_is_written_mends_the_start(std: float, act: type[nn.Module]) -> None:
    model = mlp(std, act=act)
    finding = next(each for each in probe(model, limit=600).findings if each.code in ("TI801", "TI802", "TI804"))
    assert float(finding.remedy.split()[1]) == pytest.approx(std, rel=0.1)  # "std 0.02 with ..."
    assert not probe(model, recipe=[entry_of(finding.remedy)], limit=600).findings.errors


@pytest.mark.slow("trains four nets")
def test_the_remedy_trains_where_the_start_does_not() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    x = (x - x.mean()) / x.std()

    def loss_after(model: nn.Module, number: int = 200) -> float:
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
        generator = torch.Generator().manual_seed(0)
        for _ in range(number):
            rows = torch.randint(len(x), (64,), generator=generator)
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses[-10:]) / 10

    for std in (0.02, 1.0):
        model = mlp(std)
        result = probe(model, (x[:64], y[:64]), limit=600)
        assert torchinit.lint(model).codes == ({0.02: "TI408", 1.0: "TI407"}[std],)
        entry = entry_of(next(each for each in result.findings if each.code in ("TI801", "TI802")).remedy)
        mended = mlp(std)
        torchinit.initialize(mended, [entry], seed=0)
        assert torchinit.lint(mended).codes == ()
        assert probe(mended, (x[:64], y[:64]), limit=600).healthy
        assert not loss_after(model) < 2.2  # ln 10 is 2.3; not a number for N(0, 1)
        assert loss_after(mended) < 1.5


# --- text and data ----------------------------------------------------------------------------------------------------


def test_the_table_begins_with_the_verdict() -> None:
    lines = str(probe(mlp(0.02))).splitlines()
    assert lines[0].startswith("✗ Vanishing signal: 10^-")
    assert max(map(len, lines[2:15])) <= 80
    assert lines[2].split() == ["layer", "signal", "gradient"]
    at = next(at for at, line in enumerate(lines) if line.startswith("TI801, TI803 way out"))
    assert lines[at + 2] == '  {type = "Kaiming", mode = "fan_in", layer = "Linear"}'  # a line of its own, to be pasted
    good = str(probe(mlp(0))).splitlines()
    assert good[0].startswith("✓ Nothing is wrong with this start: 0.")
    assert good[-1] == "no findings"


def test_json_holds_all_numbers_and_is_strict() -> None:
    result = probe(mlp(1.0, depth=60))
    data = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert data["format"] == "torchinit-probe-1"
    assert data["healthy"] is False
    assert len(data["runs"][0]["outputs"]) == 122
    assert [each["code"] for each in data["findings"]["findings"]] == [each.code for each in result.findings]


def test_a_limit_of_time_is_said() -> None:
    model = mlp(0, depth=4)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    result = probe(model, limit=0.0)
    assert "after 0 seconds nothing new was begun" in str(result)
    assert "TI811" not in result.findings.codes


def test_assert_healthy() -> None:
    assert_healthy(mlp(0, depth=4))
    with pytest.raises(ReportError, match=r"(?s)\d findings?: Sequential does not start well.*TI801 error"):
        assert_healthy(mlp(0.02))
    calls: list[Callable[[], None]] = [
        lambda: assert_healthy(mlp(0, depth=6), prior=[0.1] * 10),
        lambda: assert_healthy(mlp(), recipe=[{"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}]),
    ]
    for call in calls:
        call()
