"""Sketches: the fill that a row of operations amounts to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from torchinit.core.composites import Blockwise, Opaque, Padded
from torchinit.core.fills import Constant, Fill, Normal, TruncNormal, Uniform
from torchinit.core.matrices import Dirac, Identity, Orthogonal, Sparse
from torchinit.core.shards import Box

State = Fill | None
"""What a tensor, or a part of it, holds; None as long as nothing has been written."""

_Said = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of a tensor along one axis: how long it is, and what it holds."""

    size: int
    state: State = None


@dataclass(slots=True)
class Sketch:
    """What one tensor holds so far, in pieces along ``axis``; ``done`` tells what has been done to it."""

    shape: tuple[int, ...]
    axis: int
    pieces: list[Piece]
    done: list[str]

    @classmethod
    def blank(cls, shape: tuple[int, ...]) -> Sketch:
        return cls(shape, 0, [Piece(shape[0] if shape else 1)], [])

    def take(self, name: str, said: _Said, region: object, text: str) -> None:
        """Takes in an operation on a region."""
        self.done.append(text)
        span = self._span(region)
        if span is None or (span[0] != self.axis and len(self.pieces) > 1):
            self._whole(Opaque(tuple(self.done)))
            return
        axis, low, high = span
        if axis != self.axis:
            self.axis, self.pieces = axis, [Piece(self.shape[axis], self.pieces[0].state)]
        self._cut(low, high)
        at = 0
        for number, piece in enumerate(self.pieces):
            if low <= at < high:
                self.pieces[number] = replace(piece, state=self._after(piece.state, name, said))
            at += piece.size
        self._merge()

    @property
    def fill(self) -> State:
        """The fill that all of it amounts to; None where nothing was written."""
        states = [piece.state for piece in self.pieces]
        if len(states) == 1:
            return states[0]
        if any(state is None or isinstance(state, Opaque) for state in states):
            return Opaque(tuple(self.done))
        return self._padded() or Blockwise(
            tuple(state for state in states if state is not None), tuple(piece.size for piece in self.pieces), self.axis
        )

    def _padded(self) -> Fill | None:
        """A fill with one row of zeros, if it is that."""
        zeros = [number for number, piece in enumerate(self.pieces) if piece == Piece(1, Constant(0.0))]
        others = {piece.state for piece in self.pieces if piece != Piece(1, Constant(0.0))}
        if self.axis or len(zeros) != 1 or len(others) != 1:
            return None
        (fill,) = others
        return Padded(fill, sum(piece.size for piece in self.pieces[: zeros[0]])) if fill is not None else None

    def _whole(self, state: State) -> None:
        self.axis, self.pieces = 0, [Piece(self.shape[0] if self.shape else 1, state)]

    def _merge(self) -> None:
        """Makes one piece of them, if they are alike."""
        states = {piece.state for piece in self.pieces}
        if len(states) == 1:
            self._whole(self.pieces[0].state)

    def _span(self, region: object) -> tuple[int, int, int] | None:
        """The axis that a region is a part along, and from where to where; None for one that is no such part."""
        if region is None:
            return self.axis, 0, self.shape[self.axis] if self.shape else 1
        if not isinstance(region, Box):
            return None
        axes = [axis for axis, size in enumerate(self.shape) if region.shape[axis] != size]
        if len(axes) != 1:
            return None
        (axis,) = axes
        return axis, region.start[axis], region.start[axis] + region.shape[axis]

    def _cut(self, *places: int) -> None:
        """Cuts the pieces so that one begins at each place."""
        found, at = [], 0
        for piece in self.pieces:
            inside = sorted(place for place in places if at < place < at + piece.size)
            ends = [at, *inside, at + piece.size]
            state = piece.state
            if inside and state is not None and not state.elementwise:
                state = Opaque(tuple(self.done))
            found += [Piece(end - begin, state) for begin, end in pairwise(ends)]
            at += piece.size
        self.pieces = found

    def _after(self, state: State, name: str, said: _Said) -> Fill:
        """What is held after an operation; what no fill says is opaque."""
        fresh, change = FRESH.get(name), CHANGES.get(name)
        found = fresh(said) if fresh else change(state, said) if change and state is not None else None
        return found or Opaque(tuple(self.done))


# --- operations that give new values -----------------------------------------------------------------------


def _copied(said: _Said) -> Fill | None:
    source = _number(said["src"])
    return None if source is None else Constant(source)


def _truncated(said: _Said) -> Fill:
    mean, std, low, high = (float(said[name]) for name in ("mean", "std", "a", "b"))
    return TruncNormal(mean, std, low, high)


FRESH: Final[Mapping[str, Callable[[_Said], Fill | None]]] = {
    "zero_": lambda said: Constant(0.0),
    "fill_": lambda said: _constant(said["value"]),
    "copy_": _copied,
    "normal_": lambda said: Normal(float(said["mean"]), float(said["std"])),
    "uniform_": lambda said: Uniform(float(said["from"]), float(said["to"])),
    "eye": lambda said: Identity(),
    "trunc_normal_": _truncated,
    "orthogonal_": lambda said: Orthogonal(float(said["gain"])),
    "dirac_": lambda said: Dirac(said["groups"]),
    "sparse_": lambda said: Sparse(float(said["sparsity"]), float(said["std"])),
}
"""What each operation puts into a tensor, whatever it held."""

