"""Own code: how the modules of a model themselves make the buffers that no rule writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from torchinit.distributed.allocation import Tenant
from torchinit.distributed.standins import Values, light_parameters, standing_in, twice
from torchinit.model.constructors import kept_arguments
from torchinit.model.dtensor import shards_of
from torchinit.model.names import normalize
from torchinit.model.sandbox import Poison, poisoned_memory
from torchinit.noise import Keyed
from torchinit.noise.threads import one_thread

METHODS = (
    "reset_running_stats",
    "reset_buffers",
    "_reset_buffers",
    "init_buffers",
    "_init_buffers",
    "reset_parameters",
    "_reset_parameters",
    "init_weights",
    "_init_weights",
)
"""What modules call the code that sets them up anew, in the order in which it is tried."""

_DRAW = 3
"""The draw index of what own code draws: fills use 0 and 1, parametrizations 2."""

_TRIED: ContextVar[bool] = ContextVar("torchinit_own_code_is_tried", default=False)

Place = tuple[nn.Module, str]
Lent = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Way:
    """Code that may make buffers of ``scope``: a method to call, or a constructor that builds the scope anew."""

    text: str
    scope: nn.Module
    call: Callable[[], Any]
    builds: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it: by the names of the buffers, who made each of them, and why nobody did."""

    by: dict[str, str] = field(default_factory=dict)
    failed: dict[str, tuple[str, ...]] = field(default_factory=dict)


@one_thread()
def make_buffers(
    model: nn.Module,
    wanted: Sequence[Tenant],
    device: torch.device,
    seed: int,
    *,
    paths: Mapping[nn.Module, str] | None = None,
    initialized_later: Callable[[nn.Module], bool] = lambda _: False,
) -> Made:
    """Gives buffers the values that their modules' own code gives them, and leaves everything else as it is.

    Tried are, in this order: the module's methods that set it up anew (``reset_parameters`` and its like), an
    ``_init_weights(module)`` of a module above it, the methods of those above it, and the constructors, where a
    module keeps all the arguments that it was made with under their own names. A buffer counts as made when all of its
    elements come out the same whatever it held before. What the code draws depends on the seed and its module alone,
    by the name that ``paths`` has for it, else by that in the model, and what it computes not on the number of threads.
    The ``init_weights`` of a module that is ``initialized_later`` is not tried: it will be called in any case.

    >>> norm = nn.BatchNorm1d(2)
    >>> _ = norm.running_var.fill_(torch.nan)
    >>> wanted = [Tenant("running_var", norm, "running_var", norm.running_var, "buffer")]
    >>> make_buffers(norm, wanted, torch.device("cpu"), seed=0).by, norm.running_var
    ({'running_var': 'BatchNorm1d.reset_running_stats()'}, tensor([1., 1.]))
    """
    made = Made()
    above = _parents(model)
    paths = {**{module: normalize(path) for path, module in model.named_modules()}, **(paths or {})}
    missing = {(one.module, one.leaf): one for one in wanted}
    tried: dict[tuple[nn.Module, str], str] = {}  # whatever a way makes, it has made when it was first tried
    for module in dict.fromkeys(one.module for one in wanted):
        reasons: list[str] = []
        for way in _ways([module, *above[module]], initialized_later):
            here = [one for one in missing.values() if one.module is module]
            if not here:
                break
            found: dict[Place, Tensor] = {}
            if (way.scope, way.text) not in tried:
                lent = partial(Keyed(seed).lending, paths[way.scope], _DRAW, device)
                found, reason = _tried(way, list(missing.values()), device, lent)
                tried[way.scope, way.text] = reason
            reasons += filter(None, [tried[way.scope, way.text]])
            for place, value in found.items():
                one = missing.pop(place)
                _store(one, value)
                made.by[one.name] = way.text
        made.failed.update({one.name: tuple(reasons) for one in missing.values() if one.module is module})
    return made


