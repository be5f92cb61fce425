"""Opaque fills: what somebody's code does to a tensor, where no fill says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torchinit.core.fills import Fill
from torchinit.core.shards import Shard
from torchinit.errors import RunError
from torchinit.noise import Noise


@final
@dataclass(frozen=True, slots=True)
class Opaque(Fill):
    """Values that only the code itself can make; ``done`` tells what it did, in order; the text shows the last of it.

    A plan with an opaque step can be read, compared and kept, and cannot be run: that is a RunError before
    anything is written.

    >>> print(Opaque(("copy_(src=tensor of 4) at model.py:3",)))
    Opaque: copy_(src=tensor of 4) at model.py:3
    """

    done: tuple[str, ...]

    def __str__(self) -> str:
        before = f", the last of {len(self.done)}" if len(self.done) > 1 else ""
        return f"Opaque: {self.done[-1] if self.done else 'unknown code'}{before}"

    @property
    def obstacle(self) -> str:
        """Why it cannot be written."""
        return f"only its own code can write it ({', '.join(self.done)}); run that code, or give a rule for it"

    def write(self, shard: Shard, noise: Noise) -> None:
        raise RunError(f"{shard.name}: {self.obstacle}")
