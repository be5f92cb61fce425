"""Runs: a plan carried out; the only place that writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from torchinit.errors import CheckpointError, RunError, count
from torchinit.initializers.elementwise import Fill
from torchinit.initializers.moments import Moments
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.statistics import measure
from torchinit.model.dtensor import behind, blank_shards, shards_of
from torchinit.model.shards import Shard
from torchinit.model.traversal import Held, held
from torchinit.noise import Job, Noise
from torchinit.plans.observers import unobserved, witnesses
from torchinit.plans.plan import Plan, Step
from torchinit.plans.report import Record, Report

Shards: TypeAlias = Mapping[str, Shard | Sequence[Shard]]
"""What of each site is here, by name: one part of it or several."""

Progress = Callable[[Step], None]
"""Called with each step once it is written; small ones are written, and told, several at a time."""


Agree = Callable[[Sequence[str]], list[str]]
"""Given what keeps this process from writing, says what keeps any that works on the same model from it."""


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

    Where the noise is sequential, overwritten writes are made, too, since they move the generator.
    ``stats=False`` measures nothing; ``agree`` lets other ranks have a say. Before anything is written, raises
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
    steps = plan.writes if noise.sequential else plan.steps
    here = {name: (part,) if isinstance(part, Shard) else tuple(part) for name, part in shards.items()}
    _check(steps, here, noise, agree)
    seconds: dict[str, float] = {}
    with torch.no_grad():
        for witness in witnesses():
            for step in steps:
                witness.announced(step, here[step.site.name])
        for batch in _batches(steps, here, noise):
            begun = time.perf_counter()
            with unobserved(watched=bool(witnesses())):
                batch.write(noise)
            spent = time.perf_counter() - begun
            for name, part in batch.shares():
                seconds[name] = seconds.get(name, 0.0) + part * spent
            _tell(batch, progress)
        rules = {id(step.rule): step.rule for step in plan.steps}
        texts = {key: str(rule) for key, rule in rules.items()}  # one for many steps, and a rule may have much to say
        records = [
            _record(step, here[step.site.name], noise, texts[id(step.rule)], seconds[step.site.name], stats)
            for step in plan.steps
        ]
    return Report(
        tuple(records),
        tuple(site.name for site in plan.untouched if site.kind == "parameter" and (site.lack or site.numel)),
        tuple((skip.site.name, skip.why) for skip in plan.skipped),
        tuple(hint for _, hint in plan.unused),
        str(noise),
        time.perf_counter() - started,
        tuple(site.name for site in plan.untouched if site.kind == "buffer"),
        plan.loads,
        reach=plan.reach,
        lacking=tuple((site.name, site.lack) for site in plan.without_values if site.lack),
    )


def _tell(batch: _Batch, progress: Progress | None) -> None:
    """Lets all who want to know hear of what has been written."""
    for step, parts in zip(batch.steps, batch.shards, strict=True):
        for witness in witnesses():
            witness.written(step, parts)
        if progress:
            progress(step)


Parts: TypeAlias = tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Steps that are written by one call: several that draw, or one that writes itself."""

    steps: list[Step]
    shards: list[Parts]
    jobs: list[Job]

    def write(self, noise: Noise) -> None:
        if self.jobs:
            noise.fill_many(self.jobs)
        else:
            _write(self.steps[0].fill, self.shards[0], noise)

    def shares(self) -> Iterator[tuple[str, float]]:
        """Each site's name, and its part of the elements, which is what it is charged of the time."""
        elements = sum(map(_elements, self.shards))
        for step, parts in zip(self.steps, self.shards, strict=True):
            yield step.site.name, _elements(parts) / elements if elements else 1 / len(self.steps)


def _elements(parts: Parts) -> int:
    return sum(part.local.numel() for part in parts)


def _batches(steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise) -> Iterator[_Batch]:
    """All steps in their order; neighbours that draw share a batch where the noise has no order of its own."""
    batch, elements = _Batch([], [], []), 0
    for step in steps:
        parts = shards[step.site.name]
        jobs = [] if noise.sequential else _jobs(step.fill, parts)
        if batch.steps and (not jobs or elements + _elements(parts) > _ELEMENTS):
            yield batch
            batch, elements = _Batch([], [], []), 0
        if not jobs:
            yield _Batch([step], [parts], [])
            continue
        batch.steps.append(step)
        batch.shards.append(parts)
        batch.jobs.extend(jobs)
        elements += _elements(parts)
    if batch.steps:
        yield batch


def _jobs(fill: Fill, parts: Parts) -> list[Job]:
    """The draws that write all parts; none where the fill does something else as well."""
    jobs = [job for part in parts if (job := fill.job(part)) is not None]
    return jobs if len(jobs) == len(parts) else []


