"""Runs: a plan carried out; the only place that writes. Observers are told of each write."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit._text import count, dtype_name
from torchinit.errors import CheckpointError, RunError
from torchinit.initializers.elementwise import Fill
from torchinit.initializers.moments import Moments
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.statistics import measure
from torchinit.model.dtensor import behind, blank_shards, shards_of
from torchinit.model.shards import Shard
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.model.valueless import refuse_fakes
from torchinit.noise import DrawRequest, Noise
from torchinit.noise.settings import plain_thread
from torchinit.plans.plan import Plan, Step
from torchinit.plans.report import Record, Report

Parts: TypeAlias = tuple[Shard, ...]
"""The parts of one site that are here."""

Shards: TypeAlias = Mapping[str, Shard | Sequence[Shard]]
"""The parts of each site that are here, by name: one or several."""

Progress: TypeAlias = Callable[[Step], None]
"""Called with each step once it is written; small ones are written, and told, several at a time."""

Agree: TypeAlias = Callable[[Sequence[str]], list[str]]
"""Combines the errors of this process with those of all that work on the same model."""

_BASIS: Final = 2
"""The draw index of parametrizations: fills use 0 and 1."""

_ELEMENTS = 1 << 22
"""A batch has no more elements than this, a few milliseconds' work, unless a single step has: progress stays smooth."""


# --- observers -------------------------------------------------------------------------------------------------


class RunObserver(Protocol):
    """An observer of runs, told of each write, since draws go around torch's dispatcher; it may raise before any."""

    def before_run(self, step: Step, parts: Sequence[Shard]) -> None:
        """Hear of a step that will be written; of all of them, before anything is written."""

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """Hear of a step that has just been written."""


_WITNESSES: ContextVar[tuple[RunObserver, ...]] = ContextVar("torchinit_witnesses", default=())


def run_observers() -> tuple[RunObserver, ...]:
    """The observers of this thread's runs."""
    return _WITNESSES.get()


@contextmanager
def observing_runs(witness: RunObserver) -> Iterator[None]:
    """Tell an observer of all runs of this thread."""
    token = _WITNESSES.set((*run_observers(), witness))
    try:
        yield
    finally:
        _WITNESSES.reset(token)


@contextmanager
def unobserved(*, watched: bool) -> Iterator[None]:
    """Without torch's modes, which would tell of the same writes once more; nothing changes if nobody is watching."""
    # A step is one write to the observers, whatever draws it: a kernel that no dispatcher sees, or ten operations.
    if not watched:
        yield
        return
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


# --- runs ------------------------------------------------------------------------------------------------------


def run(
    plan: Plan,
    shards: Shards,
    noise: Noise,
    *,
    stats: bool = True,
    progress: Progress | None = None,
    agree: Agree | None = None,
) -> Report:
    """Writes every step of a plan into the shards, by name, and reports what happened.

    Where the noise is stateful, overwritten writes are made, too, since they move the generator.
    ``stats=False`` measures nothing; ``agree`` adds the errors of other ranks. Before anything is written, raises
    PlanError when the plan has problems, RunError when a shard is missing, on the meta device, or part of a tensor
    that the noise must draw whole.

    >>> from torchinit import Constant, Leaf, Rule, sites
    >>> from torchinit.plans import make_plan
    >>> from torchinit.noise import Keyed
    >>> model = nn.Linear(2, 3)
    >>> plan = make_plan(sites(model), [Rule(Leaf("bias"), Constant(1.0))])
    >>> run(plan, local_shards(model), Keyed(0))["bias"].measured.mean
    1.0
    """
    started = time.perf_counter()
    plan.check()
    steps = plan.writes if noise.is_stateful else plan.steps
    refuse_fakes()
    here = {name: (part,) if isinstance(part, Shard) else tuple(part) for name, part in shards.items()}
    _check(steps, here, noise, agree)
    with nullcontext() if noise.is_stateful else plain_thread(), torch.no_grad():
        for witness in run_observers():
            for step in steps:
                witness.before_run(step, here[step.site.name])
        seconds = _write_all(steps, here, noise, progress)
        rules = {id(step.rule): step.rule for step in plan.steps}
        texts = {key: str(rule) for key, rule in rules.items()}  # one for many steps, and a rule may have much to say
        records = [
            _record(step, here[step.site.name], noise, texts[id(step.rule)], seconds[step.site.name], stats)
            for step in plan.steps
        ]
    return Report(
        tuple(records),
        untouched=tuple(site.name for site in plan.untouched if site.kind == "parameter" and (site.lack or site.numel)),
        skipped=tuple((skip.site.name, skip.why) for skip in plan.skipped),
        unused=tuple(hint for _, hint in plan.unused),
        noise=str(noise),
        seconds=time.perf_counter() - started,
        buffers=tuple(site.name for site in plan.untouched if site.kind == "buffer"),
        loads=plan.loads,
        reach=plan.reach,
        lacking=tuple((site.name, site.lack) for site in plan.without_values if site.lack),
    )


