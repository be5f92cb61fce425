"""diff: compare two recipes, plans, reports, fingerprints or weight files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torchinit._limits as limits
from torchinit._files import read_bounded
from torchinit.api import sites
from torchinit.cli import options, weights
from torchinit.cli.errors import UsageError
from torchinit.plans.diff import Diff
from torchinit.plans.fingerprint import Fingerprint
from torchinit.plans.plan import Plan
from torchinit.plans.planner import make_plan
from torchinit.plans.report import Record, Report

FileKind: TypeAlias = Literal["recipe", "plan", "report", "fingerprint", "weights"]
Saved = TypeVar("Saved", Plan, Report, Fingerprint)


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("a", metavar="A", help="a recipe; a plan, report or fingerprint (JSON); a .safetensors file")
    parser.add_argument("b", metavar="B", help="another one of the same kind, or of one with a fingerprint")
    options.add_model(parser, "--model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of both recipes")
    options.add_all(parser)
    options.add_json(parser)
    parser.set_defaults(on_error=2)


def run(arguments: argparse.Namespace) -> int:
    """Print the differences, a line each; 1 if there are any."""
    changes = _changes(arguments, arguments.a, arguments.b)
    data = [{key: getattr(change, key) for key in ("name", "verb", "before", "after")} for change in changes]
    words = _words(arguments.a, arguments.b)
    for noun, old, new in () if arguments.json else words:  # its list is one of tensors
        print(f"{noun} {old} in {arguments.a}, and {new} in {arguments.b}")
    options.show(arguments, data, changes)
    return 1 if changes or words else 0


def _words(a: str, b: str) -> list[tuple[str, str, str]]:
    """How two starts differ in what they were made of, where both are reports that say so."""
    if {kind_of(a), kind_of(b)} != {"report"}:
        return []
    first, second = (read_saved(Report, path).origin for path in (a, b))
    return [*first.differences(second)] if first and second else []


def _changes(arguments: argparse.Namespace, a: str, b: str) -> Diff:
    kind, other = kind_of(a), kind_of(b)
    if kind != other and {kind, other} <= {"report", "fingerprint", "weights"}:
        first, second = _fingerprint(a, kind), _fingerprint(b, other)
        # What no file holds is no difference from a file.
        return first.persistent.diff(second.persistent) if "weights" in (kind, other) else first.diff(second)
    if kind != other:
        raise UsageError(f"{a} is a {kind} and {b} a {other}: they cannot be compared")
    match kind:
        case "recipe":
            if arguments.model is None:
                raise UsageError("what two recipes do differently shows on a model: give --model")
            known = sites(options.model_of(arguments, "meta"))
            before, after = (make_plan(known, options.recipe_of(text, arguments.set)).check() for text in (a, b))
            return before.diff(after)
        case "plan":
            return read_saved(Plan, a).diff(read_saved(Plan, b))
        case "report":
            return _report_changes(read_saved(Report, a), read_saved(Report, b))
        case "fingerprint":
            return read_saved(Fingerprint, a).diff(read_saved(Fingerprint, b))
        case "weights":
            return weights.compare(Path(a), Path(b))


def kind_of(text: str) -> FileKind:
    """The kind of a file, by its suffix and, for JSON, by what it holds; the name of a scheme is a recipe."""
    path = Path(text)
    if path.suffix == ".safetensors":
        return "weights"
    if path.suffix == ".json" and path.is_file():
        try:
            data = json.loads(read_bounded(path, limits.JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{text} is not JSON: {error}") from None
        keys: dict[str, FileKind] = {"steps": "plan", "records": "report", "sites": "fingerprint"}
        return next((kind for key, kind in keys.items() if isinstance(data, dict) and key in data), "recipe")
    return "recipe"


def read_saved(cls: type[Saved], path: str) -> Saved:
    """The plan, report or fingerprint that a file holds; UsageError for any other."""
    noun = cls.__name__.lower()
    command = "apply" if cls is Report else noun
    try:
        return cls.from_json(read_bounded(path, limits.JSON_BYTES).decode())
    except ValueError as error:
        raise UsageError(f"{path} is not a {noun} that `torchinit {command} --json` wrote: {error}") from error


def _fingerprint(path: str, kind: FileKind) -> Fingerprint:
    """The fingerprint that a file is, has, or that its tensors have."""
    if kind != "report":
        return weights.fingerprint_of(Path(path)) if kind == "weights" else read_saved(Fingerprint, path)
    fingerprint = read_saved(Report, path).fingerprint
    if fingerprint is None:
        raise UsageError(f"{path} is a report without a fingerprint")
    return fingerprint


def _report_changes(first: Report, second: Report) -> Diff:
    before, after = ({record.name: record for record in report} for report in (first, second))
    diff = Diff.between(before, after, agree=lambda one, other: _facts(one) == _facts(other), facts=_facts)
    changes = sorted(diff, key=lambda change: ("removed", "added", "changed").index(change.verb))
    if first.fingerprint is not None and second.fingerprint is not None:
        known = {change.name for change in changes}
        changes += [bits for bits in first.fingerprint.diff(second.fingerprint) if bits.name not in known]
    known = {change.name for change in changes}
    return Diff.of(changes, [name for name in diff.same if name not in known])


def _facts(record: Record) -> tuple[str, ...]:
    """All of a record but the time it took."""
    seen = record.measured
    figures = {"mean": seen.mean, "std": seen.std, "min": seen.min, "max": seen.max} if seen else {}
    values = (f"{name} {figures[name]:.9g}" if figures else "" for name in ("mean", "std", "min", "max"))
    return record.fill, f"in {list(record.shape)}", record.dtype, f"by {record.rule}", *values
