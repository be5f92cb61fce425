"""Reach: which share of a model's parameters the rules of a scheme are for."""

from __future__ import annotations

from dataclasses import dataclass

from torchinit._text import count, percentage


@dataclass(frozen=True, slots=True)
class Reach:
    """How many of a model's parameters, and of their elements, the rules of a scheme reach, each beside their number.

    Counted are the parameters that learn (``requires_grad``), a tied one once. Reached is what a rule of the scheme
    gives a value, be it that a later rule gives it another one. ``better`` are the schemes that reach more of the
    model, where this one reaches less than a half of it.

    >>> print(Reach("llama", parameters=(2, 28), elements=(40, 10_000)))
    scheme 'llama' reached 2 of 28 parameters, 0.4 % of the elements
    """

    scheme: str
    parameters: tuple[int, int]
    elements: tuple[int, int]
    better: tuple[Reach, ...] = ()

    def __str__(self) -> str:
        reached, among = self.parameters
        elements = percentage(*self.elements)
        return f"scheme {self.scheme!r} reached {reached} of {count(among, 'parameter')}, {elements} % of the elements"

    @property
    def share(self) -> float:
        """The share of the parameters or that of their elements, the smaller one; 1 where there are none."""
        return min(reached / among if among else 1.0 for reached, among in (self.parameters, self.elements))

    @property
    def is_low(self) -> bool:
        """Whether less than a half is reached, of the parameters or of their elements."""
        return self.share < 0.5

    def summary(self) -> str:
        """What is reached, and if that is little, which schemes reach more."""
        if not self.is_low:
            return str(self)
        more = ", ".join("{!r} ({} of {})".format(other.scheme, *other.parameters) for other in self.better[:3])
        none = "No scheme that comes with torchinit reaches more of it: give the rest rules of their own"
        return f"{self}, less than a half of the model. {f'Schemes that reach more of it: {more}' if more else none}"
