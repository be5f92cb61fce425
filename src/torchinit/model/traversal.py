"""Traversal: the modules of a model where they stand, and the tensors that each of them holds."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from torchinit._frozen import collector_paused, made
from torchinit.model.blocks import Place, find_stacks
from torchinit.model.names import WRAPPERS, is_bare, normalize
from torchinit.model.parametrizations import Parametrized, parametrized
from torchinit.model.sandbox import refuse_transforms
from torchinit.model.storage import identity, keys_of_met

Kind: TypeAlias = Literal["parameter", "buffer"]

"""Makes a named tuple in half of the time that its class takes; a model has thousands of them."""


class ModulePath(NamedTuple):
    """A module where it stands in a model: its name, the module, its block, its turn in ``Module.apply``.

    ``block`` is index and count in the list of blocks around it, ``tower`` among the blocks of all stages.
    ``hooks`` is the class of the nearest module, this one or one above, that has hooks for loading; it may be empty.
    """

    name: str
    module: nn.Module
    block: tuple[int, int] | None = None
    turn: int = 0
    hooks: str = ""
    tower: tuple[int, int] | None = None


def walk_modules(model: nn.Module) -> list[ModulePath]:
    """Every module in the order of ``Module.apply``: children first; a shared module once a parent.

    A child that one parent holds under two names has two places, and one turn.
    """
    visited: list[ModulePath] = []
    stacks = find_stacks(model)

    def walk(module: nn.Module, name: str, block: Place | None, turn: int, hooks: str, tower: Place | None) -> int:
        hooks = type(module).__name__ if has_load_hooks(module) else hooks
        prefix, stack = f"{name}." if name else "", stacks.get(id(module))
        inside, tower_inside = block, tower
        begun: dict[int, int] = {}
        for key, child in module._modules.items():
            if child is None:
                continue
            again = begun.get(id(child))
            start = begun[id(child)] = turn if again is None else again
            if stack is not None:
                index = len(begun) - 1 if again is None else [*begun].index(id(child))
                inside, tower_inside = (index, len(stack.blocks)), stack.tower(index)
            if child._modules or has_load_hooks(child):
                end = walk(child, prefix + key, inside, start, hooks, tower_inside)
            else:  # most modules are layers, and have nothing to go through
                visited.append(made(ModulePath, (prefix + key, child, inside, start, hooks, tower_inside)))
                end = start + 1
            if again is None:
                turn = end
        visited.append(made(ModulePath, (name, module, block, turn, hooks, tower)))
        return turn + 1

    walk(model, "", None, 0, "", None)
    return visited


def has_load_hooks(module: nn.Module) -> bool:
    """Whether code from outside torch takes part when ``load_state_dict`` comes to this module.

    That is a ``_load_from_state_dict`` of its own, or a hook before it. What torch brings along does not count: norms
    that fill in a counter, weight norm, FSDP. Nor does a wrapper, whose hooks only put its part into names or take it
    out.
    """
    hooks = module._load_state_dict_pre_hooks
    is_stock = type(module)._load_from_state_dict is _LOAD and "_load_from_state_dict" not in module.__dict__
    if (is_stock and not hooks) or (module._modules and WRAPPERS.issuperset(module._modules.keys())):
        return False
    functions = (getattr(hook, "hook", hook) for hook in hooks.values())
    return not all(map(_is_of_torch, (module._load_from_state_dict, *functions)))


_NOTHING: Final = frozenset[str]()
_LOAD: Final = nn.Module._load_from_state_dict


def _is_of_torch(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    home: str = getattr(function, "__module__", None) or type(function).__module__
    return home.partition(".")[0] == "torch"


class HeldTensor(NamedTuple):
    """A tensor as one module holds it; ``computed_as`` says how it is computed, if it is.

    ``key`` is the same for all names of one tensor: its id, where no other lies in its memory. ``flat`` marks a piece
    of a flattened parameter, of which neither shape nor place can be seen. A tuple, since a frozen dataclass costs four
    times as much to make, and a model has thousands.
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


