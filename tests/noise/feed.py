"""Feed: the stream's raw words on standard output, for batteries of tests that read them from there.

``python -m tests.noise.feed WAY | dieharder -a -g 200`` runs one such battery (Debian: ``apt-get install dieharder``)
for one to two hours; what it said is in docs/reference/stream.md. The ways are

* ``draw``: the words of one name in their order, as one very large tensor has them;
* ``names``: 768 words of each of the names ``blocks.0.bias``, ``blocks.1.bias``, ... of one seed;
* ``seeds``: 1,024 neighbouring seeds, a word of each in turn, and the next 1,024 after 1,024 rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import numpy.typing as npt
import torch

from torchinit.noise.distributions import Draw, DrawKind
from torchinit.noise.engines import dispatch
from torchinit.noise.engines.tasks import FillTask
from torchinit.noise.keyed import derive

Words = npt.NDArray[np.uint32]

_WORDS = Draw(DrawKind.WORDS)
_PIECE = 1 << 20
_NAMES, _EACH = 1024, 768
_SEEDS = 1024


def words(places: list[tuple[bytes, int]], each: int) -> Words:
    """So many words of each key from each place, a row a key; the order of the bits is that of memory."""
    out = torch.empty(len(places), each)
    dispatch.fill(
        [FillTask(row, (1 << 63,), (first,), key, _WORDS) for row, (key, first) in zip(out, places, strict=True)]
    )
    return out.numpy().view(np.uint32)


def draw() -> Iterator[Words]:
    """One draw, from its first word on."""
    key = derive(0, "weight")
    for piece in count():
        yield words([(key, piece * _PIECE)], _PIECE)


def names() -> Iterator[Words]:
    """The first words of many names."""
    for piece in count():
        yield words([(derive(0, f"blocks.{piece * _NAMES + n}.bias"), 0) for n in range(_NAMES)], _EACH)


def seeds() -> Iterator[Words]:
    """A word of each of many seeds, then the next one of each."""
    for piece in count():
        yield words([(derive(piece * _SEEDS + n, "weight"), 0) for n in range(_SEEDS)], _SEEDS).T


WAYS: dict[str, Callable[[], Iterator[Words]]] = {"draw": draw, "names": names, "seeds": seeds}


def main() -> None:
    """Writes until the reader has enough."""
    if len(sys.argv) != 2 or sys.argv[1] not in WAYS:
        sys.exit(f"usage: python -m tests.noise.feed {{{','.join(WAYS)}}} | battery")
    try:
        for drawn in WAYS[sys.argv[1]]():
            sys.stdout.buffer.write(np.ascontiguousarray(drawn).tobytes())
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
