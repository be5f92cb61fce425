"""Own code: what the code of a model's own modules makes, buffers on a stand-in and parameters by resets."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils.parametrize import is_parametrized

from torchinit.distributed.allocation import ModuleTensor
from torchinit.distributed.collectives import exchanged, is_shared, over_group
from torchinit.distributed.wholes import Exchange, WholeTensors, is_spread, write_whole
from torchinit.model.dtensor import local_part
from torchinit.model.names import normalize
from torchinit.model.sandbox import Poison, poisoned_memory
from torchinit.model.states import kept_arguments
from torchinit.model.traversal import walk_modules
from torchinit.noise import Keyed, Noise
from torchinit.noise.settings import one_thread, plain_process
from torchinit.tracing.recorder import Recorder
from torchinit.tracing.seeded import Seeded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

METHODS = (
    *("reset_running_stats", "reset_buffers", "_reset_buffers", "init_buffers", "_init_buffers"),
    *("reset_parameters", "_reset_parameters", "init_weights", "_init_weights"),
)
"""The usual names of methods that set a module up anew, in the order in which they are tried."""

_DRAW = 3
"""The draw index of what own code draws: fills use 0 and 1, parametrizations 2."""

_POISONS: tuple[Poison, ...] = (Poison(torch.nan, 1), Poison(1.5, 0))
"""The content of buffers before a run: for floats, and for integers."""

_TRIED: ContextVar[bool] = ContextVar("torchinit_own_code_is_tried", default=False)

_Place: TypeAlias = tuple[nn.Module, str]
_Values: TypeAlias = dict[_Place, Tensor]
_Lending: TypeAlias = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class _OwnCode:
    """Code that may make buffers of ``scope``: a method to call, or a constructor that builds the scope anew."""

    text: str
    scope: nn.Module
    call: Callable[[], Any]
    builds: bool = False


@dataclass(frozen=True, slots=True)
class OwnCodeResult:
    """The result of own code: by the names of the tensors, the code that made each, and why none did."""

    by: dict[str, str] = field(default_factory=dict)
    failed: dict[str, tuple[str, ...]] = field(default_factory=dict)


MATERIALIZE: Final = "torchinit.materialize"
"""What ranks do that gather what own code reads, as they are told."""

# A module's own code knows how to make its buffers, but nothing says which of it does, and it may do more: write to
# parameters, count its calls, assign attributes. So it is run on a stand-in: the module itself with parameters on the
# meta device, buffers that hold poison, and all its attributes put back afterwards. It is run twice, from different
# poisons: what comes out the same was written whole, which works without NaN, for integers and booleans, too. A
# constructor builds another module instead, which has to have the same names and shapes. What can fail: code that
# copies the poison from one buffer to another in a way that makes both runs equal, and code with effects outside of
# the module, as files that it writes.


@one_thread()
def make_buffers(
    model: nn.Module,
    wanted: Sequence[ModuleTensor],
    device: torch.device,
    seed: int,
    *,
    paths: Mapping[nn.Module, str] | None = None,
    initialized_later: Callable[[nn.Module], bool] = lambda _: False,
) -> OwnCodeResult:
    """Give buffers the values that their modules' own code gives them, and leave everything else as it is.

    Tried are, in this order: the module's methods that set it up anew (``reset_parameters`` and its like), an
    ``_init_weights(module)`` of a module above it, the methods of those above it, and the constructors, where a
    module keeps all the arguments that it was made with under their own names. What the code draws depends on the seed
    and its module alone, by the name that ``paths`` has for it, else by that in the model.
    The ``init_weights`` of a module that is ``initialized_later`` is not tried: it will be called in any case.

    >>> norm = nn.BatchNorm1d(2)
    >>> _ = norm.running_var.fill_(torch.nan)
    >>> wanted = [ModuleTensor("running_var", norm, "running_var", norm.running_var, "buffer")]
    >>> make_buffers(norm, wanted, torch.device("cpu"), seed=0).by, norm.running_var
    ({'running_var': 'BatchNorm1d.reset_running_stats()'}, tensor([1., 1.]))
    """
    made = OwnCodeResult()
    above = _parents(model)
    paths = {**{module: normalize(path) for path, module in model.named_modules()}, **(paths or {})}
    missing = {(entry.module, entry.leaf): entry for entry in wanted}
    tried: dict[_Place, str] = {}  # by scope and text: whatever code makes, it has made when it was first tried
    for module in dict.fromkeys(entry.module for entry in wanted):
        reasons: list[str] = []
        for code in _candidates([module, *above[module]], initialized_later):
            if all(entry.module is not module for entry in missing.values()):
                break
            found: _Values = {}
            if (code.scope, code.text) not in tried:
                lending = partial(Keyed(seed).lending, paths[code.scope], _DRAW, device, _working_dtype(code.scope))
                found, reason = _try(code, list(missing.values()), device, lending)
                tried[code.scope, code.text] = reason
            reasons += filter(None, [tried[code.scope, code.text]])
            for place, value in found.items():
                entry = missing.pop(place)
                write_whole(entry.name, entry.tensor, value)
                made.by[entry.name] = code.text
        made.failed.update({entry.name: tuple(reasons) for entry in missing.values() if entry.module is module})
    return made


def _working_dtype(module: nn.Module) -> torch.dtype:
    """Double precision where all that a module holds has it, else single: not the process's default."""
    tensors = chain(module.parameters(), module.buffers())
    kinds = {tensor.dtype.to_real() for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}
    return torch.float64 if kinds == {torch.float64} else torch.float32