class Walk(NamedTuple):
    """One walk over a model: where its modules stand, and what they hold."""

    places: list[ModulePath]
    held: list[HeldTensor]

    @classmethod
    def over(cls, model: nn.Module) -> Walk:
        """Walk over a model."""
        places = walk_modules(model)
        return cls(places, walk_tensors(model, places))


@collector_paused()
def walk_tensors(model: nn.Module, places: Sequence[ModulePath] | None = None) -> list[HeldTensor]:
    """Every tensor of a model, once for each of its names, in the order of ``Module.apply``.

    ``places`` are its modules as :func:`walk_modules` has just found them.
    Raises RunError within a transform of ``torch.func``.
    """
    refuse_transforms()
    places = walk_modules(model) if places is None else places
    flat = _flattened([place.module for place in places])
    entries: list[HeldTensor] = []
    for place in places:
        name, module = place[:2]
        own, buffers = module._parameters, module._buffers
        hidden: Collection[str] = _NOTHING
        if not (own or buffers or module._modules):
            continue
        prefix = f"{name}." if name else ""
        if (
            module._forward_pre_hooks
            or "parametrizations" in module._modules
            or isinstance(module, ParametrizationList)
        ):
            computed, hidden = _computed(module)
            for each in computed:
                key, is_flat = tuple(map(identity, each.sources)), id(each.value) in flat
                name = prefix + each.leaf
                entries.append(HeldTensor(name, place, each.leaf, each.value, "parameter", each, key, is_flat))
        for kind, tensors in (("parameter", own), ("buffer", buffers)) if buffers else (("parameter", own),):
            for leaf, tensor in tensors.items():
                if tensor is not None and leaf not in hidden:
                    number = id(tensor)
                    known = (prefix + leaf, place, leaf, tensor, kind, None, number, number in flat)
                    entries.append(made(HeldTensor, known))
    if met := keys_of_met([entry.tensor for entry in entries if entry.computed_as is None]):
        entries = [entry._replace(key=met.get(entry.key, entry.key)) for entry in entries]  # type: ignore[call-overload]
    return entries if is_bare("\n".join([entry.name for entry in entries])) else _with_bare_names(entries)


def _with_bare_names(entries: list[HeldTensor]) -> list[HeldTensor]:
    """The same under the names that they have without wrappers."""
    owners = {entry.name: entry.key for entry in entries}
    for index, entry in enumerate(entries):
        # Where a model has a module of its own called "module", the bare name may be another's.
        bare = normalize(entry.name)
        if bare != entry.name and owners.setdefault(bare, entry.key) == entry.key:
            entries[index] = entry._replace(name=bare)
    return entries


def _flattened(modules: Sequence[nn.Module]) -> set[int]:
    """The parameters that FSDP1 has laid one behind the other and cut without regard to them, by id.

    They are refused, since neither shape nor place of a piece can be seen.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:  # who has not imported it has no such model
        return set()
    # A module does not know what wraps it, but holds what has been made of its parameters.
    own = (parameter for module in modules for parameter in module._parameters.values())
    flat = {id(parameter) for parameter in own if getattr(parameter, "_is_flat_param", False)}
    for module in modules:
        handle = module._handle if isinstance(module, fsdp.FullyShardedDataParallel) else None
        if handle is not None:
            whole = handle.flat_param
            pieces = whole._params or ()
            if not pieces or any(piece.shape != shape for piece, shape in zip(pieces, whole._shapes, strict=True)):
                flat |= {id(whole), *map(id, pieces)}
    return flat


def _computed(module: nn.Module) -> tuple[tuple[Parametrized, ...], Collection[str]]:
    """The tensors that the module computes, and the names of its own that stand behind such."""
    computed = parametrized(module)
    hidden = {name for each in computed for name in each.hidden} if computed else _NOTHING
    if isinstance(module, ParametrizationList):
        hidden = {*hidden, *(name for name in (*module._parameters, *module._buffers) if name.startswith("original"))}
    return computed, hidden
