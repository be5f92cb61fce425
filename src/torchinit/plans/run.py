"""Runs: a plan carried out; the only place that writes, with the simple steps."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from torchinit._frozen import collector_paused
from torchinit._text import abbreviate, count
from torchinit.errors import RunError
from torchinit.initializers.elementwise import Constant, Drawn, Fill, write_each
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.statistics import Moments, measure, measure_each
from torchinit.model.dtensor import BEHIND, behind, blank_shards, shards_of
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.shards import Shard
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.noise import Noise
from torchinit.noise.settings import plain_thread
from torchinit.plans.observers import (
    KeyingObserver,
    Parts,
    keying_observer,
    noise_in_use,
    run_observers,
    unobserved,
)
from torchinit.plans.plan import Plan, Step
from torchinit.plans.report import AWAY, Record, Report, Texts
from torchinit.plans.simple import SimpleSteps

_Batch: TypeAlias = list[tuple[Step, Parts, int]]
"""Steps that are written together, each with its parts and the number of elements in them."""

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


def run(
    plan: Plan,
    shards: Shards,
    noise: Noise,
    *,
    stats: bool = True,
    records: bool = True,
    progress: Progress | None = None,
    agree: Agree | None = None,
) -> Report:
    """Writes every step of a plan into the shards, by name, and reports what happened.

    Where the noise is stateful, overwritten writes are made, too, since they move the generator.
    ``stats=False`` measures nothing, and without ``records`` the report has only those that cannot be spared;
    ``agree`` adds the errors of other ranks. Before anything is written, raises
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
    keying, noise = keying_observer(noise), noise_in_use(noise)
    refuse_fakes()
    watched = keying or progress or run_observers()
    whole = shards.tensors if isinstance(shards, HeldShards) and not watched else {}
    simple, others = SimpleSteps.among(() if noise.is_stateful else plan.drafts, whole, noise)
    steps = plan.writes if noise.is_stateful else plan.steps if others else ()
    rest = [step for step in steps if noise.is_stateful or step.site.name in others]
    here = {name: _parts(shards[name]) for name in [step.site.name for step in rest] if name in shards}
    _check(rest, here, noise, agree)
    if away := [name for name, parts in here.items() if not parts]:
        logging.getLogger("torchinit").warning("%s: %s", abbreviate(away), AWAY)
    here |= _named(rest, here, keying) if keying else {}
    # Where nobody else's code runs, nobody's garbage waits for the collector.
    guard = collector_paused() if is_only_ours(rest, progress) else nullcontext()
    with guard, nullcontext() if noise.is_stateful else plain_thread(), torch.no_grad():
        for witness in run_observers():
            for step in rest:
                witness.before_run(step, here[step.site.name])
        with _telling_how_far([*simple.drafts, *rest], here) as written:
            simple.write(noise)
            written.extend(simple.drafts)
            seconds = _write_all(rest, here, noise, progress, written)
            told = [step for step in plan.steps if step.site.name in here] if rest else []
            told = told if records else [step for step in told if _is_stored(here[step.site.name])]
            made = _records(told, here, noise, seconds, stats)
            made_later = simple.records(plan, stats=stats) if simple.drafts and records else None
    report = Report(
        tuple(made),
        untouched=tuple(site.name for site in plan.untouched if site.kind == "parameter" and (site.lack or site.numel)),
        skipped=tuple((skip.site.name, skip.why) for skip in plan.skipped),
        unused=tuple(hint for _, hint in plan.unused),
        noise=str(noise),
        seconds=time.perf_counter() - started,
        buffers=tuple(site.name for site in plan.untouched if site.kind == "buffer"),
        loads=plan.loads,
        reach=plan.reach,
        arguments=plan.arguments,
        lacking=tuple((site.name, site.lack) for site in plan.without_values if site.lack),
    )
    return report.postponed("records", partial(_in_order, plan, made, made_later)) if made_later else report


