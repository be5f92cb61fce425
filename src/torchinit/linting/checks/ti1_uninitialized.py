"""TI1: memory that nobody filled, and what stands in it instead of values."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchinit._text import abbreviate, count
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget
from torchinit.model.states import EMPTY
from torchinit.tracing import is_unfilled

_HUGE = 1e30
_HUGE_INTEGER = 1 << 40


@check("TI101", "error", "sites", "initialize it, or cover it with a rule")
def unfilled(target: LintTarget) -> Iterator[Hit]:
    """Memory that was handed out empty and that nothing has been written to since.

    ``torch.empty`` and ``to_empty`` hand out whatever the memory held before: zeros today, NaN tomorrow. Seen are
    tensors of any dtype whose last write in a trace is the allocation, and those of what is watched as it is built:
    a ``BaseModule``, also as ``to_empty`` gives it other memory, and any model in ``torchinit check``. Wrong if a trace
    missed values from outside torch.
    """
    for linted in target.tensors:
        last = linted.last_write
        allocated = last is not None and last.allocates
        # Poison in floats and in the largest integers shows in the values: TI103 and TI105 tell of it.
        shows = linted.statistics.nan or linted.statistics.min >= torch.iinfo(torch.int64).max
        unseen = not shows and any(map(is_unfilled, linted.holders[0].sources))
        if linted.values is not None and (allocated or unseen):
            yield Hit(linted.name, f"{count(linted.tensor.numel(), 'value')} of memory that was never filled")


@check("TI102", "error", "sites", "give the model memory (model.to_empty(device=...)) and initialize it")
def meta(target: LintTarget) -> Iterator[Hit]:
    """A tensor that is left on the meta device, where it has no values.

    Writing to it does nothing, silently. Of a model that is on the meta device as a whole one note says so.
    """
    left = [linted for linted in target.tensors if linted.tensor.is_meta]
    if target.is_sketch:
        yield Hit("", f"all {count(len(left), 'tensor')} are on the meta device: values were not checked", "note")
        return
    for linted in left:
        yield Hit(linted.name, f"is on the meta device, unlike {len(target.tensors) - len(left)} others")


@check("TI109", "warning", "sites", "run the model once on an example, then initialize it")
def lazy(target: LintTarget) -> Iterator[Hit]:
    """A lazy parameter or buffer that has no shape yet.

    The first call gives it shape and values, by its layer's own code: whatever initialization ran before that has
    not reached it. Read off the tensor, so never wrong.
    """
    for linted in target.tensors:
        if linted.site.state == "lazy":
            yield Hit(linted.name, "has neither shape nor values yet")


@check("TI103", "error", "values", "initialize it; if a formula made it, look for 0/0, a log of 0 or an overflow")
def not_finite(target: LintTarget) -> Iterator[Hit]:
    """A parameter that holds NaN or an infinity, or a buffer that holds NaN.

    One NaN spreads over all outputs. Unwritten memory that torch filled with NaN to be found
    (``torch.use_deterministic_algorithms``) shows here, too. Counted, so never wrong; attention masks are made of
    infinities, so these may be in buffers.
    """
    for linted in target.tensors:
        stats = linted.statistics
        for number, kind in ((stats.nan, "NaN"), (stats.infinite if linted.is_parameter else 0, "infinite")):
            if number:
                share = "all" if number == stats.numel else f"{number:,} of"
                verb = "is" if stats.numel == 1 else "are"
                yield Hit(linted.name, f"{share} {count(stats.numel, 'value')} {verb} {kind}")


@check("TI104", "error", "values", "initialize it: it looks like memory that was never filled")
def leftovers(target: LintTarget) -> Iterator[Hit]:
    """Values that no initialization draws: below the smallest normal number of the dtype, or beyond 1e30.

    Addresses and whole numbers that memory held before look so when they are read as floats; the chance that a
    draw of any use falls below 1e-38 is nil. Of a parameter both ends count, of a buffer the lower one, since masks
    hold huge numbers. Below 1 % of the values it is a warning: weights that were trained with decay may hold a few.
    Formats whose numbers end early (float16, 8 bits) are left out.
    """
    for linted in target.tensors:
        stats, dtype = linted.statistics, linted.site.dtype
        if linted.loaded or not (stats.finite and dtype.is_floating_point):
            continue
        smallest = torch.finfo(dtype).smallest_normal
        if stats.tiny and smallest <= 1e-30:
            text = f"{stats.tiny:,} of {count(stats.numel, 'value')} are below {smallest:.3g}"
            yield Hit(linted.name, text, "error" if stats.tiny > (stats.numel - stats.zeros) / 100 else "warning")
        elif linted.is_parameter and stats.reach > _HUGE:
            yield Hit(linted.name, f"holds {stats.reach:.3g}")


@check("TI105", "error", "values", "compute it again: to_empty() leaves a buffer unfilled, and no checkpoint holds it")
def forgotten_buffer(target: LintTarget) -> Iterator[Hit]:
    """A buffer whose values its layer cannot have made.

    Parameters are initialized or loaded after ``to_empty``; buffers are forgotten, those above all that are in no
    state dict. Known are the running statistics of normalization (a variance is above zero, a count not negative),
    frequencies of rotary embeddings (``inv_freq``: not all zero, none negative), position indices (``position_ids``:
    not all the same), and whole numbers beyond 2^40. Wrong only for a layer that means something else by such a name.
    """
    for linted in target.tensors:
        stats = linted.statistics
        if linted.site.kind == "buffer" and stats.finite and stats.numel and (text := _impossible_values(linted)):
            yield Hit(linted.name, text)


def _impossible_values(linted: LintedTensor) -> str:
    """The fact about the values of a buffer that its layer cannot have caused; empty if there is none."""
    stats, leaf = linted.statistics, linted.site.leaf
    zero = stats.zeros == stats.numel
    if leaf == "running_var" and stats.min <= 0:
        return f"is a variance, and its smallest value is {stats.min:.3g}"
    if leaf == "inv_freq" and (zero or stats.min < 0):
        return "holds frequencies, and all are zero" if zero else f"holds frequencies, and one is {stats.min:.3g}"
    if leaf == "position_ids" and stats.constant:
        return f"holds positions, and all {stats.numel:,} are {stats.min:g}"
    if linted.site.state == "integer" and linted.site.dtype != torch.uint64 and stats.reach > _HUGE_INTEGER:
        return f"holds whole numbers up to {stats.reach:.3g}"
    if leaf == "num_batches_tracked" and stats.min < 0:
        return f"is a count, and holds {stats.min:g}"
    return ""


@check("TI106", "note", "plan", "cover it with a rule, or leave it on purpose")
def uncovered(target: LintTarget) -> Iterator[Hit]:
    """Parameters that the recipe has no rule for, so that they stay as the layers' own code made them.

    Read off the plan. One note for all of them; ``torchinit plan --complete`` makes it an error.
    """
    if names := [site.name for site in target.plan.untouched if site.kind == "parameter"]:
        yield Hit("", f"no rule covers {count(len(names), 'parameter')}: {abbreviate(names)}")


@check("TI107", "warning", "trace", "cover it in the initialization, or leave it to its layer on purpose")
def unwritten(target: LintTarget) -> Iterator[Hit]:
    """A parameter that nothing wrote to while the initialization was traced.

    It keeps what its layer was built with. A warning where the same parameter of other layers of its class was
    written, so that this one was forgotten, and where a parametrization computes it, so that what was written to it
    is lost; else one note for all. Exact, where the trace is; what is built inside it, or loaded, is left out.
    """
    trace = target.trace
    if not len(trace):
        return
    left = set(trace.unwritten) - set(trace.added) - {write.site for write in trace.lost}  # of these TI603 tells
    traced = [linted for linted in target.tensors if linted.is_parameter and linted.name in trace.parameters]
    written = {(linted.site.owner.name, linted.site.leaf) for linted in traced if linted.name not in left}
    rest = []
    for linted in [each for each in traced if each.name in left and not each.loaded]:
        owner, leaf = linted.site.owner.name, linted.site.leaf
        if linted.site.parametrized:
            yield Hit(linted.name, "nothing wrote to the tensors that a parametrization computes it from")
        elif (owner, leaf) in written:
            yield Hit(linted.name, f"nothing wrote to it, unlike the {leaf} of other {owner} layers")
        else:
            rest.append(linted.name)
    if rest:
        yield Hit("", f"nothing wrote to {count(len(rest), 'parameter')}: {abbreviate(rest)}", "note")


@check("TI108", "error", "sites", "make it one that can be written")
def no_values(target: LintTarget) -> Iterator[Hit]:
    """A parameter that has no values although it should have some, because no fill can be written to it.

    Partitioned parameters (DeepSpeed's ZeRO-3) have no elements until they are gathered: seen by ``ds_shape``, or by
    what the layer's own numbers say it should have. Whole numbers, quantized and sparse parameters, and empty ones
    of which nothing is known count where a recipe or a report skips them. Wrong only where the numbers that a layer
    keeps are not those of its weights; a layer that means to be empty, and what was loaded, is left out.
    """
    skipped = {skip.site.name for skip in target.plan.skipped} | {name for name, _ in target.report.lacking}
    for linted in target.tensors:
        site = linted.site
        why, _, remedy = site.lack.rpartition(": ")
        if why and not linted.loaded and (site.name in skipped or (site.missing and why != EMPTY)):
            yield Hit(linted.name, why, remedy=remedy)