def _parents(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """The modules above each module, the nearest first."""
    found: dict[nn.Module, list[nn.Module]] = {model: []}
    for module in model.modules():
        for child in module.children():
            found.setdefault(child, [module, *found[module]])
    return found


def _candidates(modules: Sequence[nn.Module], initialized_later: Callable[[nn.Module], bool]) -> Iterator[_OwnCode]:
    """The code that may make buffers of the first module, which the others are above."""
    first, *above = modules
    yield from _methods(first, initialized_later)
    for module in modules:
        method: Any = getattr(module, "_init_weights", None)
        if needs(method) == 1:
            text = f"{type(module).__name__}._init_weights({type(first).__name__})"
            yield _OwnCode(text, first, partial(method, first))
    for module in above:
        yield from _methods(module, initialized_later)
    for module in modules:
        cls = type(module)
        can_build = cls.__init__ is not nn.Module.__init__ and not is_parametrized(module)
        if can_build and (arguments := kept_arguments(module, cls)) is not None:
            yield _OwnCode(f"{cls.__name__}(...)", module, partial(cls, **arguments), builds=True)


def _methods(module: nn.Module, initialized_later: Callable[[nn.Module], bool]) -> Iterator[_OwnCode]:
    for name in METHODS:
        method: Any = getattr(module, name, None)
        if needs(method) == 0 and not (name == "init_weights" and initialized_later(module)):
            yield _OwnCode(f"{type(module).__name__}.{name}()", module, method)


def needs(method: Any) -> int | None:
    """The number of arguments that a method has to be given; None for what cannot be called, or has no signature."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    return sum(one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def _try(
    code: _OwnCode, missing: Sequence[ModuleTensor], device: torch.device, lending: _Lending
) -> tuple[_Values, str]:
    """The missing buffers that the code makes, and the reason why there are not more."""
    inside = set(code.scope.modules())
    wanted = [entry for entry in missing if entry.module in inside]
    token = _TRIED.set(True)
    try:
        first, second = (_run(code, wanted, poison, device, lending) for poison in _POISONS)
    except Exception as error:  # noqa: BLE001  # foreign code; it is reported if all fails
        return {}, f"{code.text} raised {type(error).__name__}: {error}"
    finally:
        _TRIED.reset(token)
    found = {place: value for place, value in first.items() if _is_same(value, second.get(place))}
    return found, "" if len(found) == len(wanted) else f"{code.text} does not write all of it"


def is_tried() -> bool:
    """Whether code of a model's is being tried for buffers: what it writes is thrown away, and recipes may rest."""
    return _TRIED.get()


def _run(
    code: _OwnCode, wanted: list[ModuleTensor], poison: Poison, device: torch.device, lending: _Lending
) -> _Values:
    """The wanted buffers after one run of the code, or of the module that it builds."""
    with lending(), torch.no_grad(), device:
        if code.builds:
            with light_parameters(), poisoned_memory(poison):
                twin = code.call()
            if _outline(code.scope) != _outline(twin):
                raise ValueError("it builds another module than this one")
            paths = {module: path for path, module in code.scope.named_modules()}
            return _buffers(wanted, lambda module: twin.get_submodule(paths[module]))
        with _standing_in(code.scope, wanted, poison, device):
            code.call()
            return {place: value.detach().clone() for place, value in _buffers(wanted).items()}


def _buffers(
    wanted: Sequence[ModuleTensor], owner: Callable[[nn.Module], nn.Module] = lambda module: module
) -> _Values:
    found = {(entry.module, entry.leaf): owner(entry.module)._buffers.get(entry.leaf) for entry in wanted}
    return {place: value for place, value in found.items() if value is not None}


def _outline(module: nn.Module) -> dict[str, tuple[int, ...]]:
    every = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in every}


