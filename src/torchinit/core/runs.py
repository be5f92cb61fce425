"""Runs: a plan carried out; the only place that writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchinit.core.fills import Fill, is_elementwise
from torchinit.core.measures import measure
from torchinit.core.moments import Moments
from torchinit.core.places import held
from torchinit.core.plans import Plan, Step
from torchinit.core.reports import Record, Report
from torchinit.core.shards import Shard
from torchinit.errors import RunError, count
from torchinit.noise import Job, Noise

Progress = Callable[[Step], None]
"""Called with each step once it is written; small ones are written, and told, several at a time."""


def run(
    plan: Plan,
    shards: Mapping[str, Shard],
    noise: Noise,
    *,
    stats: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Writes every step of a plan into the shards, by name, and reports what happened.

    Where the noise is sequential, overwritten writes are made, too, since they move the generator.
    ``stats=False`` measures nothing. Before anything is written, raises PlanError when the plan has problems,
    RunError when a shard is missing, on the meta device, or only part of a tensor that the noise must draw whole.

    >>> from torchinit import Constant, Leaf, Rule, make_plan, sites
    >>> from torchinit.noise import Keyed
    >>> model = nn.Linear(2, 3)
    >>> plan = make_plan(sites(model), [Rule(Leaf("bias"), Constant(1.0))])
    >>> run(plan, local_shards(model), Keyed(0))["bias"].measured.mean
    1.0
    """
    started = time.perf_counter()
    plan.check()
    steps = plan.writes if noise.sequential else plan.steps
    _check(steps, shards, noise)
    seconds: dict[str, float] = {}
    with torch.no_grad():
        for batch in _batches(steps, shards, noise):
            begun = time.perf_counter()
            batch.write(noise)
            spent = time.perf_counter() - begun
            for name, part in batch.shares():
                seconds[name] = seconds.get(name, 0.0) + part * spent
            if progress:
                for step in batch.steps:
                    progress(step)
        records = [_record(step, shards[step.site.name], noise, seconds[step.site.name], stats) for step in plan.steps]
    return Report(
        tuple(records),
        tuple(site.name for site in plan.untouched if site.kind == "parameter"),
        tuple((skip.site.name, skip.why) for skip in plan.skipped),
        tuple(hint for _, hint in plan.unused),
        str(noise),
        time.perf_counter() - started,
        tuple(site.name for site in plan.untouched if site.kind == "buffer"),
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Steps that are written by one call: several that draw, or one that writes itself."""

    steps: list[Step]
    shards: list[Shard]
    jobs: list[Job]

    def write(self, noise: Noise) -> None:
        if self.jobs:
            noise.fill_many(self.jobs)
        else:
            _write(self.steps[0].fill, self.shards[0], noise)

    def shares(self) -> Iterator[tuple[str, float]]:
        """Each site's name, and its part of the elements, which is what it is charged of the time."""
        elements = sum(shard.local.numel() for shard in self.shards)
        for step, shard in zip(self.steps, self.shards, strict=True):
            yield step.site.name, shard.local.numel() / elements if elements else 1 / len(self.steps)


def _batches(steps: Iterable[Step], shards: Mapping[str, Shard], noise: Noise) -> Iterator[_Batch]:
    """All steps in their order; neighbours that draw share a batch where the noise has no order of its own."""
    batch, elements = _Batch([], [], []), 0
    for step in steps:
        shard = shards[step.site.name]
        job = None if noise.sequential else step.fill.job(shard)
        if batch.steps and (job is None or elements + shard.local.numel() > _ELEMENTS):
            yield batch
            batch, elements = _Batch([], [], []), 0
        if job is None:
            yield _Batch([step], [shard], [])
            continue
        batch.steps.append(step)
        batch.shards.append(shard)
        batch.jobs.append(job)
        elements += shard.local.numel()
    if batch.steps:
        yield batch


_ELEMENTS = 1 << 22
"""A batch has no more elements than this, a few milliseconds' work, unless a single step has: progress stays smooth."""


def write(fill: Fill, shard: Shard, noise: Noise) -> None:
    """Writes one fill into one shard, without a plan and a report.

    >>> from torchinit.core.fills import Constant
    >>> from torchinit.noise import Keyed
    >>> tensor = torch.empty(2)
    >>> write(Constant(1.0), Shard.whole("weight", tensor), Keyed(0))
    >>> tensor
    tensor([1., 1.])
    """
    with torch.no_grad():
        _write(fill, shard, noise)


def _write(fill: Fill, shard: Shard, noise: Noise) -> None:
    if noise.sequential and shard.local.dtype.itemsize == 1:  # torch draws no 8-bit floats
        wide = replace(shard, local=torch.empty_like(shard.local, dtype=torch.float32))
        fill.write(wide, noise)
        shard.local.copy_(wide.local)
    else:
        fill.write(shard, noise)


def _check(steps: Iterable[Step], shards: Mapping[str, Shard], noise: Noise) -> None:
    found = []
    for step in steps:
        name, shard = step.site.name, shards.get(step.site.name)
        if shard is None:
            found.append(f"{name}: not in the model")
        elif shard.shape != step.site.shape:
            found.append(f"{name}: planned for shape {step.site.shape}, but it has {shard.shape}")
        elif shard.local.is_meta:
            found.append(
                f"{name}: is on the meta device, so there is nothing to write to; call model.to_empty(device=...)"
            )
        elif noise.sequential and not shard.is_whole:
            found.append(f"{name}: only part of it is here, which needs a seed: give one")
    if found:
        raise RunError(f"{count(len(found), 'site')} cannot be written; nothing was", dict.fromkeys(found))


def _record(step: Step, shard: Shard, noise: Noise, seconds: float, stats: bool) -> Record:
    site, notes = step.site, step.notes
    held, expected = shard.local, _expected(step, shard)
    if shard.store is not None:
        held = _hand_over(shard, shard.store, noise)
        if not torch.allclose(held, shard.local, rtol=1e-3, atol=1e-6):
            notes = (*notes, "the parametrization made other values of these")
            expected = None
    return Record(
        name=site.name,
        shape=site.shape,
        dtype=str(shard.local.dtype).removeprefix("torch."),
        fill=str(step.fill),
        rule=str(step.rule),
        origin=step.rule.origin,
        expected=expected,
        measured=measure(held) if stats else None,
        over=tuple(str(rule) for rule in step.over),
        aliases=tuple(view.name for view in site.aliases),
        notes=notes,
        seconds=seconds,
        bytes=shard.local.numel() * shard.local.element_size(),
    )


def _expected(step: Step, shard: Shard) -> Moments | None:
    """The moments of what is here; None for a part of a tensor whose parts differ."""
    if not shard.is_whole and not is_elementwise(step.fill):
        return None
    return step.fill.parts(shard.shape) if shard.local.is_complex() else step.fill.moments(shard.shape)


def _hand_over(shard: Shard, store: Callable[[Tensor], Tensor], noise: Noise) -> Tensor:
    """Gives the values to a parametrization, which may draw: torch's orthogonal one completes a basis."""
    with _seeded(shard, noise):
        try:
            return store(shard.local)
        except Exception as error:
            error.add_note(f"{shard.name}: the parametrization would not take the values")
            raise


@contextmanager
def _seeded(shard: Shard, noise: Noise) -> Iterator[None]:
    """Torch's generator in a state that belongs to the shard's name; a sequential noise leaves it as it is."""
    if noise.sequential:
        yield
        return
    word = torch.empty(1)
    noise.fill(Shard.whole(shard.name, word), "integer", (0, 1 << 24), _BASIS)
    with torch.random.fork_rng(devices=[shard.local.device] if shard.local.is_cuda else []):
        torch.default_generator.manual_seed(int(word))
        yield


_BASIS = 2
"""The draw index of parametrizations: fills use 0 and 1."""


def local_shards(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Shard]:
    """The shards of a model that is wholly here, by site name; only those of ``names``, if given.

    >>> sorted(local_shards(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    wanted = None if names is None else set(names)
    found: dict[str, Shard] = {}
    for one in held(model):
        if one.name in found or (wanted is not None and one.name not in wanted):
            continue
        if one.way is None:
            found[one.name] = Shard.whole(one.name, one.tensor)
        elif one.way.assign:
            found[one.name] = Shard.whole(one.name, torch.empty_like(one.tensor), one.way.assign)
    return found