@contextmanager
def _telling_how_far(steps: Sequence[Any], shards: Mapping[str, Parts]) -> Iterator[list[Any]]:
    """A list for the steps that are written, in their order; an error or Ctrl-C within gets a note of them."""
    try:
        yield (written := list[Any]())
    except BaseException as error:
        names = dict.fromkeys(step.site.name for step in steps)
        left = {step.site.name for step in steps[len(written) :]}  # also of what was to be written over
        left |= {name for name in names if _is_stored(shards.get(name, ()))}  # which waits for its record
        done, others = (abbreviate([name for name in names if (name in left) is is_left]) for is_left in (False, True))
        known, total = len(names) - len(left), count(len(names), "site")
        rest = f"; each of the others holds its old values, new ones or both: {others}" * bool(left)
        error.add_note(f"{known} of {total} had been written by then{done and f' ({done})'}{rest}")
        raise


def is_only_ours(steps: Iterable[Step], progress: Progress | None) -> bool:
    """Whether nobody else's code runs while these steps are written."""
    kinds = {type(step.fill) for step in steps}
    return not (progress or run_observers()) and all(issubclass(kind, (Constant, Drawn)) for kind in kinds)


def _in_order(plan: Plan, made: Iterable[Record], make: Callable[[], Iterable[Record]]) -> tuple[Record, ...]:
    """The records that are made and those that are made now, in the order of the steps."""
    records = {record.name: record for record in (*made, *make())}
    return tuple([records[step.site.name] for step in plan.steps])


def _parts(parts: Shard | Sequence[Shard]) -> Parts:
    return (parts,) if isinstance(parts, Shard) else tuple(parts)


def _named(steps: Iterable[Step], shards: Mapping[str, Parts], keying: KeyingObserver) -> dict[str, Parts]:
    """The parts that steps draw, under the names that an observer has for them."""
    drawn = (step for step in steps if not (isinstance(step.fill, Constant) or is_verbatim(step.rule.init)))
    return {step.site.name: keying.named(parts) for step in drawn if (parts := shards[step.site.name])}


def _write_all(
    steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise, progress: Progress | None, written: list[Any]
) -> Mapping[str, float]:
    """Write the steps, tell of each, and return the seconds of each site, those of a batch shared by elements."""
    seconds: dict[str, float] = defaultdict(float)
    observers = run_observers()
    for batch in _batches(steps, shards, noise):
        begun = time.perf_counter()
        with unobserved(watched=bool(observers)):
            _write_batch(batch, noise)
        written += [step for step, _, _ in batch]
        spent, elements = time.perf_counter() - begun, sum(numel for _, _, numel in batch)
        for step, parts, numel in batch:
            seconds[step.site.name] += spent * (numel / elements if elements else 1 / len(batch))
            for witness in observers:
                witness.written(step, parts)
            if progress:
                progress(step)
    return seconds


def _batches(steps: Iterable[Step], shards: Mapping[str, Parts], noise: Noise) -> Iterator[_Batch]:
    """All steps in order: several that draw or are constant, several whose class is ``batched``, or any other one."""
    # A keyed draw depends on its name alone, so neighbours can be drawn by one call of the engine: a model has hundreds
    # of small tensors, and its constants need not wait for the draws between them. Torch's generator is moved by each
    # draw, so there only constants are written together. A batch ends at a step that does more, that lies in the memory
    # of others, or that writes over an earlier one, so that all of these keep their order, and at _ELEMENTS.
    batch: _Batch = []
    elements, last, names = 0, None, set[str]()
    batched_as = cache(partial(_batched_as, noise=noise))
    for step in steps:
        parts = shards[name := step.site.name]
        numel = _elements(parts)
        is_byte = noise.is_stateful and step.site.dtype.itemsize == 1  # see _write
        kind = None if step.site.shares or is_byte else batched_as(type(step.fill))
        is_next = kind is None or kind is not last or elements + numel > _ELEMENTS or name in names
        if batch and is_next:
            yield batch
            batch, elements, names = [], 0, set()
        batch.append((step, parts, numel))
        names.add(name)
        elements, last = elements + numel, kind
    if batch:
        yield batch


