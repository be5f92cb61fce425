"""Traversal: the modules of a model where they stand, and the tensors that each of them holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from torchinit.model.names import WRAPPERS, normalize
from torchinit.model.parametrizations import Parametrized, parametrized
from torchinit.model.storage import identity
from torchinit.model.valueless import refuse_transforms

Kind: TypeAlias = Literal["parameter", "buffer"]


@dataclass(frozen=True, slots=True)
class ModulePath:
    """A module where it stands in a model: its name, the module, its block, its turn in ``Module.apply``.

    ``hooks`` is the class of the nearest module, this one or one above, that has hooks for loading; it may be empty.
    """

    name: str
    module: nn.Module
    block: tuple[int, int] | None = None
    turn: int = 0
    hooks: str = ""


def walk_modules(model: nn.Module) -> list[ModulePath]:
    """Every module in the order of ``Module.apply``: children first; a shared module once a parent.

    A child that one parent holds under two names has two places, and one turn.
    """
    visited: list[ModulePath] = []

    def walk(module: nn.Module, name: str, block: tuple[int, int] | None, turn: int, hooks: str) -> int:
        hooks = type(module).__name__ if has_load_hooks(module) else hooks
        children = {key: child for key, child in module._modules.items() if child is not None}
        several = len(set(map(id, children.values()))) if _is_block_list(module) else 0
        begun: dict[int, tuple[int, int]] = {}
        for key, child in children.items():
            again = id(child) in begun
            index, start = begun.setdefault(id(child), (len(begun), turn))
            end = walk(child, _join(name, key), (index, several) if several else block, start, hooks)
            turn = turn if again else end
        visited.append(ModulePath(name, module, block, turn, hooks))
        return turn + 1

    walk(model, "", None, 0, "")
    return visited


def _is_block_list(module: nn.Module) -> bool:
    """Whether the children are the like blocks of a deep model: one class, made of layers themselves."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or (
        isinstance(module, nn.Sequential) and len(module) < 2
    ):
        return False
    return len({type(child) for child in module}) == 1 and all(child._modules for child in module)


def has_load_hooks(module: nn.Module) -> bool:
    """Whether code from outside torch takes part when ``load_state_dict`` comes to this module.

    That is a ``_load_from_state_dict`` of its own, or a hook before it. What torch brings along does not count: norms
    that fill in a counter, weight norm, FSDP. Nor does a wrapper, whose hooks only put its part into names or take it
    out.
    """
    if module._modules and WRAPPERS.issuperset(module._modules.keys()):
        return False
    hooks = (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    return not all(map(_is_of_torch, (module._load_from_state_dict, *hooks)))


def _is_of_torch(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    home: str = getattr(function, "__module__", None) or type(function).__module__
    return home.partition(".")[0] == "torch"


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """A tensor as one module holds it; ``way`` says how it is computed, if it is.

    ``key`` is the same for all names of one tensor. ``flat`` marks a piece of a flattened parameter, of which
    neither shape nor place can be seen.
    """

    name: str
    place: ModulePath
    leaf: str
    tensor: Tensor
    kind: Kind
    computed_as: Parametrized | None
    key: object
    flat: bool = False

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The tensors that hold the values: itself, or those that it is computed from."""
        return self.computed_as.sources if self.computed_as else (self.tensor,)


def walk_tensors(model: nn.Module) -> Iterator[HeldTensor]:
    """Every tensor of a model, once for each of its names, in the order of ``Module.apply``.

    Raises RunError within a transform of ``torch.func``.
    """
    refuse_transforms()
    entries = []
    owners: dict[str, object] = {}
    flat = _flattened(model)
    for place in walk_modules(model):
        for leaf, tensor, kind, computed in _tensors(place.module):
            name = _join(place.name, leaf)
            key = owners[name] = tuple(map(identity, computed.sources)) if computed else identity(tensor)
            entries.append(HeldTensor(name, place, leaf, tensor, kind, computed, key, id(tensor) in flat))
    for entry in entries:
        # Where a model has a module of its own called "module", the bare name may be another's.
        bare = normalize(entry.name)
        is_free = bare != entry.name and owners.setdefault(bare, entry.key) == entry.key
        yield replace(entry, name=bare) if is_free else entry


def _flattened(model: nn.Module) -> set[int]:
    """The parameters that FSDP1 has laid one behind the other and cut without regard to them, by id.

    They are refused, since neither shape nor place of a piece can be seen.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    # A module does not know what wraps it, but holds what has been made of its parameters.
    flat = {id(parameter) for parameter in model.parameters() if getattr(parameter, "_is_flat_param", False)}
    for module in model.modules() if fsdp else ():  # who has not imported it has no such model
        handle = module._handle if isinstance(module, fsdp.FullyShardedDataParallel) else None
        if handle is not None:
            whole = handle.flat_param
            pieces = whole._params or ()
            if not pieces or any(piece.shape != shape for piece, shape in zip(pieces, whole._shapes, strict=True)):
                flat |= {id(whole), *map(id, pieces)}
    return flat


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, Kind, Parametrized | None]]:
    """The module's own tensors, those that it computes first and not those that stand behind them."""
    computed = parametrized(module)
    for parameter in computed:
        yield parameter.leaf, parameter.value, "parameter", parameter
    hidden = {name for parameter in computed for name in parameter.hidden}
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        hidden |= {name for name in (*module._parameters, *module._buffers) if name.startswith("original")}
    kinds: tuple[tuple[Kind, Any], ...] = (("parameter", module._parameters), ("buffer", module._buffers))
    for kind, tensors in kinds:
        for leaf, tensor in tensors.items():
            if tensor is not None and leaf not in hidden:
                yield leaf, tensor, kind, None


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
