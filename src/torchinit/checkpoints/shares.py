"""Shares: sites that divide one tensor between them, and the memory that it takes to compute a site of whole ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from torchinit.checkpoints.adapters import Adapter
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.initializers.base import Fill
from torchinit.initializers.load_report import Mismatch
from torchinit.model.shards import Box
from torchinit.model.sites import Site

_WORTH_A_NOTE: Final = 1 << 20  # bytes


def apart(fills: Mapping[str, Fill], names: Collection[str]) -> Iterator[Mismatch]:
    """The sites that get a share of a tensor while another site of the model has all of it: LoRA's factors, its base.

    ``names`` are those of the model's sites.
    """
    for name, fill in fills.items():
        adapter = fill.adapter if isinstance(fill, Loaded) else None
        for other in adapter.together(fill.key) if adapter and isinstance(fill, Loaded) else ():
            if other in names and _steps(fill)[-1] not in _steps(fills.get(other)):
                why = f"is made by {adapter}, which takes a share of {other}: adapt that, too, or it is there twice"
                yield Mismatch(name, why)


def _steps(fill: Fill | None) -> tuple[Adapter, ...]:
    adapter = fill.adapter if isinstance(fill, Loaded) else None
    return getattr(adapter, "steps", (adapter,)) if adapter else ()


def peak(fills: Mapping[str, Fill], checkpoint: Checkpoint, sites: Mapping[str, Site]) -> Iterator[str]:
    """A note on the site that takes the most memory beside its own, if any is computed of whole tensors."""
    most, at = _WORTH_A_NOTE, ""
    for name, site in sites.items():
        fill = fills.get(name)
        if not isinstance(fill, Loaded) or not (adapter := fill.adapter) or adapter.goes_by_slices:
            continue
        # Its last element tells: of a part nothing more is read than it needs, of a whole all is.
        last = Box(tuple(max(0, size - 1) for size in site.shape), tuple(min(1, size) for size in site.shape))
        shapes = [checkpoint.info(key).shape for key in fill.keys]
        read = sum(box.numel for box in adapter.read_plan(shapes, site.shape, last, fill.key).boxes)
        if (size := 4 * read * adapter.copies) > most:  # computed in single precision
            most, at = size, name
    if at:
        yield f"{at} is made of whole tensors, which takes up to {most / 2**20:,.1f} MiB beside the model for a moment"
