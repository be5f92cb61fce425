"""Expected: what is known of a tensor before it has values, and of an operation on such tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import Tensor

_CLOSE: Final = 0.25
"""How much of a second moment may be the mean's, for what is drawn around zero."""


@dataclass(eq=False, slots=True)
class Expected:
    """What is expected of a tensor: its second moment, None where that is not known, over how many ``units``.

    ``noise`` is the variance of ln RMS from draw to draw. ``normal`` says that the elements are normal around zero,
    ``centered`` only the latter. ``sources`` are the tensors that it is made of, each with the factor by which a
    gradient's second moment reaches it (None: not known), and with the noise that this adds. ``root`` is the tensor
    that it is a function of, element by element, ``values`` the one that has the same elements; a ``weight`` is drawn,
    and independent of what it meets. ``norm`` says how far a norm that is written out has come, and of which values.
    """

    second: float | None
    size: int
    units: int = 1
    noise: float = 0.0
    normal: bool = False
    centered: bool = False
    weight: bool = False
    root: object = None
    values: object = None
    norm: tuple[str, object] | None = None
    sources: Sequence[tuple[Expected, float | None, float]] = ()
    gradient: float | None = 0.0
    gradient_noise: float = 0.0

    def __post_init__(self) -> None:
        self.root, self.values = self.root or self, self.values or self

    @property
    def rms(self) -> float | None:
        """The root of the second moment."""
        return None if self.second is None or not math.isfinite(self.second) else math.sqrt(self.second)


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


def expected_of(mean: float, rms: float, shape: Sequence[int], *, weight: bool) -> Expected:
    """What is expected of a parameter, or of an input, with these moments.

    The inputs of a unit add up the mean of a matrix, so little of it is much, but for what chance leaves of a few rows.
    """
    numel, is_matrix = math.prod(shape), sum(size > 1 for size in shape) > 1
    fan = numel / shape[0] if weight and is_matrix else 1.0
    centered = mean**2 * fan <= max(_CLOSE, 9 / shape[0] if fan > 1 else 0.0) * rms**2
    second = rms**2 if centered or fan == 1 else None
    return Expected(second, numel, shape[-1] if shape else 1, 0.0, centered, centered, weight)