def _write_all(
    steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise, progress: Progress | None
) -> Mapping[str, float]:
    """Write the steps, tell of each, and return the seconds of each site, those of a batch shared by elements."""
    seconds: dict[str, float] = defaultdict(float)
    for batch, jobs in _batches(steps, shards, noise):
        begun = time.perf_counter()
        with unobserved(watched=bool(run_observers())):
            if jobs:
                noise.fill_many(jobs)
            else:
                write(batch[0][0].fill, batch[0][1], noise)
        spent, elements = time.perf_counter() - begun, sum(_elements(parts) for _, parts in batch)
        for step, parts in batch:
            seconds[step.site.name] += spent * (_elements(parts) / elements if elements else 1 / len(batch))
            for witness in run_observers():
                witness.written(step, parts)
            if progress:
                progress(step)
    return seconds


def _batches(
    steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise
) -> Iterator[tuple[list[tuple[Step, Parts]], list[DrawRequest]]]:
    """All steps in order: several that draw, with their draws, or one that writes itself."""
    # A keyed draw depends on its name alone, so neighbours can be drawn by one call of the engine: a model has hundreds
    # of small tensors. Torch's generator is moved by each draw, so there every step is written for itself. A batch ends
    # at a step that does more than draw, so that all keep their order, and at _ELEMENTS.
    batch: list[tuple[Step, Parts]] = []
    jobs: list[DrawRequest] = []
    elements = 0
    for step in steps:
        parts = shards[step.site.name]
        own = [] if noise.is_stateful else _jobs(step.fill, parts)
        if batch and (not own or elements + _elements(parts) > _ELEMENTS):
            yield batch, jobs
            batch, jobs, elements = [], [], 0
        if not own:
            yield [(step, parts)], []
            continue
        batch.append((step, parts))
        jobs += own
        elements += _elements(parts)
    if batch:
        yield batch, jobs


def _elements(parts: Parts) -> int:
    return sum(part.local.numel() for part in parts)


def _jobs(fill: Fill, parts: Parts) -> list[DrawRequest]:
    """The draws that write all parts; none where the fill does something else as well."""
    jobs = [job for part in parts if (job := fill.job(part)) is not None]
    return jobs if len(jobs) == len(parts) else []


@torch.no_grad()
def write(fill: Fill, parts: Shard | Parts, noise: Noise) -> None:
    """Write one fill into the parts of one site, without a plan and a report."""
    parts = (parts,) if isinstance(parts, Shard) else parts
    if noise.is_stateful and any(part.local.dtype.itemsize == 1 for part in parts):  # torch draws no 8-bit floats
        wide = [replace(part, local=torch.empty_like(part.local, dtype=torch.float32)) for part in parts]
        fill.write_parts(wide, noise)
        for part, drawn in zip(parts, wide, strict=True):
            part.local.copy_(drawn.local)
    else:
        fill.write_parts(parts, noise)


def _check(steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise, agree: Agree | None) -> None:
    reasons = {step.site.name: why for step in steps if (why := _obstacle(step, shards.get(step.site.name), noise))}
    texts = [f"{name}: {why}" for name, why in reasons.items()]
    if texts := agree(texts) if agree else texts:
        raise RunError(f"{count(len(texts), 'site')} cannot be written; nothing was", texts)