def _batched_as(kind: type[Fill], noise: Noise) -> type[Fill] | None:
    """What stands for the fills that one of this class can be written with; None if for none."""
    if issubclass(kind, (Constant, Drawn)):
        return Drawn if not noise.is_stateful else Constant if kind is Constant else None
    return kind if kind.batched else None


def _write_batch(batch: _Batch, noise: Noise) -> None:
    """Write several steps that keep out of each other's way, all their draws at once; or one."""
    pairs = [(step.fill, part) for step, parts, _ in batch for part in parts]
    if batch[0][0].fill.batched:
        type(batch[0][0].fill).write_all(pairs, noise)
        return
    if len(batch) == 1:
        ((step, parts, _),) = batch
        _write(step.fill, parts, noise)
        return
    jobs = [(fill.job(part), fill, part) for fill, part in pairs]
    noise.fill_many([job for job, _, _ in jobs if job])  # it fails before it writes anything
    write_each([(fill, part) for job, fill, part in jobs if not job], noise)


def _elements(parts: Parts) -> int:
    return parts[0].local.numel() if len(parts) == 1 else sum(part.local.numel() for part in parts)


def write(fill: Fill, parts: Shard | Parts, noise: Noise) -> None:
    """Write one fill into the parts of one site, without a plan and a report."""
    with torch.no_grad():
        _write(fill, (parts,) if isinstance(parts, Shard) else parts, noise)


def _write(fill: Fill, parts: Parts, noise: Noise) -> None:
    if noise.is_stateful and parts and parts[0].local.dtype.itemsize == 1:  # torch draws no 8-bit floats
        wide = [replace(part, local=torch.empty_like(part.local, dtype=torch.float32)) for part in parts]
        fill.write_parts(wide, noise)
        for part, drawn in zip(parts, wide, strict=True):
            part.local.copy_(drawn.local)
    else:
        fill.write_parts(parts, noise)


def _check(steps: Sequence[Step], shards: Mapping[str, Parts], noise: Noise, agree: Agree | None) -> None:
    reasons = {step.site.name: why for step in steps if (why := _obstacle(step, shards.get(step.site.name), noise))}
    by_class: dict[type[Fill], list[tuple[str, Fill, Shard]]] = defaultdict(list)
    preparing = {kind for kind in {type(step.fill) for step in steps} if kind.prepares()}
    for step in steps if preparing else ():
        if type(step.fill) in preparing and step.site.name not in reasons:
            by_class[type(step.fill)] += [(step.site.name, step.fill, part) for part in shards[step.site.name]]
    for kind, rows in by_class.items():
        found = kind.prepare_all([(fill, part) for _, fill, part in rows])
        reasons |= {name: why for (name, *_), why in zip(rows, found, strict=True) if why}
    texts = [f"{name}: {reasons.pop(name)}" for name in [step.site.name for step in steps] if name in reasons]
    if texts := agree(texts) if agree else texts:
        raise RunError(f"{count(len(texts), 'site')} cannot be written; nothing was", texts)


def _obstacle(step: Step, parts: Parts | None, noise: Noise) -> str | None:
    """The reason why a step cannot be written, if there is one."""
    if parts is None:
        return "not in the model"
    if obstacle := step.fill.obstacle:
        return obstacle
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
    return None


def _records(
    steps: Sequence[Step], shards: Mapping[str, Parts], noise: Noise, seconds: Mapping[str, float], stats: bool
) -> list[Record]:
    """The records of all steps. A tensor that a parametrization computes gets its values here, and is then measured."""
    texts = Texts()
    records: list[Record] = []
    # In their order, since a parametrization may move other tensors with its own: the vectors of a spectral norm.
    every = [(step, shards[step.site.name], seconds[step.site.name]) for step in steps]
    for is_stored, several in groupby(every, lambda row: _is_stored(row[1])):
        rows = [*several]
        if is_stored:
            records += [_stored_record(*row, texts, noise, stats) for row in rows]
            continue
        with collector_paused():
            tensors = ([part.local for part in parts] for _, parts, _ in rows)
            moments = measure_each(tensors) if stats else [None] * len(rows)
            records += [_record(*row, texts, measured) for row, measured in zip(rows, moments, strict=True)]
    return records


