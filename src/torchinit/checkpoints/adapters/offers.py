"""Offers: which adapters would make a site of a tensor of another shape. They are named, never applied unasked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torchinit.checkpoints.adapters.adapter import Adapter, Size
from torchinit.checkpoints.adapters.attention import PoolHeads
from torchinit.checkpoints.adapters.axes import Transpose
from torchinit.checkpoints.adapters.channels import InputChannels
from torchinit.checkpoints.adapters.heads import Rows
from torchinit.checkpoints.adapters.patches import Inflate, ResizePatches
from torchinit.checkpoints.adapters.positions import ResizePositions, ResizeRelativeBias
from torchinit.checkpoints.adapters.tokens import ResizeVocabulary

_KEYS = re.compile(r"(.*[._])?w?(k|v|kv|key|value)s?(_proj|_lin|_linear)?[.](weight|bias)")
"""Names of key and value projections, whose heads may be fewer than they were."""


def offer(seen: Size, shape: Size, name: str = "") -> str:
    """The tail of a message on shapes that differ: the adapters that would do, as far as shapes and name can tell.

    >>> offer((64, 3, 7, 7), (64, 1, 7, 7)), offer((1, 198, 768), (1, 578, 768)), offer((5, 7), (3, 9))
    ('; InputChannels can adapt it', '; ResizePositions(prefix=2) can adapt it', '')
    >>> offer((512, 512), (128, 512), "layers.0.k_proj.weight")
    '; PoolHeads can adapt it'
    """
    told = [*_told(seen, shape, name)]
    return f"; {' or '.join(filter(None, [', '.join(told[:-1]), told[-1]]))} can adapt it" if told else ""


def _told(seen: Size, shape: Size, name: str) -> Iterator[str]:
    """The adapters as they would be written, without those of their arguments that shapes do not tell."""
    positions = "pos" in name.lower() or (len(seen) == 3 and seen[0] == 1)
    if positions and (found := _first((ResizePositions(prefix) for prefix in (1, 0, *range(2, 10))), seen, shape)):
        yield found
        return
    fewer = seen and shape and 0 < shape[0] < seen[0]
    if fewer and _KEYS.fullmatch(name) and _suits(PoolHeads(seen[0] // shape[0]), seen, shape):
        yield "PoolHeads"
        return
    kinds: Iterable[Iterable[Adapter]] = (
        [ResizePatches()] if len(shape) > 3 else [],
        [InputChannels()] if len(shape) > 2 else [],
        [Inflate()],
        map(ResizeRelativeBias, (0, 3)),
        map(Transpose, ((1, 0), (2, 1, 0), (3, 2, 0, 1), (0, 2, 1))),
        [ResizeVocabulary()],
        [Rows()],
    )
    yield from filter(None, (_first(kind, seen, shape) for kind in kinds))
    if seen and len(seen) == len(shape) and seen[1:] == shape[1:]:  # other classes, most likely
        yield from ("Labels", "Drop")


def _first(adapters: Iterable[Adapter], seen: Size, shape: Size) -> str:
    return next((str(one).removesuffix("()") for one in adapters if _suits(one, seen, shape)), "")


def _suits(adapter: Adapter, seen: Size, shape: Size) -> bool:
    try:
        adapter.check([seen], shape, "")
    except ValueError:
        return False
    return True