def _is_same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and not (value.is_meta or other.is_meta) and torch.equal(value, other)


# --- stand-ins ---------------------------------------------------------------------------------------------


@contextmanager
def _standing_in(scope: nn.Module, wanted: list[ModuleTensor], poison: Poison, device: torch.device) -> Iterator[None]:
    """Let code run on a module: its parameters are on the meta device, and the wanted buffers hold poison.

    After it the modules have their attributes and tensors back.
    """
    poisoned = {(entry.module, entry.leaf) for entry in wanted}
    before = [(vars(module), dict(vars(module)), [dict(vars(module)[h]) for h in _HOMES]) for module in scope.modules()]
    try:
        for module in list(scope.modules()):
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[leaf] = _light(parameter)
            for leaf, buffer in module._buffers.items():
                if buffer is not None and (module, leaf) in poisoned:
                    value = poison.of(buffer.dtype)
                    module._buffers[leaf] = torch.full(buffer.shape, value, dtype=buffer.dtype, device=device)
                elif buffer is not None:
                    # One that has its values already; a part of one is of no use to code that knows nothing of parts.
                    local = local_part(buffer)
                    module._buffers[leaf] = local.clone() if local.shape == buffer.shape else _on_meta(buffer)
        yield
    finally:
        for attributes, kept, contents in before:
            attributes.clear()
            attributes.update(kept)
            for home, content in zip(_HOMES, contents, strict=True):
                kept[home].clear()
                kept[home].update(content)


_HOMES = ("_parameters", "_buffers", "_modules")


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _light(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(_on_meta(parameter), requires_grad=parameter.requires_grad)


@contextmanager
def light_parameters() -> Iterator[None]:
    """Constructors that run inside keep no parameter's memory, only its description."""

    def lighter(_: nn.Module, __: str, parameter: Any) -> Any:
        return None if parameter is None or parameter.is_meta else _light(parameter)  # a tied one comes by twice

    handle = register_module_parameter_registration_hook(lighter)
    try:
        yield
    finally:
        handle.remove()


# --- resets -------------------------------------------------------------------------------------------------


def own_resets(
    model: nn.Module, noise: Noise, blank: Sequence[ModuleTensor], *, group: ProcessGroup | None = None
) -> OwnCodeResult:
    """Let each layer that has parameters without values reset them, with draws that belong to names under a seed."""
    seed = noise.seed if isinstance(noise, Keyed) else None
    wholes = WholeTensors(model, exchange_in(group)) if seed is not None and is_spread(model) else None
    with wholes or nullcontext():
        return reset_layers(model, seed, blank, wholes)


def exchange_in(group: ProcessGroup | None) -> Exchange | None:
    """The exchange by which the ranks of a group give each other the parts of a tensor; None for one process."""
    if not is_shared(group):
        return None
    return lambda _, value: [*exchanged(value, over_group(group, MATERIALIZE)).values()]  # all ranks have each tensor


def reset_layers(
    top: nn.Module, seed: int | None, blank: Sequence[ModuleTensor], wholes: WholeTensors | None = None
) -> OwnCodeResult:
    """Let each layer that has parameters without values reset them; what it does not write is left to others."""
    wanted: dict[nn.Module, list[ModuleTensor]] = defaultdict(list)
    for entry in blank:
        if entry.kind == "parameter":
            wanted[entry.module].append(entry)
    ran: dict[nn.Module, str] = {}
    failed: dict[str, tuple[str, ...]] = {}
    recorder = Recorder(top) if seed is None else Seeded(top, seed)
    alone = nullcontext() if seed is None else one_thread()
    with torch.no_grad(), alone, recorder as seen, wholes.working(recorder.index) if wholes else nullcontext():
        for module in dict.fromkeys(place.module for place in walk_modules(top) if place.module in wanted):
            names = ("reset_parameters", "_reset_parameters")
            method = next((name for name in names if needs(getattr(module, name, None)) == 0), None)
            if method is None:
                continue
            ran[module] = f"{type(module).__name__}.{method}()"
            try:
                with nullcontext() if seed is None else plain_process(_working_dtype(module)):
                    getattr(module, method)()
            except Exception as error:  # noqa: BLE001  # foreign code; reported if nothing else writes these
                text = f"{ran[module]} raised {type(error).__name__}: {error}"
                failed.update({entry.name: (text,) for entry in wanted[module]})
    written = {write.site for write in seen.writes}
    by = {entry.name: text for module, text in ran.items() for entry in wanted[module] if entry.name in written}
    return OwnCodeResult(by, failed)