def _is_stored(parts: Parts) -> bool:
    """Whether a parametrization has to be given the values, which making the record does."""
    return parts[0].store is not None if len(parts) == 1 else any(part.store for part in parts)


def _record(step: Step, parts: Parts, seconds: float, texts: Texts, measured: Moments | None) -> Record:
    dtype = parts[0].local.dtype if parts else step.site.dtype
    # None is known of a part of a tensor whose parts differ.
    is_known = step.fill.elementwise or all(part.is_whole for part in parts)
    size = parts[0].local.nbytes if len(parts) == 1 else sum(part.local.nbytes for part in parts)
    return texts.record(step, dtype, size, seconds, measured, is_known=is_known, is_here=bool(parts))


def _stored_record(step: Step, parts: Parts, seconds: float, texts: Texts, noise: Noise, stats: bool) -> Record:
    # A parametrized tensor was drawn into memory of its own. The module's ``right_inverse`` takes it, and the tensor
    # that the module then computes is measured: a constraint may change it, as no formula foresees.
    assert parts[0].store is not None
    stored = shards_of(step.site.name, _stored(parts[0], parts[0].store, noise))
    written = [part.local for part in stored]
    record = _record(step, parts, seconds, texts, measure(*written) if stats else None)
    if all(torch.allclose(part.local, made, rtol=1e-3, atol=1e-6) for part, made in zip(parts, written, strict=True)):
        return record
    return replace(record, expected=None, notes=(*step.notes, "the parametrization made other values of these"))


def _stored(shard: Shard, store: Callable[[Tensor], Tensor], noise: Noise) -> Tensor:
    """The tensor that a parametrization computes once it has the values; torch's orthogonal one completes a basis."""
    with noise.lending(shard.name, _BASIS, shard.local.device, shard.local.dtype):
        try:
            return store(shard.local)
        except Exception as error:
            error.add_note(f"{shard.name}: the parametrization would not take the values")
            raise


def local_shards(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Parts]:
    """The parts of a model that are here, by site name; only of ``names``, if given: of a DTensor its local part.

    Raises RunError for a DTensor that is placed as ``Partial``.

    >>> sorted(local_shards(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    return dict(shards_held(walk_tensors(model), names))


def shards_held(held: Iterable[HeldTensor], names: Iterable[str] | None = None) -> HeldShards:
    """The same of the tensors that the modules of a model hold."""
    wanted = None if names is None else set(names)
    return HeldShards(
        entry
        for entry in held
        if (wanted is None or entry.name in wanted) and (entry.computed_as is None or entry.computed_as.assign)
    )


class HeldShards(Mapping[str, Parts]):
    """The parts of a model that are here, by site name, each made when it is asked for.

    ``tensors`` are those that are ordinary, and wholly here.
    """

    def __init__(self, held: Iterable[HeldTensor]) -> None:
        self._held: dict[str, HeldTensor] = {}
        self._made: dict[str, Parts] = {}
        for entry in held:
            self._held.setdefault(entry.name, entry)
        are_all = not BEHIND  # none stands for another one
        self.tensors: Mapping[str, Tensor] = {
            name: entry.tensor for name, entry in self._held.items() if are_all and entry.computed_as is None
        }

    def __getitem__(self, name: str) -> Parts:
        if name not in self._made:
            self._made[name] = shards_of_entry(self._held[name], name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def shards_of_entry(entry: HeldTensor, name: str) -> tuple[Shard, ...]:
    """The parts of a module's tensor that are here, drawn under a name; none of one that takes no values."""
    if entry.computed_as is None:
        return shards_of(name, behind(entry.tensor))
    return blank_shards(name, entry.tensor, entry.computed_as)