def _obstacle(step: Step, parts: Parts | None, noise: Noise) -> str | None:
    """The reason why a step cannot be written, if there is one."""
    if parts is None:
        return "not in the model"
    if step.fill.obstacle:
        return step.fill.obstacle
    drawn = noise.is_stateful and not is_verbatim(step.rule.init)
    for part in parts:
        if part.shape != step.site.shape:
            return f"planned for shape {step.site.shape}, but it has {part.shape}"
        if part.local.is_meta:
            remedy = "call torchinit.materialize, or model.to_empty(device=...) first"
            return f"is on the meta device, so there is nothing to write to; {remedy}"
        if drawn and not part.is_whole:
            return "only part of it is here, which needs a seed: give one"
        if drawn and part.spread:
            return "other ranks hold copies of it, which must not differ, and that needs a seed: give one"
        try:
            step.fill.prepare(part)
        except (ValueError, CheckpointError) as error:
            return str(error)
    return None


def _record(step: Step, parts: Parts, noise: Noise, rule: str, seconds: float, stats: bool) -> Record:
    site, notes = step.site, step.notes
    dtype = parts[0].local.dtype if parts else site.dtype
    values, expected = [part.local for part in parts], _expected(step, parts, dtype)
    # A parametrized tensor was drawn into memory of its own. The module's ``right_inverse`` takes it, and the tensor
    # that the module then computes is measured: a constraint may change it, as no formula foresees.
    if parts and parts[0].store is not None:
        stored = _stored(parts[0], parts[0].store, noise)
        written, values = values, [part.local for part in shards_of(site.name, stored)]
        if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-6) for pair in zip(values, written, strict=True)):
            notes = (*notes, "the parametrization made other values of these")
            expected = None
    return Record(
        name=site.name,
        shape=site.shape,
        dtype=dtype_name(dtype),
        fill=str(step.fill),
        rule=rule,
        origin=step.rule.origin,
        expected=expected,
        measured=measure(*values) if stats else None,
        over=tuple(map(str, step.over)),
        aliases=tuple(view.name for view in site.aliases),
        notes=notes,
        seconds=seconds,
        bytes=sum(part.local.nbytes for part in parts),
    )


def _expected(step: Step, parts: Parts, dtype: torch.dtype) -> Moments | None:
    """The moments of what is here; None for a part of a tensor whose parts differ."""
    if not all(part.is_whole for part in parts) and not step.fill.elementwise:
        return None
    return step.fill.parts(step.site.shape) if dtype.is_complex else step.fill.moments(step.site.shape)


def _stored(shard: Shard, store: Callable[[Tensor], Tensor], noise: Noise) -> Tensor:
    """The tensor that a parametrization computes once it has the values; torch's orthogonal one completes a basis."""
    with noise.lending(shard.name, _BASIS, shard.local.device, shard.local.dtype):
        try:
            return store(shard.local)
        except Exception as error:
            error.add_note(f"{shard.name}: the parametrization would not take the values")
            raise


def local_shards(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, tuple[Shard, ...]]:
    """The parts of a model that are here, by site name; only of ``names``, if given: of a DTensor its local part.

    Raises RunError for a DTensor that is placed as ``Partial``.

    >>> sorted(local_shards(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    wanted = None if names is None else set(names)
    parts: dict[str, tuple[Shard, ...]] = {}
    for entry in walk_tensors(model):
        is_wanted = wanted is None or entry.name in wanted
        if is_wanted and entry.name not in parts and (entry.computed_as is None or entry.computed_as.assign):
            parts[entry.name] = shards_of_entry(entry, entry.name)
    return parts


def shards_of_entry(entry: HeldTensor, name: str) -> tuple[Shard, ...]:
    """The parts of a module's tensor that are here, drawn under a name; none of one that takes no values."""
    if entry.computed_as is None:
        return shards_of(name, behind(entry.tensor))
    return blank_shards(name, entry.tensor, entry.computed_as.assign) if entry.computed_as.assign else ()
