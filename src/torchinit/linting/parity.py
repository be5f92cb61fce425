"""Parity: whether a model from the meta device starts as the one that is built in memory does."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._text import count, did_you_mean, dtype_name, shape_text
from torchinit.api import initialize, materialize
from torchinit.distributed import needs
from torchinit.errors import ConfigError, ReportError, RunError
from torchinit.initializers.statistics import FEWEST, is_shuffled
from torchinit.linting.lint import ConstructionRecorder
from torchinit.linting.registry import Finding, Findings
from torchinit.model.sandbox import Poison, poisoned_memory
from torchinit.model.traversal import HeldTensor, walk_modules, walk_tensors
from torchinit.noise import seeded_generators
from torchinit.recipes import RecipeLike, schemes
from torchinit.recipes.checks import check_model
from torchinit.rules.rule import Value
from torchinit.tracing import Trace, Write, line_of_user, trace

Init: TypeAlias = RecipeLike | Callable[[nn.Module], object]

_OF_MODELS = ("init_weights", "init_states", "initialize_weights", "reset_parameters", "_init_weights")
"""The methods by which a model starts itself after ``to_empty``, in the order in which they are looked for."""

_REMEDIES = {
    "forgotten": "write it there, too: to_empty() leaves the constructor's values behind",
    "values": "let both do the same, best by one method that both call",
    "dtype": "give it one dtype in both",
    "shape": "give it one shape in both",
    "tie": "tie them there, too, or in neither",
    "missing": "make it in both",
}
_SIGMAS = 6.0


def meta_parity(
    factory: Callable[[], nn.Module],
    *,
    init: Init | None = None,
    seed: int = 0,
    arguments: Mapping[str, Value] | None = None,
) -> Findings:
    """Compare the model that a factory builds in memory with the one from the meta device, tensor by tensor.

    The second is built under ``torch.device("meta")``, given memory by ``to_empty`` and started by ``init``: the name
    of a method (of the model, else of each module that has it), or a function of the model. None: the model's own
    ``init_weights``, ``init_states``, ``reset_parameters`` or ``_init_weights``, else ``reset_parameters`` of all its
    layers. The factory is to build the model as a run without the meta device does, with what is called after the
    constructor. With a recipe as ``init`` (and its ``arguments``) both models get it: one by ``initialize``, the other
    by ``materialize``.

    Found are tensors that are ``forgotten`` (they hold what the memory held), have other ``values``, another ``dtype``
    or ``shape``, are not tied alike (``tie``), or are ``missing`` on one side; each with the line that made it in
    memory. What two seeds of the factory make alike has to be the same bit for bit, as a buffer; drawn values may
    differ in mean and standard deviation by six standard errors, fewer than 20 as they like. Memory for three
    models is taken; torch's random state is left alone.

    Raises ConfigError for an ``init`` that is none of these, RunError where the method or function raises, and what
    ``materialize`` raises for a recipe.

    >>> class Scaled(nn.Linear):
    ...     def __init__(self):
    ...         super().__init__(64, 64)
    ...         self.weight.data.mul_(0.1)
    >>> [(one.code, one.site) for one in meta_parity(Scaled)]
    [('values', 'weight')]
    """
    with _sandboxed(seed + 2):
        sketch, notes = _sketched(factory)
    check_model(sketch, init)
    is_method = isinstance(init, str) and any(_method(module, init) for module in sketch.modules())
    recipe = None if init is None or callable(init) or is_method else init
    if isinstance(recipe, str) and recipe.isidentifier() and recipe not in schemes():
        known = {name for module in sketch.modules() for name in dir(type(module)) if not hasattr(nn.Module, name)}
        what = f"neither a method of {type(sketch).__name__} or one of its modules nor a recipe"
        raise ConfigError(f"init: {recipe!r} is {what}{did_you_mean(recipe, known.union(schemes()))}")

    if arguments and recipe is None:
        raise ConfigError("arguments: are those of a recipe, and init is none")

    def in_memory(number: int) -> _Side:
        recorder = _Construction()
        with _sandboxed(number):
            with recorder:
                model = factory()
            if recipe is not None:
                initialize(model, recipe, seed=seed, arguments=arguments)
        return _Side(model, recorder.of(model), recorder.lines)

    with _sandboxed(seed + 2):
        if recipe is None:
            text, call = _own_start(sketch, cast("str | Callable[[nn.Module], object] | None", init))
            sketch.to_empty(device="cpu")
            with trace(sketch) as seen:
                _carry_out(text, call)
            after = _Side(sketch, seen)
        else:
            materialize(sketch, recipe, seed=seed, arguments=arguments)
            text, after = "materialize()", _Side(sketch)
    compared = _Comparison(in_memory(seed), in_memory(seed + 1), after, text)
    return Findings((*compared.findings(), *notes))


def assert_meta_parity(
    factory: Callable[[], nn.Module],
    *,
    init: Init | None = None,
    seed: int = 0,
    arguments: Mapping[str, Value] | None = None,
) -> None:
    """Raise ReportError, an AssertionError, with all that :func:`torchinit.linting.meta_parity` finds.

    For tests of a model: one line that fails where ``to_empty`` and the initialization do not bring back what the
    constructor made: a buffer, a scale, a tie.

    >>> assert_meta_parity(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    """
    if errors := meta_parity(factory, init=init, seed=seed, arguments=arguments).errors:
        raise ReportError(f"{count(len(errors), 'tensor')} from the meta device unlike in memory", map(str, errors))


# --- both ways to build a model ------------------------------------------------------------------------------


@contextmanager
def _sandboxed(seed: int) -> Iterator[None]:
    """Within it torch's generator starts from a seed, and memory that nobody fills holds NaN."""
    with seeded_generators(seed), poisoned_memory():
        yield


class _Construction(ConstructionRecorder):
    """A recorder that also keeps the line that put each tensor into each module: a tie is not a write."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[nn.Module, str], str] = {}

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        super()._on_registration(module, name, value)
        if isinstance(value, Tensor):
            self.lines[module, name] = line_of_user()


def _sketched(factory: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Finding, ...]]:
    """The model on the meta device; moved there, with a note, where its constructor cannot run there."""
    try:
        with torch.device("meta"):
            return factory(), ()
    except Exception as error:  # noqa: BLE001  # foreign code
        text = f"it was built in memory and moved to the meta device, where its constructor raises: {error}"
        return factory().to("meta"), (Finding("meta", "note", "", text),)


def _method(module: nn.Module, name: str) -> Callable[..., object] | None:
    """A method of a module's class: a submodule of that name is not meant."""
    return getattr(module, name) if callable(getattr(type(module), name, None)) else None


def _own_start(model: nn.Module, init: str | Callable[[nn.Module], object] | None) -> tuple[str, Callable[[], object]]:
    """What starts a model that has got memory, in words, and the call that does it."""
    if callable(init):
        return f"{getattr(init, '__name__', type(init).__name__)}(model)", lambda: init(model)
    for name in _OF_MODELS if init is None else (init,):
        method = _method(model, name)
        if method and needs(method) == 1:
            return f"apply({type(model).__name__}.{name})", partial(model.apply, method)  # type: ignore[arg-type]
        if method and needs(method) == 0:
            return f"{type(model).__name__}.{name}()", method
    names = ("reset_parameters", "_reset_parameters") if init is None else (init,)
    modules = dict.fromkeys(place.module for place in walk_modules(model))
    found = (next(filter(None, (_method(module, name) for name in names)), None) for module in modules)
    methods = [method for method in found if method and needs(method) == 0]
    return f"the modules' own {names[0]}()", lambda: [method() for method in methods]


def _carry_out(text: str, call: Callable[[], object]) -> None:
    try:
        with torch.no_grad():
            call()
    except Exception as error:
        raise RunError(f"{text} raised {type(error).__name__} after to_empty(): {error}") from error


# --- their tensors side by side ------------------------------------------------------------------------------


class _Side:
    """A model that was built in one of the two ways: its tensors by name, and the lines that wrote them."""

    def __init__(
        self, model: nn.Module, seen: Trace | None = None, lines: Mapping[tuple[nn.Module, str], str] | None = None
    ) -> None:
        self.tensors: dict[str, HeldTensor] = {entry.name: entry for entry in walk_tensors(model)}
        self.names: dict[object, list[str]] = defaultdict(list)
        for name, entry in self.tensors.items():
            self.names[entry.key].append(name)
        self.seen = seen
        self.lines = lines or {}
        self.last: dict[str, Write] = {write.site: write for write in sorted(seen or (), key=lambda write: write.last)}

    def first(self, name: str) -> str:
        """The first name of the tensor of this name."""
        return self.names[self.tensors[name].key][0]

    def writes(self, name: str) -> list[Write]:
        """The last write to the tensor by each of its names."""
        return [self.last[each] for each in self.names[self.tensors[name].key] if each in self.last]

    def line(self, name: str) -> str:
        """The line that wrote a tensor last, else that put it into its module."""
        return next((write.line for write in self.writes(name) if write.line), "") or self.placed(name)

    def placed(self, name: str) -> str:
        """The line that put a tensor into its module."""
        return self.lines.get((self.tensors[name].place.module, self.tensors[name].leaf), "")


class _Sample(NamedTuple):
    """Drawn values in figures."""

    numel: int
    mean: float
    std: float
    kurtosis: float
    constant: bool

    @classmethod
    def of(cls, values: Tensor) -> _Sample:
        mean = float(values.mean())
        around = values - mean
        square = float(around.square().mean())
        fourth = float(around.square().square().mean())
        return cls(len(values), mean, math.sqrt(square), fourth / square**2 if square else 3.0, not values.diff().any())


class _Comparison:
    """Two models in memory, from two seeds, and the one from the meta device, which ``text`` has started."""

    def __init__(self, before: _Side, again: _Side, after: _Side, text: str) -> None:
        self.before, self.again, self.after, self.text = before, again, after, text
        drawn = [pair for name in before.tensors if (pair := self._pair(name)) and is_shuffled(pair[0])]
        # A factory that seeds itself shows no difference between two seeds: then all that varies may be drawn.
        self.seeds_itself = bool(drawn) and all(_alike(*pair).all() for pair in drawn)

    def findings(self) -> Iterator[Finding]:
        """A finding for each tensor that is not alike, in the order of the model in memory."""
        for name in self.before.tensors:
            if name not in self.after.tensors:
                yield self._finding("missing", name, f"is not there after {self.text}")
            elif found := self._tie(name):
                yield found
            elif name == self.before.first(name) and (difference := self._difference(name)):
                yield self._finding(difference[0], name, difference[1])
        for name in self.after.tensors:
            if name not in self.before.tensors:
                yield Finding("missing", "error", name, f"is there only after {self.text}", _REMEDIES["missing"])

    def _finding(self, code: str, name: str, message: str, line: str = "") -> Finding:
        return Finding(code, "error", name, message, _REMEDIES[code], line or self.before.line(name))

    def _tie(self, name: str) -> Finding | None:
        """The finding that a tensor is one with another in memory alone, or from the meta device alone."""
        before, after = self.before, self.after
        first = before.first(name)
        if first != name and first in after.tensors and after.tensors[first].key != after.tensors[name].key:
            text = f"is one with {first} in memory, and is not after {self.text}"
            return self._finding("tie", name, text, before.placed(name))
        other = after.first(name)
        if other != name and other in before.tensors and before.tensors[other].key != before.tensors[name].key:
            return self._finding("tie", name, f"is one with {other} after {self.text}, and is not in memory")
        return None

    def _pair(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A parameter's values from two seeds, where they can be looked at."""
        if name not in self.again.tensors or self.before.tensors[name].kind == "buffer":
            return None
        first, second = self.before.tensors[name].tensor, self.again.tensors[name].tensor
        return None if _is_opaque(first) or _is_opaque(second) else (first.detach(), second.detach())

    def _difference(self, name: str) -> tuple[str, str] | None:
        """What is not alike of one tensor, as a code and in words."""
        old, new = self.before.tensors[name].tensor, self.after.tensors[name].tensor
        if is_lazy(old) or is_lazy(new):
            return None
        if old.dtype != new.dtype:
            return "dtype", f"is {dtype_name(new.dtype)} after {self.text}, and {dtype_name(old.dtype)} in memory"
        if old.shape != new.shape:
            shapes = shape_text(new.shape), shape_text(old.shape)
            return "shape", f"has shape {shapes[0]} after {self.text}, and {shapes[1]} in memory"
        if new.is_meta or not (self.after.seen is None or self.after.writes(name)):
            return ("forgotten", f"{self.text} does not write it") if new.numel() else None
        if _is_opaque(old) or _is_opaque(new):
            return None
        old, new = old.detach(), new.detach()
        if holes := int((_unfilled(new) & ~_unfilled(old)).sum()):
            return "forgotten", f"{self.text} leaves {holes:,} of {count(old.numel(), 'value')} unfilled"
        now, was = self._apart(name, old, new)
        return ("values", f"{now} after {self.text}, and {was} in memory") if now else None

    def _apart(self, name: str, old: Tensor, new: Tensor) -> tuple[str, str]:
        """How the values differ by more than chance: what they are now, and what they were; empty if they do not."""
        entry = self.again.tensors.get(name)
        same = _alike(old, entry.tensor.detach()) if entry and entry.tensor.shape == old.shape else None
        drawn = same is not None and not same.all()
        if self.before.tensors[name].kind == "parameter" and not drawn:
            varies = old.numel() > 1 and bool((old != old.flatten()[0]).any())
            drawn = is_shuffled(old) or (self.seeds_itself and varies)
        if not drawn or not (old.is_floating_point() or old.is_complex()):
            return _unequal(old, new)
        if same is not None and old.dim() > 1 and not same.all() and old[0].numel() > 3:
            # Rows that no seed changes, as that of padding, are constants among what is drawn.
            fixed = same.flatten(1).all(1)
            now, was = _unequal(old[fixed], new[fixed])
            if now:
                return f"of {count(int(fixed.sum()), 'row')} that are not drawn in memory, {now}", was
            old, new = old[~fixed], new[~fixed]
        return _unlike(_Sample.of(_flat(old)), _Sample.of(_flat(new)), torch.finfo(old.dtype.to_real()).eps)


def _is_opaque(tensor: Tensor) -> bool:
    return is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized


def _flat(values: Tensor) -> Tensor:
    return (torch.view_as_real(values.resolve_conj()) if values.is_complex() else values).double().flatten()


def _alike(first: Tensor, second: Tensor) -> Tensor:
    """Where two tensors hold the same numbers; NaN is like NaN."""
    if first.shape != second.shape:
        return torch.zeros((), dtype=torch.bool, device=first.device)
    first, second = _comparable(first), _comparable(second)
    return (first == second) | (first.isnan() & second.isnan())


def _unfilled(values: Tensor) -> Tensor:
    """Where there is what memory holds that nobody has filled; of booleans nothing shows."""
    if values.is_floating_point() or values.is_complex():
        return _comparable(values).isnan()
    return values == Poison().of(values.dtype) if values.dtype != torch.bool else torch.zeros_like(values)


def _comparable(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() and values.dtype.itemsize == 1 else values


def _unequal(old: Tensor, new: Tensor) -> tuple[str, str]:
    """How many values are not equal and what the first of them is, and was; empty if all are."""
    wrong = ~_alike(old, new)
    number = int(wrong.sum())
    if not number:
        return "", ""
    at = tuple(wrong.nonzero()[0].tolist())
    now, was = (f"{each[at].item():.6g}" for each in (new, old))
    return f"{number:,} of {count(old.numel(), 'value')} differ: {f'that at {[*at]}' if at else 'it'} is {now}", was


def _unlike(old: _Sample, new: _Sample, eps: float) -> tuple[str, str]:
    """By which figure two samples differ, by more than six standard errors; empty if they do not."""
    if new.constant and not old.constant:
        return f"all values are {new.mean:.6g}", f"drawn with std {old.std:.6g}"
    if old.numel < FEWEST:  # whose deviations stray so far that six of them say nothing
        return "", ""
    # Both samples stray, and their deviations are not known but from themselves: pooled, since that of one may be small
    # by chance, and widened, since a Student distribution has wider tails than a normal.
    pooled = math.hypot(old.std, new.std) / math.sqrt(2)
    error = _SIGMAS * (1 + _SIGMAS / old.numel) * pooled * math.sqrt(2 / old.numel)
    spread = error * math.sqrt(max(old.kurtosis, new.kurtosis, 3.0) - 1) / 2
    rounding = 2 * eps * max(abs(old.mean), abs(new.mean), pooled)
    for noun, was, now, allowed in (("mean", old.mean, new.mean, error), ("std", old.std, new.std, spread)):
        if abs(was - now) > allowed + rounding:
            return f"{noun} is {now:.6g}", f"{was:.6g}"
    return "", ""
