"""TI2: whether what was loaded is in the model, all of it, and still is; what one line wrote and another one undid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchinit._text import abbreviate, count, did_you_mean, shape_text
from torchinit.checkpoints.guesses import guess
from torchinit.checkpoints.quantized import quantized
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget
from torchinit.model.dtensor import shards_of
from torchinit.model.names import normalize
from torchinit.model.shards import Box
from torchinit.tracing import Write

_SETTING = frozenset({"zero_", "fill_"})
_MOVING = frozenset({"_to_copy", "clone", "assigned", "unseen", "data ="})


@check("TI201", "error", "loaded", "rename the keys so that they are the model's names, and load strictly")
def loaded_nowhere(target: LintTarget) -> Iterator[Hit]:
    """Loaded values that the model has no place for, or none of their shape.

    ``load_state_dict(strict=False)`` passes over them; a prefix too many, and nothing at all is loaded. No match at
    all is an error, and so is another shape; some keys too many are a warning, unless they are what quantized weights
    mean nothing without. Names are compared without those of wrappers; a prefix or renaming that would help is named.
    """
    dtypes = {name: linted.site.dtype for name, linted in target.by_name.items()}
    packed = quantized(target.loaded, dtypes)
    yield from (Hit(name, each.why, "error", each.remedy) for name, each in packed.items())
    explained = {key for each in packed.values() for key in each.companions}
    left = [key for key in target.loaded if key not in explained and normalize(key) not in dtypes]
    if left:
        number = len(target.loaded)
        none_matches = len(left) == number
        text = f"none of {number} keys is" if none_matches else f"{len(left)} of {count(number, 'key')} are not"
        shapes = {name: each.site.shape for name, each in target.by_name.items() if each.site.persistent}
        better = guess(shapes, {key: tuple(value.shape) for key, value in target.loaded.items()}, number - len(left))
        hint = f"; {better}" if better else did_you_mean(left[0], dtypes)
        yield Hit("", f"{text} in the model: {abbreviate(left)}{hint}", "error" if none_matches else "warning")
    for key, value in target.loaded.items():
        linted = target.by_name.get(normalize(key))
        if linted is not None and linted.name not in packed and value.shape != linted.tensor.shape:
            text = f"has shape {shape_text(linted.tensor.shape)}, and was loaded as {shape_text(value.shape)}"
            yield Hit(linted.name, text, "error", "give it the model's shape first")


@check("TI202", "warning", "loaded", "name it among what is initialized on purpose, or find its key")
def not_loaded(target: LintTarget) -> Iterator[Hit]:
    """Parameters that no loaded value was for, so that they hold what the model was built with.

    A new head is meant so; a layer that was renamed is not. Compared by all names of a tensor.
    """
    left = [linted.name for linted in target.tensors if linted.is_parameter and not linted.loaded]
    if left and any(linted.loaded for linted in target.tensors):
        yield Hit("", f"nothing was loaded for {count(len(left), 'parameter')}: {abbreviate(left)}")


@check("TI203", "error", "history", "load last, or keep the initialization from what was loaded")
def loaded_overwritten(target: LintTarget) -> Iterator[Hit]:
    """A tensor that does not hold the values that were loaded into it.

    An initialization that runs after the loading draws them again: ``init_weights`` called by a trainer, or a
    model's own code for a module of which another tensor was missing. Values that are given are compared one by one
    after conversion to the model's dtype; a trace knows what ``load_state_dict`` wrote, and which line filled or
    drew it anew. Wrong only for weights that were trained meanwhile.
    """
    loaded = {normalize(key): value for key, value in target.loaded.items()}
    for linted in target.tensors:
        values = next((loaded[view.name] for view in linted.site.views if view.name in loaded), None)
        if values is not None and (number := _count_unequal(linted, values)):
            numel = count(linted.statistics.numel, "value")
            yield Hit(linted.name, f"{number:,} of {numel} are not those that were loaded")
        elif values is None and (later := _drawn_after_loading(linted.writes)):
            yield Hit(linted.name, f"was loaded, and then written by {later.what}", line=later.line)


def _drawn_after_loading(writes: Sequence[Write]) -> Write | None:
    """The last write that filled or drew anew what ``load_state_dict`` had loaded."""
    loads = [write.order for write in writes if write.call.endswith(".load_state_dict")]
    later = [write for write in writes if loads and write.overwrites and write.last > loads[-1]]
    return later[-1] if later else None


def _count_unequal(linted: LintedTensor, loaded: Tensor) -> int:
    """The number of values that are here and differ; NaN is equal to itself."""
    if linted.values is None or loaded.shape != linted.tensor.shape:
        return 0
    number = 0
    for shard in shards_of(linted.name, linted.tensor):
        values = shard.local.detach()
        wanted = Box(shard.start, tuple(values.shape)).of(loaded).detach().to(values.device, values.dtype)
        if not torch.equal(values, wanted):
            unequal = values != wanted
            number += int((unequal & ~(values.isnan() & wanted.isnan())).sum())
    return number


@check("TI204", "warning", "trace", "let the special case run after the general one")
def undone(target: LintTarget) -> Iterator[Hit]:
    """A value that one line wrote and another line then filled or drew anew.

    ``self.apply(init_weights)`` at the end of a constructor undoes what its layers did before: the last layer of a
    branch that was zeroed, a bias with its prior, the forget gate of an LSTM. It is a warning where the later line
    writes more sites than the one it undoes and begins when that one is through, since the general case came after the
    special one; else a note, unless the later line writes fewer sites, which is the way it should be. What replaces
    a layer's own initialization, or fills in the same number again, is not a finding. Exact, where the trace is.
    """
    # Nobody says which of two writes was meant, so it is read off the lines that wrote: a loop over all layers writes
    # many sites from one line, a special case few. The number of sites alone would blame a loop that handles both cases
    # layer by layer; there the special line begins before the general one is through, which makes it a note.
    by_line: dict[str, list[Write]] = defaultdict(list)
    for write in target.trace:
        by_line[write.line].append(write)
    sites = {line: len({write.site for write in writes}) for line, writes in by_line.items()}
    cases: dict[tuple[str, str], list[tuple[str, Write, Write]]] = defaultdict(list)
    for linted in target.tensors:
        for before, after in _undone_writes(linted.writes):
            if sites[after.line] >= sites[before.line]:
                cases[before.line, after.line].append((linted.name, before, after))
    for (earlier, later), ((name, before, after), *others) in cases.items():
        text = f"{after.what} undoes {before.what} of {earlier or 'an unknown line'}"
        tail = f", as in {count(len(others), 'other')}: {abbreviate([other for other, *_ in others])}" if others else ""
        begins, ends = min(write.order for write in by_line[later]), max(write.last for write in by_line[earlier])
        general = sites[later] > sites[earlier] and begins > ends
        yield Hit(name, text + tail, "warning" if general else "note", line=later)


def _undone_writes(writes: Sequence[Write]) -> Iterator[tuple[Write, Write]]:
    """Each write that the last one that left nothing of what was there undid, with that one; one a line."""
    last = next((write for write in reversed(writes) if write.overwrites), None)
    if last is None:
        return
    lines = {last.line}
    for write in writes[: writes.index(last)]:
        repeated = write.what == last.what and last.operation in _SETTING and write.region is None
        moved = write.operation in _MOVING or write.allocates
        if write.line not in lines and not (moved or write.is_default or repeated):
            lines.add(write.line)
            yield write, last