_ELEMENTS = 1 << 22
"""A batch has no more elements than this, a few milliseconds' work, unless a single step has: progress stays smooth."""


def write(fill: Fill, shard: Shard, noise: Noise) -> None:
    """Writes one fill into one shard, without a plan and a report.

    >>> from torchinit.initializers.elementwise import Constant
    >>> from torchinit.noise import Keyed
    >>> tensor = torch.empty(2)
    >>> write(Constant(1.0), Shard.whole("weight", tensor), Keyed(0))
    >>> tensor
    tensor([1., 1.])
    """
    with torch.no_grad():
        _write(fill, (shard,), noise)


def _write(fill: Fill, parts: Parts, noise: Noise) -> None:
    if noise.sequential and any(part.local.dtype.itemsize == 1 for part in parts):  # torch draws no 8-bit floats
        wide = [replace(part, local=torch.empty_like(part.local, dtype=torch.float32)) for part in parts]
        fill.write_parts(wide, noise)
        for part, drawn in zip(parts, wide, strict=True):
            part.local.copy_(drawn.local)
    else:
        fill.write_parts(parts, noise)


def _check(steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise, agree: Agree | None) -> None:
    found = {step.site.name: why for step in steps if (why := _hindrance(step, shards.get(step.site.name), noise))}
    texts = [f"{name}: {why}" for name, why in found.items()]
    if texts := agree(texts) if agree else texts:
        raise RunError(f"{count(len(texts), 'site')} cannot be written; nothing was", texts)


def _hindrance(step: Step, parts: Parts | None, noise: Noise) -> str | None:
    """Why the step cannot be written."""
    if parts is None:
        return "not in the model"
    if step.fill.obstacle:
        return step.fill.obstacle
    drawn = noise.sequential and not is_verbatim(step.rule.init)
    for part in parts:
        if part.shape != step.site.shape:
            return f"planned for shape {step.site.shape}, but it has {part.shape}"
        if part.local.is_meta:
            return (
                "is on the meta device, so there is nothing to write to; call torchinit.materialize, or"
                " model.to_empty(device=...) first"
            )
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
    held, expected = [part.local for part in parts], _expected(step, parts, dtype)
    if parts and parts[0].store is not None:
        made = shards_of(site.name, _hand_over(parts[0], parts[0].store, noise))
        written, held = held, [part.local for part in made]
        if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-6) for pair in zip(held, written, strict=True)):
            notes = (*notes, "the parametrization made other values of these")
            expected = None
    return Record(
        name=site.name,
        shape=site.shape,
        dtype=str(dtype).removeprefix("torch."),
        fill=str(step.fill),
        rule=rule,
        origin=step.rule.origin,
        expected=expected,
        measured=measure(*held) if stats else None,
        over=tuple(str(rule) for rule in step.over),
        aliases=tuple(view.name for view in site.aliases),
        notes=notes,
        seconds=seconds,
        bytes=sum(part.local.nbytes for part in parts),
    )


def _expected(step: Step, parts: Parts, dtype: torch.dtype) -> Moments | None:
    """The moments of what is here; None for a part of a tensor whose parts differ."""
    if not all(part.is_whole for part in parts) and not step.fill.elementwise:
        return None
    shape = step.site.shape
    return step.fill.parts(shape) if dtype.is_complex else step.fill.moments(shape)


def _hand_over(shard: Shard, store: Callable[[Tensor], Tensor], noise: Noise) -> Tensor:
    """Gives the values to a parametrization, which may draw: torch's orthogonal one completes a basis."""
    with noise.lending(shard.name, _BASIS, shard.local.device):
        try:
            return store(shard.local)
        except Exception as error:
            error.add_note(f"{shard.name}: the parametrization would not take the values")
            raise


_BASIS = 2
"""The draw index of parametrizations: fills use 0 and 1."""


def local_shards(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, tuple[Shard, ...]]:
    """What of a model is here, by site name; only of ``names``, if given: of a DTensor its local part.

    Raises RunError for a DTensor that is placed as ``Partial``.

    >>> sorted(local_shards(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    wanted = None if names is None else set(names)
    found: dict[str, tuple[Shard, ...]] = {}
    for one in held(model):
        if one.name in found or (wanted is not None and one.name not in wanted):
            continue
        if one.way is None or one.way.assign:
            found[one.name] = shards_held(one, one.name)
    return found


def shards_held(one: Held, name: str) -> tuple[Shard, ...]:
    """What of a tensor that a module holds is here, drawn under a name; nothing of one that takes no values.

    >>> [shard.name for one in held(nn.Linear(2, 3)) for shard in shards_held(one, f"0.{one.name}")]
    ['0.weight', '0.bias']
    """
    if one.way is None:
        return shards_of(name, behind(one.tensor))
    return blank_shards(name, one.tensor, one.way.assign) if one.way.assign else ()
