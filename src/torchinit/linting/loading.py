"""Loading: checks that what was loaded is in the model, all of it, and still is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from torchinit.core.names import normalize
from torchinit.core.tables import shape_text, some
from torchinit.errors import count, did_you_mean
from torchinit.linting.checks import Evidence, check
from torchinit.linting.subjects import Part, Subject


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
    all is an error, and so is another shape; some keys too many are a warning. Names are compared without what
    wrappers put into them. Where a prefix would make more keys match, the finding names it.
    """
    keys = list(subject.given)
    left = [key for key in keys if subject.find(normalize(key)) is None]
    if left:
        nothing = len(left) == len(keys)
        hint = _hint(left, {view.name for part in subject.parts for view in part.site.views})
        text = f"none of {len(keys)} keys is" if nothing else f"{len(left)} of {count(len(keys), 'key')} are not"
        text = f"{text} in the model: {some(left)}{hint}"
        yield Evidence("", text, severity="error" if nothing else "warning")
    for key in keys:
        part = subject.find(normalize(key))
        if part is not None and (text := _misfit(part, subject.given[key])):
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


@check("TI203", "loaded-overwritten", "error", "loaded", "load last, or keep the initialization from what was loaded")
def loaded_overwritten(subject: Subject) -> Iterator[Evidence]:
    """A tensor that does not hold the values that were loaded into it.

    An initialization that runs after the loading draws them again: ``init_weights`` called by a trainer, or a
    model's own code for a module of which another tensor was missing. Compared value by value after conversion to
    the model's dtype, so wrong only for weights that were trained meanwhile.
    """
    loaded = subject.given
    for key in loaded:
        part = subject.find(normalize(key))
        if part is not None and part.values is not None:
            given = loaded[key]
            number = 0 if _misfit(part, given) else _apart(part.values, given)
            if number:
                yield Evidence(
                    part.name, f"{number:,} of {count(part.values.numel(), 'value')} are not those that were loaded"
                )


def _apart(held: Tensor, given: Tensor) -> int:
    """How many values differ; NaN is equal to itself."""
    same = given.detach().to(held.device, held.dtype)
    if torch.equal(held, same):
        return 0
    unequal = held != same
    return int((unequal & ~(held.isnan() & same.isnan())).sum()) if held.is_floating_point() else int(unequal.sum())