SHAPED: Final = frozenset({"eye", "orthogonal_", "dirac_", "sparse_"})
"""Those of them that go by the shape of the tensor."""


def _constant(value: object) -> Fill | None:
    number = _number(value)
    return None if number is None else Constant(number)


def _number(value: object) -> float | None:
    """A number, or a tensor of one that is here."""
    if isinstance(value, Tensor):
        here = value.dim() == 0 and value.device.type == "cpu" and not value.is_complex()
        return float(value) if here else None
    return float(value) if isinstance(value, (bool, int, float)) else None


# --- operations that change what is there ------------------------------------------------------------------


def _scaled(state: Fill, factor: float | None) -> Fill | None:
    match state:
        case _ if factor is None:
            return None
        case Constant(val):
            return Constant(_neat(val * factor))
        case Normal(mean, std):
            return Normal(_neat(mean * factor), _neat(std * abs(factor)))
        case Uniform(a, b):
            return Uniform(*sorted((_neat(a * factor), _neat(b * factor))))
        case TruncNormal(mean, std, a, b, "value") if factor:
            low, high = sorted((_neat(a * factor), _neat(b * factor)))
            return TruncNormal(_neat(mean * factor), _neat(std * abs(factor)), low, high)
        case Orthogonal(gain, axis):
            return Orthogonal(_neat(gain * factor), axis)
        case Identity(gain):
            return Identity(_neat(gain * factor))
        case Sparse(sparsity, std):
            return Sparse(sparsity, _neat(std * abs(factor)))
        case _:
            return None


def _shifted(state: Fill, by: float | None) -> Fill | None:
    match state:
        case _ if by is None:
            return None
        case _ if by == 0 and not isinstance(state, Opaque):
            return state
        case Constant(val):
            return Constant(_neat(val + by))
        case Normal(mean, std):
            return Normal(_neat(mean + by), std)
        case Uniform(a, b):
            return Uniform(_neat(a + by), _neat(b + by))
        case TruncNormal(mean, std, a, b, "value"):
            return TruncNormal(_neat(mean + by), std, _neat(a + by), _neat(b + by))
        case _:
            return None


def _quantiles(state: Fill, _: _Said) -> Fill | None:
    """The inverse error function of uniform numbers: a normal that is cut."""
    if not isinstance(state, Uniform) or not -1 <= state.a < state.b <= 1:
        return None
    low, high = torch.erfinv(torch.tensor([state.a, state.b], dtype=torch.float64)).tolist()
    return TruncNormal(0.0, math.sqrt(0.5), low, high)


_SLACK = 1e-6
"""So far from its bounds, in standard deviations, may a cut be that only repeats them."""

_REACH = 6.5
"""No draw of a normal is further from its mean, in standard deviations, so that a cut there changes nothing."""


def _clamped(state: Fill, said: _Said) -> Fill | None:
    low, high = (-math.inf if said["min"] is None else said["min"], math.inf if said["max"] is None else said["max"])
    match state:
        case TruncNormal(mean, std, a, b, "value") if _agree(a, low, mean, std) and _agree(-b, -high, -mean, std):
            return TruncNormal(mean, std, float(low), float(high))
        case Uniform(a, b) if low <= a and b <= high:
            return state
        case Constant(val):
            return Constant(min(max(val, float(low)), float(high)))
        case _:
            return None


def _agree(bound: float, cut: float, mean: float, std: float) -> bool:
    """Whether a cut from below is where the values end, or where none are."""
    return abs(bound - cut) <= _SLACK * std or cut <= mean - _REACH * std


def _inverse(value: object) -> float | None:
    number = _number(value)
    return 1 / number if number else None


def _negative(value: object) -> float | None:
    number = _number(value)
    return None if number is None else -number


def _added(state: Fill, said: _Said, sign: float = 1.0) -> Fill | None:
    other = _number(said["other"])
    return None if other is None else _shifted(state, sign * other * float(said.get("alpha", 1)))


CHANGES: Final[Mapping[str, Callable[[Fill, _Said], Fill | None]]] = {
    "mul_": lambda state, said: _scaled(state, _number(said["other"])),
    "div_": lambda state, said: None if said.get("rounding_mode") else _scaled(state, _inverse(said["other"])),
    "neg_": lambda state, said: _scaled(state, -1.0),
    "add_": _added,
    "sub_": lambda state, said: _added(state, said, -1.0),
    "erfinv_": _quantiles,
    "clamp_": _clamped,
}
"""What each operation makes of what a tensor held."""


def _neat(value: float) -> float:
    """The number without the rounding errors of a few multiplications."""
    return float(f"{value:.15g}")
