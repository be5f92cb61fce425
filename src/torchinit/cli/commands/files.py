"""Files: what a file of weights holds, written as another, and how it fits a model."""

from __future__ import annotations

import hashlib
import shlex
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchinit._folding import Column, Row, fold
from torchinit._tables import Table
from torchinit._text import count, dtype_name, fold_numbers, one_line, plain, shape_text
from torchinit.api import draft
from torchinit.checkpoints import Checkpoint, Loaded, Pretrained, fetch, open_checkpoint
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.cli import frame, models
from torchinit.cli.frame import UsageError, command, option, repeated
from torchinit.errors import CheckpointError
from torchinit.initializers import LoadReport
from torchinit.model import Shard
from torchinit.plans import Plan
from torchinit.rules import Name, Rule

# --- inspect ---------------------------------------------------------------------------------------------------------


@command(
    "inspect",
    option("file", metavar="FILE", help="a path, a URL or another source of weights"),
    "--part",
    option("--hashes", action="store_true", help="also the SHA-256 of each tensor's bytes; reads them all"),
    "--all --json",
)
def run_inspect(arguments: Namespace) -> None:
    """Print a line for each tensor, and what is known of the whole."""
    checkpoint = open_checkpoint(arguments.file, part=arguments.part)
    data = describe(checkpoint, fetch(arguments.file), hashes=arguments.hashes)
    frame.show(arguments, table(data, full=arguments.all), data)


def describe(checkpoint: Checkpoint, path: Path, *, hashes: bool) -> dict[str, Any]:
    """The content of a file of weights, as plain data."""
    tensors, odd = [], dict[str, None]()  # a file that cannot be opened is told once, not for each of its tensors
    for key in checkpoint:
        try:
            info = checkpoint.info(key)
        except CheckpointError as error:
            odd[frame.told(error)] = None
            continue
        entry = {"name": key, "shape": list(info.shape), "dtype": dtype_name(info.dtype), "bytes": info.nbytes}
        tensors.append({**entry, "sha256": _hash(checkpoint.read(key))} if hashes else entry)
    return {
        "file": str(path),
        "format": checkpoint.format,
        "part": checkpoint.part,
        "notes": [*checkpoint.notes, *odd],
        "bytes": path.stat().st_size,
        "sha256": hash_of(path),
        "metadata": dict(checkpoint.metadata),
        "tensors": tensors,
    }


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    models.feed(tensor, digest.update)
    return digest.hexdigest()


_COLUMNS = (Column("shape"), Column("dtype", once=True), Column("bytes", "sum", right=True), Column("sha256"))


def table(data: dict[str, Any], *, full: bool = False) -> Table:
    """The same as a table."""
    entries = data["tensors"]
    rows = [
        Row(each["name"], (shape_text(each["shape"]), each["dtype"], each["bytes"], each.get("sha256", "")[:16]))
        for each in entries
    ]
    part = f", part {data['part']!r}" if data["part"] else ""
    dtypes = {each["dtype"] for each in entries}
    all_of = f", {min(dtypes)}" if len(dtypes) == 1 else ""
    total = sum(each["bytes"] for each in entries)
    foot = [
        f"{data['file']}: {data['format']}{part}, {count(len(rows), 'tensor')} of {total:,} bytes{all_of}",
        f"{data['bytes']:,} bytes in the file, sha256 {data['sha256']}",
        *map(one_line, data["notes"]),
        *(one_line(f"{key}: {text}") for key, text in data["metadata"].items()),
    ]
    groups = fold(rows, _COLUMNS, among=[row.name for row in rows], full=full)
    return Table("tensor", _COLUMNS, groups, foot=tuple(foot), tree=not full)


# --- convert ---------------------------------------------------------------------------------------------------------


@command(
    "convert",
    option("file", metavar="IN", help="a path, a URL or another source of weights"),
    option("output", type=Path, metavar="OUT", help="the .safetensors to write"),
    "--part --force --json",
)
def run_convert(arguments: Namespace) -> None:
    """Write the file, whole or not at all, and print what is in it."""
    models.check_output(arguments.output, force=arguments.force)
    checkpoint = open_checkpoint(arguments.file, part=arguments.part)
    texts = {key: text for key, text in checkpoint.metadata.items() if not key.startswith("torchinit.")}
    tensors, tied = models.write_state(arguments.output, {key: checkpoint.read(key) for key in checkpoint}, texts)
    part = f" {checkpoint.part!r}" if checkpoint.part else ""
    size = sum(tensor.nbytes for tensor in tensors.values())
    lines = [f"{arguments.output}: {count(len(tensors), 'tensor')}, {size:,} bytes, from {checkpoint.format}{part}"]
    lines += [one_line(text) for text in (*checkpoint.notes, *(f"{name} is {first}" for name, first in tied.items()))]
    told = {"format": checkpoint.format, "part": checkpoint.part, "notes": [*checkpoint.notes], "tied": tied}
    data = {"output": str(arguments.output), "tensors": len(tensors), "bytes": size, **told}
    frame.show(arguments, "\n  ".join(lines), data)


