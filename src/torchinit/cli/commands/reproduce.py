"""reproduce: make a start again from its report or its file of weights, and prove that it is the same."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from torchinit.api import draft, materialize
from torchinit.checkpoints.formats.safetensors import SafetensorsCheckpoint
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.checkpoints.hub.schemes import fetch
from torchinit.checkpoints.open import origin_of
from torchinit.cli import options, weights
from torchinit.cli.commands.apply import runnable
from torchinit.cli.commands.diff import read_saved
from torchinit.cli.errors import ModelError, UsageError
from torchinit.cli.models import Device
from torchinit.distributed import own_starts
from torchinit.errors import CheckpointError
from torchinit.model.names import Counted
from torchinit.model.traversal import walk_tensors
from torchinit.noise import STREAM, Keyed
from torchinit.plans.diff import Diff
from torchinit.plans.fingerprint import fingerprint
from torchinit.plans.origin import Origin
from torchinit.plans.plan import Plan
from torchinit.plans.report import Report
from torchinit.plans.run import local_shards
from torchinit.plans.run import run as carry_out
from torchinit.rules.catalog import SCHEMA


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    text = "a report (JSON) with an origin, or a .safetensors file that `torchinit apply` wrote"
    parser.add_argument("report", metavar="REPORT", help=text)
    options.add_model(parser, "--model")
    options.add_all(parser)
    options.add_json(parser)
    parser.set_defaults(only=None, set=[])


def run(arguments: argparse.Namespace) -> int:
    """Print whether the start is the same; 1 if it is not, or if the recipe or a source has other bytes than it had."""
    if arguments.model is None:
        raise UsageError("give the factory of the model: --model package.module:factory")
    report, origin = _read(arguments.report)
    if origin.seed is None or origin.gaps:
        why = "; ".join(origin.gaps) or "it was drawn from torch's generator, without a seed"
        raise UsageError(f"{arguments.report} holds a start that cannot be made again: {why}")
    problems = [*_changed(origin, arguments.report)]
    made = _made_again(arguments, report, origin, origin.seed)
    assert report.fingerprint is not None
    assert made.fingerprint is not None
    assert made.origin is not None
    if made.origin.plan != origin.plan:
        problems.append("the plan is another one: some sites get other fills, shapes or dtypes than they did")
    is_file = arguments.report.endswith(".safetensors")
    total, now = report.fingerprint.total, made.fingerprint.persistent if is_file else made.fingerprint
    written, why = {record.name for record in report}, "no rule writes it, so it is as the factory makes it"
    bits = report.fingerprint.diff(now)
    changes = Diff.of((each if is_file or each.name in written else replace(each, why=why) for each in bits), bits.same)
    same = not (problems or changes)
    told = origin.differences(made.origin)
    notes = [f"{noun} {new} now, and was {old}" for noun, old, new in told if noun.startswith("the version")]
    if arguments.json:
        data = {"made_again": same, "fingerprint": total, "now": now.total, "problems": problems, "notes": notes}
        print(json.dumps({**data, **changes.to_dict()}, indent=2))
        return 0 if same else 1
    print(*problems, *notes, sep="\n", end="\n" if problems or notes else "")
    if changes:
        options.show_table(arguments, changes)
    if changes:
        print(f"not the same: fingerprint {now.total}, and was {total}")
    else:
        print(f"made again{'' if same else ', but of what is named above'}: fingerprint {total}")
    return 0 if same else 1


def _read(path: str) -> tuple[Report, Origin]:
    """The report that a file is, or that stands for a file of weights; UsageError where there is no origin in it."""
    if path.endswith(".safetensors"):
        text = SafetensorsCheckpoint(Path(path)).metadata.get("torchinit.origin", "null")
        origin = SCHEMA.decode(json.loads(text), Origin | None, f"the origin in {path}")
        report = Report(fingerprint=weights.fingerprint_of(Path(path)), origin=origin)
    else:
        report = read_saved(Report, path)
    if report.origin is None or report.fingerprint is None:
        raise UsageError(
            f"{path} does not say what it was made of; `torchinit apply --json` does, and initialize(...,"
            " fingerprint=True)"
        )
    return report, report.origin


def _changed(origin: Origin, path: str) -> Iterator[str]:
    """A line for all that is not as it was: the recipe in the report or its file, sources, the stream."""
    if origin.changed:
        yield f"the recipe in {path} has been changed: its digest is not the one that is kept beside it"
    if origin.stream != STREAM:
        yield f"the values are those of {origin.stream}, and this is {STREAM}"
    for name, known in origin.files.items():
        if Path(name).is_file() and (found := hash_of(Path(name))) != known:
            yield f"the recipe's file {name} has other bytes: its SHA-256 is {found}, and was {known}"
    for name, known in origin.sources.items():
        try:
            found = hash_of(fetch(name))
        except (CheckpointError, OSError) as error:
            raise UsageError(f"the source {name} cannot be had: {error}") from error
        if found != known:
            yield f"the source {name} has other bytes: its SHA-256 is {found}, and was {known}"


def _made_again(arguments: argparse.Namespace, report: Report, origin: Origin, seed: int) -> Report:
    """The report of the start, carried out once more on a model of the same factory."""
    model = _built(arguments, "cpu" if origin.verb == "initialize" else "meta", seed)
    counted = Counted(model, origin.under, origin.inside)
    counted.check()
    written = {record.name: record.dtype for record in report}
    dtypes = {name: getattr(torch, dtype) for name, dtype in {**origin.dtypes, **written}.items()}
    with counted as root:
        for entry in walk_tensors(root):
            if entry.computed_as is None and entry.tensor.dtype != dtypes.get(entry.name, entry.tensor.dtype):
                entry.tensor.data = entry.tensor.data.to(dtypes[entry.name])
    rules = [*origin.recipe] or None
    if origin.verb != "initialize" and (rules or own_starts(model)):
        return materialize(
            model, rules, seed=seed, stats=False, fingerprint=True, trainable=origin.trainable,
            under=origin.under, inside=origin.inside,
        )  # fmt: skip
    if origin.verb == "own":
        model = _built(arguments, "cpu", seed)
        plan = runnable(options.own_start(arguments, model))
    else:
        with counted as root:
            plan = draft(root, rules, trainable=origin.trainable) if rules else Plan()
    if len(report):  # what other rules or the model were given since is not written; only= left some alone
        plan = replace(plan, steps=tuple(step for step in plan.steps if step.site.name in written))
    with Counted(model, origin.under, origin.inside) as root:
        noise = Keyed(seed)
        made = carry_out(plan, local_shards(root), noise, stats=False)
        return replace(made, fingerprint=fingerprint(root), origin=origin_of(origin.verb, plan, noise))


def _built(arguments: argparse.Namespace, device: Device, seed: int) -> nn.Module:
    """The model; moved to the meta device where its factory cannot build it there."""
    try:
        return options.model_of(arguments, device, seed)
    except ModelError:
        if device == "cpu":
            raise
        return options.model_of(arguments, "cpu", seed).to("meta")
