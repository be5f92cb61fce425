"""Expected: what is known of a tensor before it has a value, and the call of an operation that makes one of others."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(eq=False, slots=True)
class Expected:
    """What is expected of a tensor: its second moment, None where that is not known, over how many ``units``.

    ``noise`` is the variance of ln RMS from draw to draw. ``normal`` says that the elements are normal around zero,
    ``centered`` only the latter. ``sources`` are the tensors that it is made of, each with the factor by which a
    gradient's second moment reaches it (None: not known), with the noise that this adds, and perhaps with the error of
    ln RMS that it has from the pass forward. ``values`` is the tensor that has the same elements; a ``weight`` is
    drawn, and independent of what it meets. ``norm`` says how far a norm or an attention that is written out has come,
    of which values, and what was added. ``draws`` are all the draws that went into it, as bits, ``fresh`` the last of
    them (:func:`are_apart`); ``part`` is the tensor of whose units it is a part, the axis, and the place.
    """

    second: float | None
    size: int
    units: int = 1
    noise: float = 0.0
    normal: bool = False
    centered: bool = False
    weight: bool = False
    values: object = None
    norm: tuple[str, object, float] | None = None
    sources: Sequence[tuple[Expected, float | None, float] | tuple[Expected, float | None, float, float]] = ()
    fresh: int = 0
    draws: int = 0
    part: tuple[Expected, int, object] | None = None
    gradient: float | None = 0.0
    gradient_noise: float = 0.0
    gradient_shift: float = 0.0

    def __post_init__(self) -> None:
        self.values = self.values or self

    @property
    def rms(self) -> float | None:
        """The root of the second moment."""
        return None if self.second is None or not math.isfinite(self.second) else math.sqrt(self.second)

    def nearest(self, wanted: Container[int]) -> set[int]:
        """The identities of those wanted that it is made of with no other of them in between."""
        seen: set[int] = set()
        found: set[int] = set()
        waiting = [self]
        while waiting:
            for source, *_ in waiting.pop().sources:
                if id(source) in wanted:
                    found.add(id(source))
                elif id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)
        return found


class OperationCall(NamedTuple):
    """A call of an operation: its arguments by name, the tensors it made, those it took, and what is known of those."""

    func: Any
    given: Mapping[str, Any]
    made: Sequence[Tensor]
    sources: Sequence[Expected]
    tensors: Sequence[Tensor]

    @property
    def name(self) -> str:
        """The name of the operation, in place or not."""
        return str(self.func.overloadpacket.__name__).rstrip("_")

    @property
    def size(self) -> int:
        return self.made[0].numel()

    @property
    def number(self) -> float:
        """The operand that is a number, the other one being a tensor."""
        operands = (self.given.get(key) for key in ("other", "self"))
        return next(float(each) for each in operands if isinstance(each, (int, float)))

    def at(self, name: str) -> Expected | None:
        """What is expected of the tensor that is given by this name."""
        at = [index for index, each in enumerate(self.tensors) if each is self.given.get(name)]
        return self.sources[at[0]] if at else None

    def unknown(self) -> Expected:
        """Nothing is known of the result, but from what it is made."""
        return Expected(None, self.size, sources=[(each, None, 0.0) for each in self.sources if not each.weight])


# Whether two tensors are independent shows in what was drawn for them. A layer's output is random anew by its weight,
# whatever comes in: given all else it has the same distribution, around zero. So it is apart from all that its weight
# had no part in, be it the stream that it was computed from, and so is what is made of it element by element. A sum or
# a product is random anew by the draws of both sides together. Where each side holds some of what makes the other
# random, as in `x + x`, `(x + y) * x` or `x @ w - x @ w`, nothing is said. Parts of the same units are apart if they
# begin at different places.
def are_apart(one: Expected, other: Expected) -> bool:
    """Whether the elements of two tensors that stand at the same place are independent of each other."""
    if one.part and other.part and one.part[:2] == other.part[:2]:
        return one.part[2] != other.part[2]
    return not (one.fresh & other.draws and other.fresh & one.draws)
