"""Capture: any initialization code, as a plan."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.initializers.base import Blockwise
from torchinit.initializers.composed import Opaque, Padded
from torchinit.initializers.elementwise import Constant, Fill, Normal, TruncNormal, Uniform
from torchinit.initializers.matrices import Dirac, Identity, Orthogonal, Sparse
from torchinit.model.shards import Box
from torchinit.model.sites import Site, sites
from torchinit.model.states import WHY
from torchinit.noise.distributions import MAX_SIGMAS
from torchinit.noise.settings import plain_thread
from torchinit.plans.plan import Plan, Skipped, Step
from torchinit.plans.planner import make_plan
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Layer, Leaf, Name, Selector
from torchinit.tracing.observer import Event, arguments_of, name_of
from torchinit.tracing.recorder import Recorder, TracedTensor
from torchinit.tracing.trace import Write

_Content: TypeAlias = Fill | None
"""The content of a tensor, or of a part of it; None as long as nothing has been written."""

_Arguments: TypeAlias = Mapping[str, Any]


def capture(model: nn.Module, code: Callable[[Any], object]) -> Plan:
    """The plan of what code does: it is run on a copy of the model that has no memory.

    ``code`` is called with the copy. What it writes that a fill describes is a step with that fill, Kaiming
    and Xavier with their numbers resolved; anything else is a step with :class:`torchinit.initializers.Opaque`,
    which cannot be run. Rules are by layer and last part of the name where all such sites agree, else by name.

    >>> from torchinit import Normal, capture
    >>> model = nn.Sequential(nn.Linear(50, 8), nn.LayerNorm(8))
    >>> plan = capture(model, lambda model: nn.init.kaiming_normal_(model[0].weight))
    >>> plan["0.weight"].fill, [site.name for site in plan.untouched]
    (Normal(mean=0.0, std=0.2), ['0.bias', '1.weight', '1.bias'])
    """
    with plain_thread():  # a copy that is made in inference mode could not be written
        copied = _without_memory(model)
    recorder = _SymbolicRecorder(copied)
    try:
        with recorder:
            code(copied)
    except Exception as error:
        error.add_note("torchinit.capture runs the code on the meta device, where tensors have no values to look at")
        raise
    fills = {name: fill for name in recorder.last if (fill := recorder.symbolic[name].fill) is not None}
    return _plan(sites(copied), fills, recorder.last)


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device; no memory of the model is copied on the way."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                blank = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                if isinstance(tensor, nn.Parameter):
                    blank = nn.Parameter(blank, requires_grad=tensor.requires_grad)
                blank.__dict__.update(vars(tensor))
                memo[id(tensor)] = blank
    return copy.deepcopy(model, memo)


class _SymbolicRecorder(Recorder):
    """A recorder that keeps a symbolic tensor for each site, and where it was written last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.symbolic: dict[str, _SymbolicTensor] = {}
        self.last: dict[str, Write] = {}

    def recorded(self, site: TracedTensor, event: Event, write: Write) -> None:
        tensor = self.symbolic.setdefault(site.name, _SymbolicTensor.blank(site.shape))
        arguments = {} if event.operation == "data =" else arguments_of(event.operation, event.args, event.kwargs)
        name = name_of(event.operation)
        whole = len(site.tensors) == 1 and (name not in _OF_WHOLE_SHAPES or event.target.shape == site.shape)
        tensor.apply(name, arguments, write.region if whole else "part", f"{write.what} at {write.line}")
        self.last.pop(site.name, None)
        self.last[site.name] = write


# --- from fills to a plan ----------------------------------------------------------------------------------


def _plan(found: Sequence[Site], fills: Mapping[str, Fill], last: Mapping[str, Write]) -> Plan:
    skipped = tuple(Skipped(site, WHY[site.state]) for site in found if site.name in fills and site.state != "ready")
    known = {site.name: site for site in found if site.name in fills and site.state == "ready"}
    rules = _rules(found, known, fills, last)
    steps, problems = [], []
    for turn, name in enumerate(name for name in last if name in known):
        site, fill, write = known[name], fills[name], last[name]
        try:
            fill.check(site.shape, site.dtype)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        steps.append(Step(site, fill, rules[name], turn=turn, notes=(write.call,) if write.call else ()))
    left = tuple(site for site in found if site.name not in fills)
    return Plan(tuple(steps), untouched=left, skipped=skipped, problems=tuple(problems))


