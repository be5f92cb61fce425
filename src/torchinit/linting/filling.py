"""Filling: checks for memory that nobody filled, and for what stands in it instead of values."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchinit.core.sites import EMPTY
from torchinit.core.tables import some
from torchinit.errors import count
from torchinit.linting.checks import Evidence, check
from torchinit.linting.findings import Severity
from torchinit.linting.subjects import Part, Subject
from torchinit.linting.writing import ALLOCATES
from torchinit.tracing import is_unfilled

_HUGE = 1e30
_WHOLE = 1 << 40


@check("TI101", "unfilled", "error", "sites", "initialize it, or cover it with a rule")
def unfilled(subject: Subject) -> Iterator[Evidence]:
    """Memory that was handed out empty and that nothing has been written to since.

    ``torch.empty`` and ``to_empty`` hand out whatever the memory held before: zeros today, NaN tomorrow. Seen are
    parameters and buffers whose last write in a trace is the allocation, so that a buffer that is forgotten after
    ``to_empty`` shows, and those of a ``BaseModule``, which is watched as it is built and as ``to_empty`` gives it
    other memory. Decided by what was observed; in a trace wrong if the values were written from outside torch.
    """
    for part in subject.parts:
        way, writes = part.holdings[0].way, subject.writes(part)
        seen = bool(writes) and max(writes, key=lambda write: write.last).operation in ALLOCATES
        if part.values is not None and (seen or any(map(is_unfilled, way.sources if way else (part.tensor,)))):
            yield Evidence(part.name, f"{count(part.tensor.numel(), 'value')} of memory that was never filled")


@check("TI102", "meta", "error", "sites", "give the model memory (model.to_empty(device=...)) and initialize it")
def meta(subject: Subject) -> Iterator[Evidence]:
    """A tensor that is left on the meta device, where it has no values.

    Writing to it does nothing and says nothing. A model that is on the meta device as a whole is a sketch: one note
    then says that only what needs no values was checked.
    """
    left = [part for part in subject.parts if part.tensor.is_meta]
    if subject.all_meta:
        yield Evidence(
            "", f"all {count(len(left), 'tensor')} are on the meta device: values were not checked", "", "note"
        )
        return
    for part in left:
        yield Evidence(part.name, f"is on the meta device, unlike {len(subject.parts) - len(left)} others")


@check(
    "TI103",
    "not-finite",
    "error",
    "values",
    "initialize it; if a formula made it, look for 0/0, a log of 0 or an overflow",
)
def not_finite(subject: Subject) -> Iterator[Evidence]:
    """A parameter that holds NaN or an infinity, or a buffer that holds NaN.

    One NaN spreads over all outputs. Memory that torch fills with NaN to be found
    (``torch.use_deterministic_algorithms``) and nobody has written shows here, too. Counted, so never wrong; an
    infinity in a buffer is let pass, since attention masks are made of it.
    """
    for part in subject.parts:
        facts = part.facts
        seen = [(facts.nan, "NaN"), (facts.infinite if part.is_parameter else 0, "infinite")]
        for number, what in seen:
            if number:
                whole = "all" if number == facts.numel else f"{number:,} of"
                yield Evidence(
                    part.name, f"{whole} {count(facts.numel, 'value')} {'is' if facts.numel == 1 else 'are'} {what}"
                )


@check("TI104", "leftovers", "error", "values", "initialize it: it looks like memory that was never filled")
def leftovers(subject: Subject) -> Iterator[Evidence]:
    """Values that no initialization draws: below the smallest normal number of the dtype, or beyond 1e30.

    Addresses and whole numbers that memory held before look so when they are read as floats. The chance that a draw
    of any use falls below 1e-38 is nil. Of a parameter both ends count, of a buffer the lower one, since masks hold
    huge numbers. Below 1 % of the values it is a warning: weights that were trained with decay may hold a few.
    Formats of 16 bits whose numbers end early (float16) and 8 bits have a check of their own.
    """
    for part in subject.parts:
        facts, dtype = part.facts, part.site.dtype
        if part.loaded or not facts.finite or not dtype.is_floating_point or torch.finfo(dtype).smallest_normal > 1e-30:
            continue
        if facts.tiny:
            several: Severity = "error" if facts.tiny > (facts.numel - facts.zeros) / 100 else "warning"
            text = f"{facts.tiny:,} of {count(facts.numel, 'value')} are below {torch.finfo(dtype).smallest_normal:.3g}"
            yield Evidence(part.name, text, severity=several)
        elif part.is_parameter and facts.reach > _HUGE:
            yield Evidence(part.name, f"holds {facts.reach:.3g}")


@check(
    "TI105",
    "forgotten-buffer",
    "error",
    "values",
    "compute it again: to_empty() leaves a buffer unfilled, and no checkpoint holds it",
)
def forgotten_buffer(subject: Subject) -> Iterator[Evidence]:
    """A buffer whose values its layer cannot have made.

    Parameters are initialized or loaded after ``to_empty``; buffers are forgotten, those above all that are in no
    state dict. Known are the running statistics of normalization (a variance is above zero, a count not negative
    and below 2^40), frequencies of rotary embeddings (``inv_freq``: not all zero, none negative), position indices
    (``position_ids``: not all the same), and whole numbers beyond 2^40 anywhere. Rules of values, so wrong only for
    a layer that means something else by such a name.
    """
    for part in subject.parts:
        if part.site.kind == "buffer" and part.facts.finite and part.facts.numel and (text := _forgotten(part)):
            yield Evidence(part.name, text)


def _forgotten(part: Part) -> str:
    facts, leaf = part.facts, part.site.leaf
    zero = facts.zeros == facts.numel
    if leaf == "running_var" and facts.min <= 0:
        return f"is a variance, and its smallest value is {facts.min:.3g}"
    if leaf == "inv_freq" and (zero or facts.min < 0):
        return "holds frequencies, and all are zero" if zero else f"holds frequencies, and one is {facts.min:.3g}"
    if leaf == "position_ids" and facts.constant:
        return f"holds positions, and all {facts.numel:,} are {facts.min:g}"
    if part.site.state == "integer" and part.site.dtype != torch.uint64 and facts.reach > _WHOLE:
        return f"holds whole numbers up to {facts.reach:.3g}"
    if leaf == "num_batches_tracked" and facts.min < 0:
        return f"is a count, and holds {facts.min:g}"
    return ""


@check("TI108", "no-values", "error", "sites", "make it one that can be written")
def no_values(subject: Subject) -> Iterator[Evidence]:
    """A parameter that has no values although it should have some, because no fill can be written to it.

    Partitioned parameters (DeepSpeed's ZeRO-3) have no elements until they are gathered: seen by ``ds_shape``, or by
    what the layer's own numbers say it should have. Whole numbers, quantized and sparse parameters, and those without
    elements of which nothing is known, count where a rule of the recipe matches them, or a report says so, since that
    skips them. Wrong only where the numbers that a layer keeps are not those of its weights; a layer that means to be
    empty, and what was loaded, is left out.
    """
    skipped = {skip.site.name for skip in subject.intended.skipped}
    skipped |= {name for name, _ in subject.report.lacking} if subject.report is not None else set()
    for part in subject.parts:
        site = part.site
        why, _, way_out = site.lack.rpartition(": ")
        if why and not part.loaded and (site.name in skipped or (site.missing and why != EMPTY)):
            yield Evidence(part.name, why, remedy=way_out)


@check("TI106", "uncovered", "note", "plan", "cover it with a rule, or leave it on purpose")
def uncovered(subject: Subject) -> Iterator[Evidence]:
    """Parameters that the recipe has no rule for, so that they stay as the layers' own code made them.

    Read off the plan. One note for all of them; ``torchinit plan --complete`` makes it an error.
    """
    names = [site.name for site in subject.intended.untouched if site.kind == "parameter"]
    if names:
        yield Evidence("", f"no rule covers {count(len(names), 'parameter')}: {some(names)}")
