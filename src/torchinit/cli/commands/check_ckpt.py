"""check-ckpt: compare a file of weights with a model; nothing is loaded."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import torch

from torchinit._text import fold_numbers, plain
from torchinit.api import draft
from torchinit.checkpoints import Loaded, Pretrained, open_checkpoint
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.errors import CheckpointError
from torchinit.initializers.load_report import LoadReport
from torchinit.model.shards import Shard
from torchinit.plans.plan import Plan
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Name


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    option = parser.add_argument
    option("file", metavar="FILE", nargs="?", help="a path, a URL or another source of weights")
    options.add_model(parser, "--model")
    option("--recipe", metavar="RECIPE", help="compare the checkpoints of a recipe's rules, in place of FILE")
    options.add_part(parser)
    option("--prefix", help="take the keys that begin with this, without it")
    option("--rename", nargs=2, action="append", default=[], metavar=("PATTERN", "NEW"), help="as re.sub; repeatable")
    option("--expect-missing", action="append", default=[], metavar="GLOB", help="what the file need not have")
    option("--expect-unexpected", action="append", default=[], metavar="GLOB", help="what the file may have besides")
    option("--skip-shapes", action="store_true", help="what differs in shape is left out, no finding")
    option("--sha256", help="the hash that the file must have")
    option("--header-only", action="store_true", help="do not read the values, which may be NaN")
    option("--device", choices=("meta", "cpu"), default="meta", help="where the model is built")
    options.add_all(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the accounts; 1 if a strict plan with them would fail, or its run."""
    if arguments.model is None:
        raise UsageError("what is missing shows on a model: give --model")
    if (arguments.file is None) == (arguments.recipe is None):
        raise UsageError("give either a FILE or a --recipe that loads from one")
    rules = options.recipe_of(arguments.recipe) if arguments.recipe else (Rule(Name("**"), _pretrained(arguments)),)
    plan = draft(options.model_of(arguments, arguments.device), rules)
    if not plan.loads:
        raise UsageError(f"{arguments.recipe}: no rule of it loads from a checkpoint")
    faults = {} if arguments.header_only else dict(_faults(plan))
    data = []
    for account in plan.loads:
        taken = (*account.loaded, *dict(account.adapted))
        values = [faults[name] for name in taken if name in faults]
        data.append({**account.to_dict(), "problems": [*account.problems_of(True), *values]})
    if arguments.json:
        options.show(arguments, data if arguments.recipe else data[0], "")
    else:
        for account in plan.loads:
            options.show_table(arguments, account)
            for here, there in _remedies(account):  # to be pasted, so in one line
                print(plain(f"try {here}, in a rule {there}"))
        for text in (*faults.values(), *plan.problems):
            print(plain(text))
    return 1 if faults or plan.problems or any(each["problems"] for each in data) else 0


def _pretrained(arguments: argparse.Namespace) -> Pretrained:
    open_checkpoint(arguments.file, part=arguments.part)  # a file that is not there is a mistake of usage
    try:
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
    except ValueError as error:
        raise UsageError(str(error)) from None


def _faults(plan: Plan) -> Iterator[tuple[str, str]]:
    """The reasons for which the values of sites would be refused when they are loaded."""
    for site, fill in ((step.site, step.fill) for step in plan.steps):
        if isinstance(fill, Loaded):
            try:
                fill.prepare(Shard.whole(site.name, torch.empty(site.shape, dtype=site.dtype, device="meta")))
            except (CheckpointError, ValueError) as error:
                yield site.name, f"{site.name}: {error}"


def _remedies(account: LoadReport) -> list[tuple[str, str]]:
    """What to write to be rid of what is wrong with an account, here and in a rule."""
    guess, remedies = account.guess, list[tuple[str, str]]()
    if guess is not None and guess.options:
        remedies.append((guess.options, guess.arguments))
    elif globs := _globs(account):
        flags = shlex.join(word for glob in globs for word in ("--expect-missing", glob))
        remedies.append((flags, f"expect_missing={globs}"))
    if account.leftovers and (globs := _spare(account)):
        flags = shlex.join(word for glob in globs for word in ("--expect-unexpected", glob))
        remedies.append((flags, f"expect_unexpected={globs}"))
    if any(site.reason == "shape" for site in account.mismatched):
        remedies.append(("--skip-shapes", "on_shape='skip'"))
    return remedies


def _globs(account: LoadReport) -> list[str]:
    """Globs of what is missing, where the file lacks whole parts of the model and has others."""
    known = {name.partition(".")[0] for name in (*account.loaded, *dict(account.adapted))}
    parts = dict.fromkeys(name.partition(".")[0] for name in account.missing)
    return [f"{part}.**" for part in parts] if known and not known & {*parts} and len(parts) < 6 else []


def _spare(account: LoadReport) -> list[str]:
    """Globs of what the file has besides, one for a key in all numbered layers, unless there are many."""
    globs = dict.fromkeys(map(fold_numbers, account.unexpected))
    return [*globs] if len(globs) < 6 else []
