"""Loading: checks that what was loaded is in the model, all of it, and still is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from torchinit.checkpoints.quantized import quantized
from torchinit.core.names import normalize
from torchinit.core.placements import shards_of
from torchinit.core.shards import Shard
from torchinit.core.tables import shape_text, some
from torchinit.errors import count, did_you_mean
from torchinit.linting.checks import Evidence, check
from torchinit.linting.subjects import Part, Subject
from torchinit.linting.writing import is_anew
from torchinit.tracing import Write


@check(
    "TI201",
    "loaded-nowhere",
    "error",
    "loaded",
    "rename the keys so that they are the model's names, and load strictly",
)
def loaded_nowhere(subject: Subject) -> Iterator[Evidence]:
    """Loaded values that the model has no place for, or none of their shape.

    ``load_state_dict(strict=False)`` passes over them; a prefix too many, and nothing at all is loaded. No match at
    all is an error, and so is another shape; some keys too many are a warning, unless they are what quantized weights
    mean nothing without. Names are compared without what wrappers put into them. Where a prefix would make more keys
    match, the finding names it.
    """
    keys = list(subject.given)
    packed = quantized(subject.given, {v.name: v.dtype for part in subject.parts for v in part.site.views})
    yield from (Evidence(name, one.why, one.remedy, "error") for name, one in packed.items())
    told = {key for one in packed.values() for key in one.companions}
    left = [key for key in keys if key not in told and subject.find(normalize(key)) is None]
    if left:
        nothing = len(left) == len(keys)
        hint = _hint(left, {view.name for part in subject.parts for view in part.site.views})
        text = f"none of {len(keys)} keys is" if nothing else f"{len(left)} of {count(len(keys), 'key')} are not"
        text = f"{text} in the model: {some(left)}{hint}"
        yield Evidence("", text, severity="error" if nothing else "warning")
    for key in keys:
        part = subject.find(normalize(key))
        if part is not None and part.name not in packed and (text := _misfit(part, subject.given[key])):
            yield Evidence(part.name, text, "give it the model's shape first", "error")


def _misfit(part: Part, value: Tensor) -> str:
    if value.shape == part.tensor.shape:
        return ""
    return f"has shape {shape_text(part.tensor.shape)}, and was loaded as {shape_text(value.shape)}"


def _hint(keys: list[str], names: set[str]) -> str:
    """Which prefix to drop or to add so that most keys match; else the near name."""
    fits: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        fits.update(f"without {'.'.join(parts[:at])!r}" for at in range(1, len(parts)) if ".".join(parts[at:]) in names)
    for prefix in _prefixes(names):
        fits[f"with {prefix!r} before them"] = sum(f"{prefix}.{key}" in names for key in keys)
    way, number = max(fits.items(), key=lambda pair: pair[1], default=("", 0))
    return f"; {way} {number} would match" if number else did_you_mean(keys[0], names)


def _prefixes(names: Iterable[str]) -> list[str]:
    paths = (name.split(".") for name in names)
    return sorted({".".join(path[:at]) for path in paths for at in range(1, min(len(path), 4))})


@check("TI202", "not-loaded", "warning", "loaded", "name it among what is initialized on purpose, or find its key")
def not_loaded(subject: Subject) -> Iterator[Evidence]:
    """Parameters that no loaded value was for, so that they hold what the model was built with.

    A new head is meant so; a layer that was renamed is not. One finding for all of them. Compared by name, tied
    names included.
    """
    left = [part.name for part in subject.parts if part.is_parameter and not part.loaded]
    if left and any(part.loaded for part in subject.parts):
        yield Evidence("", f"nothing was loaded for {count(len(left), 'parameter')}: {some(left)}")


@check(
    "TI203",
    "loaded-overwritten",
    "error",
    "history",
    "load last, or keep the initialization from what was loaded",
)
def loaded_overwritten(subject: Subject) -> Iterator[Evidence]:
    """A tensor that does not hold the values that were loaded into it.

    An initialization that runs after the loading draws them again: ``init_weights`` called by a trainer, or a
    model's own code for a module of which another tensor was missing. Values that are given are compared one by one
    after conversion to the model's dtype; a trace knows what ``load_state_dict`` wrote, and which line filled or
    drew it anew. Wrong only for weights that were trained meanwhile.
    """
    loaded = {normalize(key): key for key in subject.given}
    for part in subject.parts:
        key = next((loaded[view.name] for view in part.site.views if view.name in loaded), None)
        number = _apart(part, subject.given[key]) if key is not None else 0
        if number:
            yield Evidence(
                part.name, f"{number:,} of {count(part.facts.numel, 'value')} are not those that were loaded"
            )
        elif key is None and (later := _drawn_after_loading(subject.writes(part))):
            yield Evidence(part.name, f"was loaded, and then written by {later.what}", line=later.line)


def _drawn_after_loading(writes: Sequence[Write]) -> Write | None:
    """The last write that filled or drew anew what ``load_state_dict`` had loaded."""
    loads = [write.order for write in writes if write.call.endswith(".load_state_dict")]
    later = [write for write in writes if loads and is_anew(write) and write.last > loads[-1]]
    return later[-1] if later else None


def _apart(part: Part, given: Tensor) -> int:
    """How many of the values that are here differ; NaN is equal to itself."""
    if part.values is None or _misfit(part, given):
        return 0
    return sum(_unequal(shard.local.detach(), given[_index(shard)]) for shard in shards_of(part.name, part.tensor))


def _index(shard: Shard) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(shard.start, shard.local.shape, strict=True))


def _unequal(held: Tensor, given: Tensor) -> int:
    same = given.detach().to(held.device, held.dtype)
    if torch.equal(held, same):
        return 0
    unequal = held != same
    return int((unequal & ~(held.isnan() & same.isnan())).sum()) if held.is_floating_point() else int(unequal.sum())