def _rules(
    found: Sequence[Site], known: Mapping[str, Site], fills: Mapping[str, Fill], last: Mapping[str, Write]
) -> dict[str, Rule]:
    """A rule for each site: those that agree share one, if that brings back the same plan."""

    def rule(where: Selector, name: str) -> Rule:
        return Rule(where, fills[name], padding=False, buffers=known[name].kind == "buffer", origin=last[name].line)

    single = {name: rule(Name(name), name) for name in known}
    shared = dict(single)
    for (layer, leaf), names in _alike(found).items():
        if len(names) > 1 and all(name in known for name in names) and len({fills[name] for name in names}) == 1:
            shared.update(dict.fromkeys(names, rule(Layer(layer) & Leaf(leaf), names[0])))
    trial = make_plan(found, tuple(dict.fromkeys(shared.values())), ties="last")
    again = {step.site.name: step.fill for step in trial.steps}
    return shared if again == {name: fills[name] for name in known} else single


def _alike(found: Iterable[Site]) -> dict[tuple[str, str], list[str]]:
    """The sites of each layer and last part of the name; tied ones, which have several, stand alone."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for site in found:
        for view in site.views:
            groups[view.owner.name, view.leaf].append(site.name if not site.aliases else "")
    return groups


# --- symbolic tensors --------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """A part of a tensor along one axis: how long it is, and its content."""

    size: int
    content: _Content = None


@dataclass(slots=True)
class _SymbolicTensor:
    """The content of a tensor so far, in pieces along ``axis``; ``history`` has the operations on it, as text."""

    # Each piece holds a fill, and each operation on it gives another: numbers are drawn or set (_CREATING), or changed
    # in a way that a fill of the same kind describes (_CHANGING). What no fill describes is opaque from then on, until
    # something creates it anew. One axis is cut at a time, as code does it for the gates of an LSTM, the rows of a
    # table, q, k and v: an operation on a part along another axis makes the whole opaque, and so does one on a part of
    # a piece whose elements depend on each other. When all pieces are alike they become one again, along any axis.

    shape: tuple[int, ...]
    axis: int
    pieces: list[_Piece]
    history: list[str]

    @classmethod
    def blank(cls, shape: tuple[int, ...]) -> _SymbolicTensor:
        """A tensor of this shape to which nothing was written."""
        return cls(shape, 0, [_Piece(shape[0] if shape else 1)], [])

    def apply(self, name: str, arguments: _Arguments, region: object, text: str) -> None:
        """Do an operation on a region."""
        self.history.append(text)
        span = self._span(region)
        if span is None or (span[0] != self.axis and len(self.pieces) > 1):
            self._become(Opaque(tuple(self.history)))
            return
        axis, low, high = span
        if axis != self.axis:
            self.axis, self.pieces = axis, [_Piece(self.shape[axis], self.pieces[0].content)]
        self._cut(low, high)
        starts = accumulate((piece.size for piece in self.pieces), initial=0)
        self.pieces = [
            _Piece(piece.size, self._after(piece.content, name, arguments)) if low <= start < high else piece
            for start, piece in zip(starts, self.pieces, strict=False)
        ]
        if len({piece.content for piece in self.pieces}) == 1:
            self._become(self.pieces[0].content)

    @property
    def fill(self) -> _Content:
        """The fill that all of it amounts to; None where nothing was written."""
        contents = [piece.content for piece in self.pieces]
        if len(contents) == 1:
            return contents[0]
        known = tuple(content for content in contents if content is not None and not content.obstacle)
        if len(known) < len(contents):
            return Opaque(tuple(self.history))
        return self._padded() or Blockwise(known, tuple(piece.size for piece in self.pieces), self.axis)

    def _padded(self) -> Fill | None:
        """A fill with one row of zeros, if it is that."""
        zero = _Piece(1, Constant(0.0))
        rows = [number for number, piece in enumerate(self.pieces) if piece == zero]
        others = {piece.content for piece in self.pieces if piece != zero}
        if self.axis or len(rows) != 1 or len(others) != 1:
            return None
        (fill,) = others
        return fill and Padded(fill, sum(piece.size for piece in self.pieces[: rows[0]]))

    def _become(self, content: _Content) -> None:
        self.axis, self.pieces = 0, [_Piece(self.shape[0] if self.shape else 1, content)]

    def _span(self, region: object) -> tuple[int, int, int] | None:
        """The axis that a region is a part along, its first index and the end; None for any other region."""
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
        """Cut the pieces so that one begins at each place."""
        found, start = [], 0
        for size, content in self.pieces:
            inside = sorted(place for place in places if start < place < start + size)
            whole = inside and content is not None and not content.elementwise
            part = Opaque(tuple(self.history)) if whole else content
            found += [_Piece(end - begin, part) for begin, end in pairwise([start, *inside, start + size])]
            start += size
        self.pieces = found

    def _after(self, content: _Content, name: str, arguments: _Arguments) -> Fill:
        """The content after an operation; what no fill describes is opaque."""
        create, change = _CREATING.get(name), _CHANGING.get(name)
        if create is not None:
            found = create(arguments)
        else:
            found = change(content, arguments) if change and content is not None and not content.obstacle else None
        return found or Opaque(tuple(self.history))


def _number(value: object) -> float | None:
    """A number, or a tensor that holds one here."""
    if isinstance(value, Tensor):
        here = value.dim() == 0 and value.device.type == "cpu" and not value.is_complex()
        return float(value) if here else None
    return float(value) if isinstance(value, (bool, int, float)) else None


def _constant(value: object) -> Fill | None:
    number = _number(value)
    return None if number is None else Constant(number)


def _truncated(given: _Arguments) -> Fill:
    mean, std, low, high = (float(given[name]) for name in ("mean", "std", "a", "b"))
    return TruncNormal(mean, std, low, high)


_CREATING: Final[Mapping[str, Callable[[_Arguments], Fill | None]]] = {
    "zero_": lambda given: Constant(0.0),
    "fill_": lambda given: _constant(given["value"]),
    "copy_": lambda given: _constant(given["src"]),
    "normal_": lambda given: Normal(float(given["mean"]), float(given["std"])),
    "uniform_": lambda given: Uniform(float(given["from"]), float(given["to"])),
    "trunc_normal_": _truncated,
    "eye": lambda given: Identity(),
    "orthogonal_": lambda given: Orthogonal(float(given["gain"])),
    "dirac_": lambda given: Dirac(given["groups"]),
    "sparse_": lambda given: Sparse(float(given["sparsity"]), float(given["std"])),
}
"""The fill that each operation writes to a tensor, whatever it held."""

_OF_WHOLE_SHAPES: Final = frozenset({"eye", "orthogonal_", "dirac_", "sparse_"})
"""Those of them that go by the shape of the tensor."""


def _scaled(content: Fill, factor: float | None) -> Fill | None:
    if factor is None:
        return None
    try:
        return _neat(content.scaled(factor), content)
    except ValueError:  # a factor that is infinite
        return None


def _added(content: Fill, given: _Arguments, sign: float = 1.0) -> Fill | None:
    other = _number(given["other"])
    by = None if other is None else sign * other * float(given.get("alpha", 1))
    match content:
        case _ if by is None:
            return None
        case _ if by == 0:
            return content
        case Constant(val):
            return _neat(Constant(val + by), content)
        case Normal(mean, std):
            return _neat(Normal(mean + by, std), content)
        case Uniform(a, b):
            return _neat(Uniform(a + by, b + by), content)
        case TruncNormal(mean, std, a, b, "value"):
            return _neat(TruncNormal(mean + by, std, a + by, b + by), content)
        case _:
            return None


def _neat(fill: Fill, before: Fill) -> Fill:
    """The fill without the rounding errors that a few operations leave in the numbers that they changed."""
    values = {field.name: getattr(fill, field.name) for field in fields(fill)}  # type: ignore[arg-type]  # all are
    rounded = {
        name: float(f"{value:.15g}")
        for name, value in values.items()
        if isinstance(value, float) and value != getattr(before, name, None)
    }
    return replace(fill, **rounded)  # type: ignore[type-var]  # dataclasses


def _quantiles(content: Fill, _: _Arguments) -> Fill | None:
    """The inverse error function of uniform numbers: a normal that is cut."""
    if not isinstance(content, Uniform) or not -1 <= content.a < content.b <= 1:
        return None
    low, high = torch.erfinv(torch.tensor([content.a, content.b], dtype=torch.float64, device="cpu")).tolist()
    return TruncNormal(0.0, math.sqrt(0.5), low, high)


def _clamped(content: Fill, given: _Arguments) -> Fill | None:
    low = -math.inf if given["min"] is None else float(given["min"])
    high = math.inf if given["max"] is None else float(given["max"])
    match content:
        case TruncNormal(mean, std, a, b, "value") if _agree(a, low, mean, std) and _agree(-b, -high, -mean, std):
            return TruncNormal(mean, std, low, high)
        case Uniform(a, b) if low <= a and b <= high:
            return content
        case Constant(val):
            return Constant(min(max(val, low), high))
        case _:
            return None


_SLACK = 1e-6
"""The distance, in standard deviations, of a bound and a cut that only repeats it."""


def _agree(bound: float, cut: float, mean: float, std: float) -> bool:
    """Whether a cut from below is where the values end, or where there are none."""
    return abs(bound - cut) <= _SLACK * std or cut <= mean - MAX_SIGMAS * std


def _divided(content: Fill, given: _Arguments) -> Fill | None:
    divisor = _number(given["other"])
    return _scaled(content, 1 / divisor) if divisor and not given.get("rounding_mode") else None


_CHANGING: Final[Mapping[str, Callable[[Fill, _Arguments], Fill | None]]] = {
    "mul_": lambda content, given: _scaled(content, _number(given["other"])),
    "div_": _divided,
    "neg_": lambda content, given: _scaled(content, -1.0),
    "add_": _added,
    "sub_": lambda content, given: _added(content, given, -1.0),
    "erfinv_": _quantiles,
    "clamp_": _clamped,
}
"""The content that each operation makes of the one before."""
