"""What torchinit saves as JSON: read back as it was, also from files of before, and every mistake of anything else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchinit import ConfigError, Plan, Report, initialize, trace
from torchinit.initializers import Moments
from torchinit.model import Box
from torchinit.plans import Fingerprint, Record
from torchinit.tracing import Trace, Write

READERS: Final[list[Callable[[str], object]]] = [
    Plan.from_json,
    Report.from_json,
    Trace.from_json,
    Fingerprint.from_json,
]

# As `torchinit apply --json` wrote it before reports told of lines, checkpoints, fingerprints and reach.
FIRST = """{"records": [{"name": "w", "shape": [2, 3], "dtype": "float32", "fill": "Normal(mean=0.0, std=0.02)",
"rule": "all", "origin": "rules[0]", "expected": {"mean": 0, "std": 0.02, "min": null, "max": null, "kurtosis": 3.0},
"measured": {"mean": "nan", "std": "nan", "min": "-inf", "max": 1, "kurtosis": 3.0}, "over": ["Name('**') -> Zeros()"],
"aliases": ["v"], "notes": [], "seconds": 0.001, "bytes": 24}], "untouched": ["b"], "skipped": [["ids", "integer"]],
"unused": ["rules[1] matches nothing"], "noise": "Keyed(seed=0)", "seconds": 1, "buffers": []}"""


def test_a_report_of_the_first_days() -> None:
    report = Report.from_json(FIRST)
    assert report["v"].expected == Moments(0.0, 0.02)
    assert report["w"].measured is not None
    assert (report["w"].measured.min, report["w"].measured.max) == (-torch.inf, 1.0)
    assert report.skipped == (("ids", "integer"),)
    assert (report.loads, report.reach, report.fingerprint, report["w"].line) == ((), (), None, "")
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_every_mistake_of_a_report_at_once() -> None:
    data: dict[str, Any] = json.loads(FIRST)
    data["records"][0].update(shape=[2, "3"], nam="w", dtype="float31")
    data["records"].append({"name": 1})
    data["loads"] = [{"source": "a.pth", "loaded": "w"}]
    data["reach"] = [{"scheme": "llama", "parameters": [1], "elements": [1, 2]}]
    data["fingerprint"] = {"sites": {"w": 3}, "total": "", "fingerprint": "torchinit-fingerprint-1"}
    del data["noise"]
    with pytest.raises(ConfigError) as caught:
        Report.from_json(json.dumps(data))
    assert caught.value.headline == "11 mistakes in the report"
    assert (
        caught.value.problems
        == (
            "a report has 'noise'",
            "fingerprint.sites['w']: must be text, but got 3",
            "records[0].shape[1]: must be a whole number, but got '3'",
            "records[0].nam: Record has no argument 'nam'; did you mean 'name'?",
            "records[1].name: must be text, but got 1",
            "records[1]: Record needs 'shape', a list",
            "records[1]: Record needs 'dtype', text",
            "records[1]: Record needs 'fill', text",
            "records[1]: Record needs 'rule', text",
            "loads[0].loaded: must be a list, but got 'w'",
            "reach[0].parameters: must have 2 items, but has 1",
        )
        or len(caught.value.problems) == 13
    )


def test_a_dtype_that_there_is_not() -> None:
    data: dict[str, Any] = json.loads(FIRST)
    data["records"][0]["dtype"] = "load"
    with pytest.raises(ConfigError, match=r"records\[0\]: Record: dtype must be the name of a dtype, but got 'load'"):
        Report.from_json(json.dumps(data))
    with pytest.raises(ValueError, match="but got 'float31'"):
        Record("w", (2,), "float31", "", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "7 mistakes in the report\n  a report has 'records'\n  a report has 'untouched'"),
        ("[]", r"this is not a report: it must be a table, but is \[\]"),
        ("[" * 100_000, "this is not a report: maximum recursion"),
        ("", "this is not a report: Expecting value"),
    ],
)
def test_what_is_not_a_report(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Report.from_json(text)


def test_a_fingerprint_in_a_report_that_was_changed() -> None:
    report = initialize(nn.Linear(2, 2), "general", seed=0, fingerprint=True)
    assert report.fingerprint is not None
    changed = report.to_json().replace(report.fingerprint.total, "0" * 32)
    with pytest.raises(ConfigError, match="the fingerprint was changed"):
        Report.from_json(changed)


def test_traces_and_their_mistakes() -> None:
    model = nn.Linear(2, 2)
    with trace(model) as seen:
        model.weight.data[0].fill_(1.0)
        model.weight.data.view(-1)[::3] = 2.0
        model.bias.data.zero_()
    assert {write.region for write in seen} == {None, "part", Box((0, 0), (1, 2))}
    assert Trace.from_json(seen.to_json()) == seen
    data = seen.to_dict()
    data["writes"][0]["region"] = "parts"
    data["writes"][1]["count"] = 1.5
    del data["error"]
    with pytest.raises(ConfigError) as caught:
        Trace.from_json(json.dumps(data))
    assert caught.value.headline == "3 mistakes in the trace"
    assert "writes[0].region: must be a table or 'part' or nothing" in caught.value.problems[0]
    assert caught.value.problems[1] == "writes[1].count: must be a whole number, but got 1.5"


def test_a_trace_of_the_first_days() -> None:
    write = {"site": "a", "operation": "zero_", "arguments": "", "region": {"start": [0], "shape": [2]},
             "line": "m.py:3", "module": None, "call": "", "order": 0, "last": 0, "count": 1}  # fmt: skip
    data = {"format": "torchinit-trace-1", "parameters": ["a", "b"], "buffers": [], "added": [], "removed": [],
            "aliases": {"c": "a"}, "error": "", "writes": [write]}  # fmt: skip
    read = Trace.from_json(json.dumps(data))
    assert read.of("c") == (Write("a", "zero_", region=Box((0,), (2,)), line="m.py:3"),)
    assert read.to_dict() == data | {"lost": []}


KEYS = st.text(max_size=3) | st.sampled_from(
    ["records", "untouched", "skipped", "unused", "noise", "seconds", "buffers", "loads", "fingerprint", "reach",
     "name", "shape", "dtype", "expected", "measured", "format", "writes", "parameters", "aliases", "error", "added",
     "removed", "region", "sites", "total", "steps", "site", "fill", "rule", "guess", "better"]
)  # fmt: skip
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@pytest.mark.parametrize("read", READERS, ids=lambda read: str(read.__self__.__name__))
@given(data=PLAIN, version=st.sampled_from(["plan", "trace", "fingerprint", ""]))
def test_anything_else_is_a_config_error(read: Callable[[str], object], data: object, version: str) -> None:
    if isinstance(data, dict) and version:
        data = {**data, "format": f"torchinit-{version}-1", "fingerprint": f"torchinit-{version}-1"}
    with pytest.raises(ConfigError):
        read(json.dumps(data))


def _nested(data: Any, draw: Callable[[Any], Any], other: object) -> Any:
    """The data with one value, at any depth, replaced by another one."""
    if isinstance(data, (dict, list)) and data and draw(st.integers(0, 3)):
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = draw(st.sampled_from(keys))
        changed = dict(data) if isinstance(data, dict) else list(data)
        changed[key] = _nested(data[key], draw, other)
        return changed
    return other


@given(st.data(), st.sampled_from([None, 1, 1.5, "x", [], {}, [[]], {"a": 1}, True]))
def test_one_value_changed_anywhere(data: st.DataObject, other: object) -> None:
    """Whatever was changed in a true report or trace: it is read, or refused with a ConfigError."""
    for read, text in ((Report.from_json, FIRST), (Trace.from_json, TRACE)):
        changed = _nested(json.loads(text), data.draw, other)
        with contextlib.suppress(ConfigError):
            assert str(read(json.dumps(changed)))


TRACE = Trace([Write("a", "zero_", region=Box((0,), (2,)))], parameters=("a", "b"), aliases={"c": "a"}).to_json()
