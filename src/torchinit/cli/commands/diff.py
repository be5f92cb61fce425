"""`torchinit diff`: two recipes, plans, reports, fingerprints or weight files, and where they differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from torchinit import Plan, Report, sites
from torchinit.cli import options, weights
from torchinit.cli.errors import UsageError
from torchinit.plans import Change, Fingerprint, Record, make_plan

if TYPE_CHECKING:
    from torchinit.cli.options import Commands

Kind: TypeAlias = Literal["recipe", "plan", "report", "fingerprint", "weights"]
Changes: TypeAlias = tuple[Change, ...]

_PRINTED: set[Kind] = {"report", "fingerprint", "weights"}
"""What has a fingerprint, and so can be compared with another kind."""


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("diff", help="compare two recipes, plans, reports, fingerprints or weight files")
    parser.add_argument("a", metavar="A", help="a recipe; a plan, report or fingerprint (JSON); a .safetensors file")
    parser.add_argument("b", metavar="B", help="another one of the same kind, or of one with a fingerprint")
    options.add_model(parser, "--model")
    options.add_json(parser)
    parser.set_defaults(run=run, on_error=2)


def run(arguments: argparse.Namespace) -> int:
    """Prints the differences, a line each; 1 if there are any."""
    changes = _changes(arguments)
    if arguments.json:
        keys = ("name", "verb", "before", "after")
        print(json.dumps([{key: getattr(change, key) for key in keys} for change in changes], indent=2))
    else:
        print("\n".join(map(str, changes)) or "no difference")
    return 1 if changes else 0


def _changes(arguments: argparse.Namespace) -> Changes:
    kind, other = kind_of(arguments.a), kind_of(arguments.b)
    if kind != other and {kind, other} <= _PRINTED:
        first, second = _print_of(arguments.a, kind), _print_of(arguments.b, other)
        # What no file holds is no difference from a file.
        return first.persistent.diff(second.persistent) if "weights" in (kind, other) else first.diff(second)
    if kind != other:
        raise UsageError(f"{arguments.a} is a {kind} and {arguments.b} a {other}: they cannot be compared")
    compare: dict[Kind, Callable[[argparse.Namespace], Changes]] = {
        "recipe": _recipes,
        "plan": _plans,
        "report": _reports,
        "fingerprint": _fingerprints,
        "weights": _weights,
    }
    return compare[kind](arguments)


def kind_of(text: str) -> Kind:
    """What a file is, by its suffix and, for JSON, by what it holds; the name of a scheme is a recipe."""
    path = Path(text)
    if path.suffix == ".safetensors":
        return "weights"
    if path.suffix == ".json" and path.is_file():
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{text} is no JSON: {error}") from None
        keys: dict[str, Kind] = {"steps": "plan", "records": "report", "sites": "fingerprint"}
        return next((kind for key, kind in keys.items() if isinstance(data, dict) and key in data), "recipe")
    return "recipe"


def _recipes(arguments: argparse.Namespace) -> Changes:
    if arguments.model is None:
        raise UsageError("what two recipes do differently shows on a model: give --model")
    known = sites(options.model_of(arguments, "meta"))
    first, second = (make_plan(known, options.recipe_of(text)).check() for text in (arguments.a, arguments.b))
    return first.diff(second)


def _plans(arguments: argparse.Namespace) -> Changes:
    first, second = (Plan.from_json(_text(path)) for path in (arguments.a, arguments.b))
    return first.diff(second)


def _reports(arguments: argparse.Namespace) -> Changes:
    first, second = (_report(path) for path in (arguments.a, arguments.b))
    changes = changes_between(
        {record.name: _gist(record) for record in first}, {record.name: _gist(record) for record in second}
    )
    if first.fingerprint is None or second.fingerprint is None:
        return changes
    known = {change.name for change in changes}
    return *changes, *(bits for bits in first.fingerprint.diff(second.fingerprint) if bits.name not in known)


def _report(path: str) -> Report:
    try:
        return Report.from_json(_text(path))
    except ValueError as error:
        raise UsageError(f"{path} is not a report that `torchinit apply --json` wrote: {error}") from error


def _fingerprints(arguments: argparse.Namespace) -> Changes:
    first, second = (_print_of(path, "fingerprint") for path in (arguments.a, arguments.b))
    return first.diff(second)


def _print_of(path: str, kind: Kind) -> Fingerprint:
    """The fingerprint that a file is, has, or that its tensors have."""
    if kind == "weights":
        return weights.fingerprint_of(Path(path))
    if kind == "report":
        found = _report(path).fingerprint
        if found is None:
            raise UsageError(f"{path} is a report without a fingerprint")
        return found
    try:
        return Fingerprint.from_json(_text(path))
    except ValueError as error:
        raise UsageError(f"{path} is not a fingerprint that `torchinit fingerprint --json` wrote: {error}") from error


def _gist(record: Record) -> str:
    """What counts in a record: everything but the time it took."""
    seen = record.measured
    values = f": mean {seen.mean:.9g}, std {seen.std:.9g}, min {seen.min:.9g}, max {seen.max:.9g}" if seen else ""
    return f"{record.fill} in {list(record.shape)} {record.dtype} by {record.rule}{values}"


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def changes_between(first: dict[str, str], second: dict[str, str]) -> Changes:
    """The changes from one table of texts to another.

    >>> print(*changes_between({"a": "1", "b": "2"}, {"b": "3"}), sep=chr(10))
    removed a: 1
    changed b: 2 -> 3
    """
    changes = []
    for name in dict.fromkeys([*first, *second]):
        before, after = first.get(name, ""), second.get(name, "")
        if name not in second:
            changes.append(Change(name, "removed", before=before))
        elif name not in first:
            changes.append(Change(name, "added", after=after))
        elif before != after:
            changes.append(Change(name, "changed", before, after))
    return tuple(changes)


def _weights(arguments: argparse.Namespace) -> Changes:
    return weights.compare(Path(arguments.a), Path(arguments.b))