# --- check-ckpt ------------------------------------------------------------------------------------------------------


@command(
    "check-ckpt",
    option("file", metavar="FILE", nargs="?", help="a path, a URL or another source of weights"),
    "--model",
    option("--recipe", metavar="RECIPE", help="compare the checkpoints of a recipe's rules, in place of FILE"),
    "--set --part --prefix --rename",
    repeated("--expect-missing", metavar="GLOB", help="what the file need not have"),
    repeated("--expect-unexpected", metavar="GLOB", help="what the file may have besides"),
    option("--skip-shapes", action="store_true", help="what differs in shape is left out, no finding"),
    option("--sha256", help="the hash that the file must have"),
    option("--header-only", action="store_true", help="do not read the values, which may be NaN"),
    "--device --all --json",
)
def run_check_ckpt(arguments: Namespace) -> bool:
    """Print the accounts; a finding: a strict plan with them would fail, or its run."""
    if arguments.model is None:
        raise UsageError("what is missing shows on a model: give --model")
    if (arguments.file is None) == (arguments.recipe is None):
        raise UsageError("give either a FILE or a --recipe that loads from one")
    rules = frame.given_recipe(arguments)
    rules = (Rule(Name("**"), _pretrained(arguments)),) if rules is None else rules
    plan = draft(models.model_of(arguments, arguments.device), rules)
    if not plan.loads:
        raise UsageError(f"{arguments.recipe}: no rule of it loads from a checkpoint")
    faults = {} if arguments.header_only else dict(_faults(plan))
    data = []
    for account in plan.loads:
        taken = (*account.loaded, *dict(account.adapted))
        values = [faults[name] for name in taken if name in faults]
        data.append({**account.to_dict(), "problems": [*account.problems_of(True), *values]})
    if arguments.json:
        frame.show(arguments, plan, data if arguments.recipe else data[0])
    else:
        for account in plan.loads:
            frame.show(arguments, account)
            for here, there in _remedies(account):  # to be pasted, so in one line
                print(plain(f"try {here}, in a rule {there}"))
        for text in (*faults.values(), *plan.problems):
            print(plain(text))
    return bool(faults or plan.problems or any(each["problems"] for each in data))


def _pretrained(arguments: Namespace) -> Pretrained:
    open_checkpoint(arguments.file, part=arguments.part)  # a file that is not there is a mistake of usage
    with frame.usage_errors():
        return Pretrained(
            arguments.file,
            arguments.prefix,
            rename=tuple((old, new) for old, new in arguments.rename),
            expect_missing=tuple(arguments.expect_missing),
            expect_unexpected=tuple(arguments.expect_unexpected),
            on_shape="skip" if arguments.skip_shapes else "error",
            part=arguments.part,
            sha256=arguments.sha256,
        )


def _faults(plan: Plan) -> Iterator[tuple[str, str]]:
    """The reasons for which the values of sites would be refused when they are loaded."""
    for site, fill in ((step.site, step.fill) for step in plan.steps):
        if isinstance(fill, Loaded):
            try:
                fill.prepare(Shard.whole(site.name, torch.empty(site.shape, dtype=site.dtype, device="meta")))
            except (CheckpointError, ValueError) as error:
                yield site.name, f"{site.name}: {frame.told(error)}"


def _remedies(account: LoadReport) -> Iterator[tuple[str, str]]:
    """What to write to be rid of what is wrong with an account, here and in a rule."""
    guess = account.guess
    if guess is not None and guess.options:
        yield guess.options, guess.arguments
    else:
        yield from _expecting("missing", _missing_parts(account))
    if account.leftovers:  # a glob for a key in all numbered layers
        yield from _expecting("unexpected", map(fold_numbers, account.unexpected))
    if any(site.reason == "shape" for site in account.mismatched):
        yield "--skip-shapes", "on_shape='skip'"


def _expecting(kind: str, globs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """How to say that these are expected to be missing or unexpected, unless there are many."""
    distinct = [*dict.fromkeys(globs)]
    if 0 < len(distinct) < 6:
        flags = shlex.join(word for glob in distinct for word in (f"--expect-{kind}", glob))
        yield flags, f"expect_{kind}={distinct}"


def _missing_parts(account: LoadReport) -> list[str]:
    """Globs of what is missing, where the file lacks whole parts of the model and has others."""
    known = {name.partition(".")[0] for name in (*account.loaded, *dict(account.adapted))}
    parts = [name.partition(".")[0] for name in account.missing]
    return [f"{part}.**" for part in parts] if known and not known & {*parts} else []