def _parents(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """The modules above each module, the nearest first."""
    found: dict[nn.Module, list[nn.Module]] = {model: []}
    for module in model.modules():
        for child in module.children():
            found.setdefault(child, [module, *found[module]])
    return found


def _ways(chain: Sequence[nn.Module], initialized_later: Callable[[nn.Module], bool]) -> Iterator[Way]:
    module, *above = chain
    yield from _methods(module, initialized_later)
    for one in chain:
        method: Any = getattr(one, "_init_weights", None)
        if needs(method) == 1:
            yield Way(f"{_name(one)}._init_weights({_name(module)})", module, partial(method, module))
    for one in above:
        yield from _methods(one, initialized_later)
    for one in chain:
        build = _constructor(one)
        if build is not None:
            yield Way(f"{_name(one)}(...)", one, build, builds=True)


def _methods(module: nn.Module, initialized_later: Callable[[nn.Module], bool]) -> Iterator[Way]:
    for name in METHODS:
        if name == "init_weights" and initialized_later(module):
            continue
        method: Any = getattr(module, name, None)
        if needs(method) == 0:
            yield Way(f"{_name(module)}.{name}()", module, method)


def needs(method: Any) -> int | None:
    """How many arguments a method has to be given; None for what cannot be called, and where nobody can tell."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    return sum(one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _constructor(module: nn.Module) -> Callable[[], nn.Module] | None:
    """Builds a module of this class anew, if it keeps all that it was made with."""
    if is_parametrized(module) or type(module).__init__ is nn.Module.__init__:
        return None
    arguments = kept_arguments(module, type(module))
    return None if arguments is None else partial(type(module), **arguments)


def _tried(way: Way, missing: Sequence[Tenant], device: torch.device, lent: Lent) -> tuple[dict[Place, Tensor], str]:
    """The missing buffers that the code makes, and what went wrong."""
    inside = set(map(id, way.scope.modules()))
    wanted = [one for one in missing if id(one.module) in inside]
    try:
        found = twice(lambda poison: _run(way, wanted, poison, device, lent))
    except Exception as error:  # noqa: BLE001  # other people's code; it is told if all fails
        return {}, f"{way.text} raised {type(error).__name__}: {error}"
    return found, "" if len(found) == len(wanted) else f"{way.text} does not write all of it"


def is_tried() -> bool:
    """Whether code of a model's is being tried for buffers: what it writes is thrown away, and recipes may rest.

    >>> is_tried()
    False
    """
    return _TRIED.get()


def _run(way: Way, wanted: list[Tenant], poison: Poison, device: torch.device, lent: Lent) -> Values:
    token = _TRIED.set(True)
    try:
        return _made(way, wanted, poison, device, lent)
    finally:
        _TRIED.reset(token)


def _made(way: Way, wanted: list[Tenant], poison: Poison, device: torch.device, lent: Lent) -> Values:
    with lent(), torch.no_grad(), device:
        if way.builds:
            with light_parameters(), poisoned_memory(poison):
                return _of_twin(way.scope, way.call(), wanted)
        with standing_in(way.scope, wanted, poison, device):
            way.call()
            found = {(one.module, one.leaf): one.module._buffers.get(one.leaf) for one in wanted}
            return {place: value.detach().clone() for place, value in found.items() if value is not None}


def _of_twin(scope: nn.Module, twin: nn.Module, wanted: Sequence[Tenant]) -> Values:
    """The buffers of a module that was built anew, if it is like the one that it stands for."""
    if _outline(scope) != _outline(twin):
        raise ValueError("it builds another module than this one")
    paths = {module: path for path, module in scope.named_modules()}
    found = {(one.module, one.leaf): twin.get_submodule(paths[one.module])._buffers[one.leaf] for one in wanted}
    return {place: value for place, value in found.items() if value is not None}


def _outline(module: nn.Module) -> dict[str, tuple[int, ...]]:
    every = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in every}


def _store(one: Tenant, value: Tensor) -> None:
    with torch.no_grad():
        for part in shards_of(one.name, one.tensor):
            box = tuple(slice(at, at + size) for at, size in zip(part.start, part.local.shape, strict=True))
            part.local.copy_(value[box])
