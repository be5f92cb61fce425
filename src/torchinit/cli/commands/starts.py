"""Starts: a recipe or a plan on a model, shown, written to a file, or made again from a report."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchinit._files import replacing
from torchinit._version import __version__
from torchinit.api import draft, materialize, sites
from torchinit.checkpoints import fetch
from torchinit.checkpoints.formats.safetensors import SafetensorsCheckpoint
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.checkpoints.open import origin_of
from torchinit.cli import frame, models
from torchinit.cli.commands.diff import kind_of, read_saved
from torchinit.cli.frame import ModelError, UsageError, command, option
from torchinit.distributed import own_starts
from torchinit.distributed.cost import cost_of, measured
from torchinit.distributed.partition import parse_mesh, parse_override
from torchinit.errors import CheckpointError, PlanError
from torchinit.initializers.composed import Opaque
from torchinit.model.names import Counted
from torchinit.model.traversal import walk_tensors
from torchinit.noise import STREAM, Keyed
from torchinit.plans import Diff, Fingerprint, Plan, Report, Skipped, local_shards, run
from torchinit.plans.fingerprint import fingerprint
from torchinit.plans.only import prove
from torchinit.plans.origin import Origin
from torchinit.rules import Recipe
from torchinit.rules.rule import SCHEMA
from torchinit.tracing import capture

# --- plan ------------------------------------------------------------------------------------------------------------


def _mesh(parser: ArgumentParser) -> None:
    mesh = parser.add_argument_group("on a mesh of ranks", "what each rank holds and how long it takes, by arithmetic")
    mesh.add_argument("--mesh", metavar="512x8", help="the sizes of its dimensions")
    mesh.add_argument("--parallel", metavar="WAYS", default="", help="what each dimension does: replicate,fsdp,tp,ep")
    text = "cut these sites otherwise than usual"
    mesh.add_argument("--place", action="append", default=[], metavar="WAY:NAME=AXIS", help=text)


_OUTPUT = "also write the plan to a JSON file, which `torchinit apply MODEL FILE` carries out"


@command(
    "plan MODEL RECIPE --all --json",
    option("-o", "--output", type=Path, metavar="FILE", help=_OUTPUT),
    "--force --device",
    _mesh,
)
def run_plan(arguments: Namespace) -> None:
    """Print the plan, what is wrong with it included; raise PlanError if anything is, and write no file."""
    if arguments.output:
        frame.check_free(arguments.output, force=arguments.force)
    rules = frame.given_recipe(arguments)
    model = models.model_of(arguments, arguments.device)
    plan = _drafted(arguments, rules, model)
    if arguments.mesh:
        with frame.usage_errors():
            partition = parse_mesh(arguments.mesh, arguments.parallel)
            partition = replace(partition, overrides=tuple(map(parse_override, arguments.place)))
        cost = cost_of(plan, partition, measured(plan))
        frame.show(arguments, f"{cost.table()}\n{plan.summary()}", cost.to_dict())
    else:
        frame.show(arguments, plan, title=f"{type(model).__name__} with {arguments.recipe or 'its own start'}")
    plan.check(complete=arguments.complete or arguments.only is not None, strict=arguments.strict)
    if arguments.output:
        with replacing(arguments.output) as file:
            file.write(plan.to_json().encode())


def _drafted(arguments: Namespace, rules: Recipe | None, model: nn.Module) -> Plan:
    """The plan of a recipe, or of the start that a transformers model gives itself, whatever is wrong with it."""
    if rules is not None:
        return draft(model, rules, only="missing" if arguments.only == ["missing"] else arguments.only)
    if hasattr(model, "initialize_weights") and arguments.only:
        raise UsageError("--only and --set are for a recipe: give one")
    return _own_start(model)


def _own_start(model: nn.Module) -> Plan:
    """The plan of the start that a transformers model gives itself, whose draws then belong to names."""

    def code(copied: Any) -> None:
        for module in copied.modules():
            vars(module).pop("_is_hf_initialized", None)  # by which transformers knows that it is done
        copied.initialize_weights()

    if not hasattr(model, "initialize_weights"):
        raise UsageError(
            f"give a RECIPE for {type(model).__name__}: only a transformers: model is asked for its own start"
        )
    return capture(model, code)


# --- apply -----------------------------------------------------------------------------------------------------------

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
_DTYPE = "convert the model first (default: as its factory makes it)"


@command(
    "apply MODEL RECIPE --all --json --output --force",
    option("--seed", type=int, default=0, help="where the values come from (default: 0)"),
    option("--dtype", choices=(*_SHORT, *_SHORT.values()), help=_DTYPE),
    option("--html", metavar="FILE", help="write the report as a page that needs no other file, too"),
    option("--no-stats", action="store_false", dest="stats", help="write without measuring"),
)
def run_apply(arguments: Namespace) -> None:
    """Write the file and print the report; where the values are not as planned there is no file."""
    models.check_output(arguments.output, force=arguments.force)
    frame.check_page(arguments.html)
    with frame.usage_errors("--seed"):
        noise = Keyed(arguments.seed)
    is_saved = arguments.recipe is not None and kind_of(arguments.recipe) == "plan"
    saved = read_saved(Plan, arguments.recipe) if is_saved else None
    rules = None if saved is not None else frame.given_recipe(arguments)
    model = models.model_of(arguments, "cpu", arguments.seed)
    if arguments.dtype:
        model.to(getattr(torch, _SHORT.get(arguments.dtype, arguments.dtype)))
    if saved is not None and (arguments.only or arguments.set):
        raise UsageError(f"--{'only' if arguments.only else 'set'} is for a recipe; a plan says itself what it does")
    is_own = saved is None and rules is None
    plan = _drafted(arguments, rules, model) if saved is None else _of_model(saved, model)
    plan = _runnable(plan) if is_own else plan
    plan.check(complete=arguments.complete or arguments.only is not None, strict=arguments.strict)
    with frame.progress_bar("writing", sum(step.site.numel for step in plan)) as advance:
        progress = (lambda step: advance(step.site.numel)) if advance else None
        work = partial(run, plan, local_shards(model), noise, stats=arguments.stats, progress=progress)
        report = prove(model, plan, work)
    prints, origin = fingerprint(model), origin_of("own" if is_own else "initialize", plan, noise, arguments.recipe)
    report = replace(report, fingerprint=prints, origin=origin)
    subject = f"{type(model).__name__} with {arguments.recipe or 'its own start'}, seed {noise.seed}"
    if arguments.html:
        report.save_html(arguments.html, subject=subject)
    frame.show(arguments, report, title=subject)
    report.assert_ok()
    made_of = {
        "torchinit.version": __version__,
        "torchinit.stream": STREAM,
        "torchinit.seed": str(noise.seed),
        "torchinit.fingerprint": prints.persistent.total,
        "torchinit.origin": json.dumps(SCHEMA.encode(replace(origin, files={}), Origin), sort_keys=True),
    }
    models.write_state(arguments.output, model.state_dict(), made_of)


def _of_model(plan: Plan, model: nn.Module) -> Plan:
    """The plan itself; PlanError if its sites are not those of the model, in name and shape."""
    planned, here = ({site.name: site.shape for site in each} for each in (plan.sites, sites(model)))
    problems = [f"the model has no {name}, which the plan has" for name in planned if name not in here]
    problems += [f"the plan has no {name}, which the model has" for name in here if name not in planned]
    shapes = [(name, planned[name], here[name]) for name in planned if name in here and planned[name] != here[name]]
    problems += [f"{name} is planned for shape {before}, but it has {now}" for name, before, now in shapes]
    if problems:
        raise PlanError("the plan is one of another model; nothing was written", problems)
    return plan


def _runnable(plan: Plan) -> Plan:
    """A captured plan without the steps that no fill describes: those sites have been made when the model was built."""
    opaque = [step.site for step in plan if isinstance(step.fill, Opaque)]
    made = [Skipped(site, "stays as its own code has made it") for site in opaque]
    steps = tuple(step for step in plan if step.site not in opaque)
    return replace(plan, steps=steps, skipped=(*plan.skipped, *made))


# --- reproduce -------------------------------------------------------------------------------------------------------

_REPORT = "a report (JSON) with an origin, or a .safetensors file that `torchinit apply` wrote"


@command(
    "reproduce",
    option("report", metavar="REPORT", help=_REPORT),
    "--model --all --json",
)
def run_reproduce(arguments: Namespace) -> bool:
    """Print whether the start is the same; a finding: it is not, or the recipe or a source has other bytes now."""
    if arguments.model is None:
        raise UsageError("give the factory of the model: --model package.module:factory")
    is_file = arguments.report.endswith(".safetensors")
    report, origin, prints = _read(arguments.report, is_file=is_file)
    if origin.seed is None or origin.gaps:
        why = "; ".join(origin.gaps) or "it was drawn from torch's generator, without a seed"
        raise UsageError(f"{arguments.report} holds a start that cannot be made again: {why}")
    problems = [*_changed(origin, arguments.report)]
    made = _made_again(arguments, report, origin, origin.seed)
    assert made.fingerprint is not None
    assert made.origin is not None
    if made.origin.plan != origin.plan:
        problems.append("the plan is another one: some sites get other fills, shapes or dtypes than they did")
    now = made.fingerprint.persistent if is_file else made.fingerprint
    written, why = {record.name for record in report}, "no rule writes it, so it is as the factory makes it"
    bits = prints.diff(now)
    changes = Diff.of((each if is_file or each.name in written else replace(each, why=why) for each in bits), bits.same)
    same = not (problems or changes)
    told = origin.differences(made.origin)
    notes = [f"{noun} {new} now, and was {old}" for noun, old, new in told if noun.startswith("the version")]
    if arguments.json:
        data = {"made_again": same, "fingerprint": prints.total, "now": now.total, "problems": problems, "notes": notes}
        frame.show(arguments, changes, {**data, **changes.to_dict()})
        return not same
    print(*problems, *notes, sep="\n", end="\n" if problems or notes else "")
    if changes:
        frame.show(arguments, changes)
        print(f"not the same: fingerprint {now.total}, and was {prints.total}")
    else:
        print(f"made again{'' if same else ', but of what is named above'}: fingerprint {prints.total}")
    return not same


def _read(path: str, *, is_file: bool) -> tuple[Report, Origin, Fingerprint]:
    """The report that a file is, or that stands for a file of weights; UsageError where there is no origin in it."""
    if is_file:
        text = SafetensorsCheckpoint(Path(path)).metadata.get("torchinit.origin", "null")
        origin = SCHEMA.decode(json.loads(text), Origin | None, f"the origin in {path}")
        report = Report(fingerprint=models.fingerprint_of(Path(path)), origin=origin)
    else:
        report = read_saved(Report, path)
    if report.origin is None or report.fingerprint is None:
        raise UsageError(
            f"{path} does not say what it was made of; `torchinit apply --json` does, and initialize(...,"
            " fingerprint=True)"
        )
    return report, report.origin, report.fingerprint


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


def _made_again(arguments: Namespace, report: Report, origin: Origin, seed: int) -> Report:
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
        model = models.model_of(arguments, "cpu", seed)
        plan = _runnable(_own_start(model))
    else:
        with counted as root:
            plan = draft(root, rules, trainable=origin.trainable) if rules else Plan()
    if len(report):  # what other rules or the model were given since is not written; only= left some alone
        plan = replace(plan, steps=tuple(step for step in plan.steps if step.site.name in written))
    with Counted(model, origin.under, origin.inside) as root:
        noise = Keyed(seed)
        made = run(plan, local_shards(root), noise, stats=False)
        return replace(made, fingerprint=fingerprint(root), origin=origin_of(origin.verb, plan, noise))


def _built(arguments: Namespace, device: models.Device, seed: int) -> nn.Module:
    """The model; moved to the meta device where its factory cannot build it there."""
    try:
        return models.model_of(arguments, device, seed)
    except ModelError:
        if device == "cpu":
            raise
        return models.model_of(arguments, "cpu", seed).to("meta")
