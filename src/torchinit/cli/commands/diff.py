"""Diff: two recipes, plans, reports, fingerprints or files of weights compared; and the fingerprint of one."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torchinit._limits as limits
from torchinit._files import read_bounded
from torchinit._text import count, format_table
from torchinit.api import sites
from torchinit.cli import frame, models
from torchinit.cli.frame import UsageError, command, option, repeated
from torchinit.plans import Diff, Fingerprint, Plan, Record, Report, make_plan
from torchinit.plans.fingerprint import fingerprint

FileKind: TypeAlias = Literal["recipe", "plan", "report", "fingerprint", "weights"]
Saved = TypeVar("Saved", Plan, Report, Fingerprint)


@command(
    "diff",
    option("a", metavar="A", help="a recipe; a plan, report or fingerprint (JSON); a .safetensors file"),
    option("b", metavar="B", help="another one of the same kind, or of one with a fingerprint"),
    "--model",
    repeated("--set", metavar="KEY=VALUE", help="an argument of both recipes"),
    "--device --all --json",
    on_error=2,
)
def run_diff(arguments: Namespace) -> bool:
    """Print the differences, a line each; each is a finding."""
    a, b, words = arguments.a, arguments.b, list[tuple[str, str, str]]()
    kinds = kind_of(a), kind_of(b)
    if arguments.set and {*kinds} != {"recipe"}:
        raise UsageError("--set is for two recipes")
    if kinds == ("report", "report"):
        first, second = read_saved(Report, a), read_saved(Report, b)
        changes = _report_changes(first, second)
        if first.origin and second.origin:  # how they differ in what they were made of
            words = [*first.origin.differences(second.origin)]
    else:
        changes = _changes(arguments, *kinds)
    data = [{key: getattr(change, key) for key in ("name", "verb", "before", "after")} for change in changes]
    for noun, old, new in () if arguments.json else words:  # its list is one of tensors
        print(f"{noun} {old} in {a}, and {new} in {b}")
    frame.show(arguments, changes, data)
    return bool(changes or words)


def _changes(arguments: Namespace, kind: FileKind, other: FileKind) -> Diff:
    a, b = arguments.a, arguments.b
    if kind == other == "recipe":
        if arguments.model is None:
            raise UsageError("what two recipes do differently shows on a model: give --model")
        known = sites(models.model_of(arguments, arguments.device))
        before, after = (make_plan(known, frame.recipe_of(text, arguments.set)).check() for text in (a, b))
        return before.diff(after)
    if kind == other == "plan":
        return read_saved(Plan, a).diff(read_saved(Plan, b))
    if kind == other == "weights":
        return models.compare(Path(a), Path(b))
    if {kind, other} <= {"report", "fingerprint", "weights"}:
        first, second = _fingerprint(a, kind), _fingerprint(b, other)
        # What no file holds is no difference from a file.
        return first.persistent.diff(second.persistent) if "weights" in (kind, other) else first.diff(second)
    raise UsageError(f"{a} is a {kind} and {b} a {other}: they cannot be compared")


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
        return models.fingerprint_of(Path(path)) if kind == "weights" else read_saved(Fingerprint, path)
    prints = read_saved(Report, path).fingerprint
    if prints is None:
        raise UsageError(f"{path} is a report without a fingerprint")
    return prints


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
    values = (f"{name} {getattr(seen, name):.9g}" if seen else "" for name in ("mean", "std", "min", "max"))
    return record.fill, f"in {list(record.shape)}", record.dtype, f"by {record.rule}", *values


@command(
    "fingerprint MODEL --json",
    option("--seed", type=int, default=0, help="where the factory's own draws start (default: 0)"),
)
def run_fingerprint(arguments: Namespace) -> None:
    """Print the digests, a line each, and the total, also that of what a file of weights would hold."""
    if arguments.model.endswith(".safetensors"):
        digests = models.fingerprint_of(Path(arguments.model))
    else:
        digests = fingerprint(models.model_of(arguments, "cpu", arguments.seed))
    lines = [format_table(("digest", "name"), [(digest, name) for name, digest in digests.sites.items()])]
    lines += [f"{name} is {first}" for name, first in digests.aliases.items()]
    lines.append(f"{digests.total}  total of {count(len(digests.sites), 'site')}")
    if digests.transient:
        left_out = count(len(digests.transient), "buffer")
        lines.append(f"{digests.persistent.total}  without {left_out} that no state dict holds")
    frame.show(arguments, "\n".join(lines), digests.to_dict())
