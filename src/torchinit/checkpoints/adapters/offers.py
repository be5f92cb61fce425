"""Offers: which adapters would make a site of a tensor of another shape. They are named, never applied unasked."""

from __future__ import annotations

from collections.abc import Iterator

from torchinit.checkpoints.adapters.adapter import Adapter, Size
from torchinit.checkpoints.adapters.axes import Transpose
from torchinit.checkpoints.adapters.channels import InputChannels
from torchinit.checkpoints.adapters.heads import Drop, Rows
from torchinit.checkpoints.adapters.patches import Inflate, ResizePatches
from torchinit.checkpoints.adapters.positions import ResizePositions, ResizeRelativeBias
from torchinit.checkpoints.adapters.tokens import ResizeVocabulary


def offer(seen: Size, shape: Size) -> str:
    """The tail of a message on shapes that differ: the adapters that would do, as far as shapes can tell.

    >>> offer((64, 3, 7, 7), (64, 1, 7, 7)), offer((1000, 512), (10, 512)), offer((5, 7), (3, 9))
    ('; InputChannels can adapt it', '; ResizeVocabulary, Rows or Drop can adapt it', '')
    """
    names = [type(adapter).__name__ for adapter in _candidates(seen, shape) if _suits(adapter, seen, shape)]
    told = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"; {told} can adapt it" if told else ""


def _candidates(seen: Size, shape: Size) -> Iterator[Adapter]:
    if len(seen) == 3 and seen[0] == 1:  # a table of positions; other tables could be one by their shape, too
        yield ResizePositions()
        return
    if len(shape) > 3:
        yield ResizePatches()
    yield from (InputChannels(), Inflate(), ResizeRelativeBias(), Transpose())
    yield from (ResizeVocabulary(), Rows())
    if len(seen) == len(shape) and seen[1:] == shape[1:]:  # other classes, most likely
        yield Drop()


def _suits(adapter: Adapter, seen: Size, shape: Size) -> bool:
    try:
        adapter.check([seen], shape, "")
    except ValueError:
        return False
    return True
