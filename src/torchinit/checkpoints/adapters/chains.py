"""Chains: several adapters, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Size

_Value = TypeVar("_Value")


@final
@dataclass(frozen=True, slots=True)
class Chain(Adapter):
    """Several adapters, from the file to the site: each takes what the one before it makes.

    The last gives the site what it asks for; those before it must make a shape of their own, whatever the
    site's, as ``Transpose``, ``Fuse``, ``Split``, ``Stack`` do and the ones that resize do not.

    >>> from torchinit.checkpoints.adapters.axes import Transpose
    >>> from torchinit.checkpoints.adapters.fusion import Split
    >>> chain = Chain((Transpose(), Split("c_attn", ("q", "k", "v"))))
    >>> chain.wants("h.0.k.weight"), chain.makes([(16, 48)], "h.0.k.weight")
    (('h.0.c_attn.weight',), (16, 16))
    """

    steps: tuple[Adapter, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a chain needs at least one step")
        if any(isinstance(step, Chain) for step in self.steps):
            raise ValueError("a chain holds no other chain; write its steps out")

    def wants(self, key: str) -> tuple[str, ...]:
        return self._wanted(key, len(self.steps) - 1)

    def _wanted(self, key: str, last: int) -> tuple[str, ...]:
        """What the file must hold for the steps up to ``last`` to make a tensor of this name."""
        if last < 0:
            return (key,)
        return tuple(wanted for part in self.steps[last].wants(key) for wanted in self._wanted(part, last - 1))

    def makes(self, shapes: Sequence[Size], key: str) -> Size | None:
        last = self.steps[-1]
        return last.makes(self._before(shapes, key, self._made), key)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        self.steps[-1].check(self._before(shapes, key, self._made), shape, key)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        return self.steps[-1].adapt(self._before(tensors, key, self._adapted), shape, key)

    def _before(
        self, values: Sequence[_Value], key: str, make: Callable[[Adapter, list[_Value], str], _Value]
    ) -> list[_Value]:
        """What the steps before the last make of the values for it."""
        left = iter(values)

        def inputs(key: str, step: int) -> list[_Value]:
            return [value(part, step - 1) for part in self.steps[step].wants(key)]

        def value(key: str, step: int) -> _Value:
            return next(left) if step < 0 else make(self.steps[step], inputs(key, step), key)

        return inputs(key, len(self.steps) - 1)

    def _made(self, step: Adapter, shapes: list[Size], key: str) -> Size:
        made = step.makes(shapes, key)
        if made is None:
            raise ValueError(f"{step} makes whatever shape is asked for, so it must be the last of {self}")
        return made

    def _adapted(self, step: Adapter, tensors: list[Tensor], key: str) -> Tensor:
        return step.adapt(tensors, self._made(step, [tuple(tensor.shape) for tensor in tensors], key), key)
