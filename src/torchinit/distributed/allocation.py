"""Allocations: memory for what is here of a model on the meta device, and what of it was left unwritten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._text import count, some
from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed, local_part, shards_of
from torchinit.model.names import normalize
from torchinit.model.traversal import Kind

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tensor where a module keeps it, those behind parametrizations included."""

    name: str
    module: nn.Module
    leaf: str
    tensor: Tensor
    kind: Kind


def tenants(model: nn.Module) -> Iterator[Tenant]:
    """Every tensor of a model, once for each module that keeps it.

    >>> [one.name for one in tenants(nn.BatchNorm1d(2, affine=False))]
    ['running_mean', 'running_var', 'num_batches_tracked']
    """
    kinds: tuple[tuple[Kind, str], ...] = (("parameter", "_parameters"), ("buffer", "_buffers"))
    for path, module in model.named_modules():
        for kind, home in kinds:
            for leaf, tensor in getattr(module, home).items():
                if tensor is not None:
                    yield Tenant(normalize(f"{path}.{leaf}" if path else leaf), module, leaf, tensor, kind)


def check_device(device: torch.device | str) -> torch.device:
    """The device, if there is memory on it; else RunError.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunError(f"device {str(device)!r} is not there: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise RunError("the meta device has no memory: give the device that the model is to live on")
    return found


def check_meta(model: nn.Module, *, with_memory: str = "torchinit.initialize") -> None:
    """Raises RunError unless all parameters of a model are on the meta device. Buffers may have memory already.

    ``with_memory`` is what to call for a model that has memory.
    """
    places: dict[bool, list[str]] = {True: [], False: []}
    for one in tenants(model):
        if one.kind == "parameter" and not is_lazy(one.tensor):
            places[one.tensor.is_meta].append(one.name)
    here, there = places[False], places[True]
    if here and there:
        raise RunError(
            f"the model is half on the meta device: {some(there)} {'is' if len(there) == 1 else 'are'}, but"
            f" {some(here)} {'has' if len(here) == 1 else 'have'} memory. Build all of it under torch.device('meta'),"
            " or move it there: model.to('meta')"
        )
    if here:
        raise RunError(f"the model is not on the meta device, it has memory already: call {with_memory}")


def check_ranks(model: nn.Module) -> None:
    """Raises RunError where this rank cannot hold its part of a model.

    That is where a DTensor lies on a mesh that the rank does not belong to, is placed as ``Partial``, or there is no
    process group that could tell the other ranks of it.
    """
    dist = torch.distributed
    spread: dict[str, Any] = {one.name: one.tensor for one in tenants(model) if is_distributed(one.tensor)}
    if spread and not dist.is_initialized():
        raise RunError(
            f"there is no process group, but {some(list(spread))} {'is' if len(spread) == 1 else 'are'} distributed:"
            " call torch.distributed.init_process_group first"
        )
    problems = []
    for name, tensor in spread.items():
        if not shards_of(name, tensor):
            ranks = some([str(rank) for rank in tensor.device_mesh.mesh.flatten().tolist()])
            problems.append(f"{name}: lies on a mesh of ranks {ranks}, and this is rank {dist.get_rank()}")
    if problems:
        raise RunError(f"the mesh does not cover the model: {count(len(problems), 'tensor')} outside of it", problems)


@dataclass(frozen=True, slots=True)
class Allocation:
    """The tensors of a model that were given memory, each with what it was before."""

    model: nn.Module
    swaps: tuple[tuple[Tensor, Tensor], ...]
    blank: tuple[Tenant, ...]

    def undo(self) -> None:
        """Takes the memory away again."""
        for tensor, before in self.swaps:
            swap(self.model, tensor, before)


def allocate(model: nn.Module, device: torch.device, leave: Callable[[Tensor], bool] = is_lazy) -> Allocation:
    """Gives memory to each tensor of a model that has none, filled with NaN, but for those to ``leave``.

    Kept are the tensor objects, and so ties, class, attributes, ``requires_grad`` and every reference to them; dtype
    and strides; tensors that were views of one memory are so again. Of a DTensor only the local part gets memory.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(1, 1)
    >>> allocation = allocate(layer, torch.device("cpu"))
    >>> layer.weight.item(), allocation.undo(), layer.weight.is_meta
    (nan, None, True)
    """
    places = [(one.module, one.leaf) for one in tenants(model) if one.tensor.is_meta and not leave(one.tensor)]
    homes = _shared(model)
    swaps: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in {id(one.tensor): one.tensor for one in tenants(model)}.values():
            if tensor.is_meta and not is_lazy(tensor) and not leave(tensor):
                swaps.append(swap(model, tensor, _like(tensor, device, homes)))
        _tell_engine(model)
    except BaseException:
        Allocation(model, tuple(swaps), ()).undo()
        raise
    blank = tuple(one for one in tenants(model) if (one.module, one.leaf) in places)
    return Allocation(model, tuple(swaps), blank)


def swap(model: nn.Module, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Puts one tensor in the place of the other; gives back the one that is there now, and the one that was."""
    with suppress(RuntimeError):  # where something holds a weak reference or a gradient
        torch.utils.swap_tensors(old, new)
        return old, new
    for one in list(tenants(model)):
        if one.tensor is old:
            home: dict[str, Any] = one.module._parameters if one.kind == "parameter" else one.module._buffers
            home[one.leaf] = new
    return new, old


def _shared(model: nn.Module) -> dict[int, dict[torch.device, Tensor]]:
    """The memories on the meta device that several tensors share; what stands for each is made when first asked for."""
    users: dict[int, set[int]] = defaultdict(set)
    for one in tenants(model):
        if _is_simple(one.tensor):
            users[one.tensor.untyped_storage()._cdata].add(id(one.tensor))
    return {home: {} for home, those in users.items() if len(those) > 1}


def _is_simple(tensor: Tensor) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not (is_distributed(tensor) or is_lazy(tensor))
    )


def _like(tensor: Tensor, device: torch.device, homes: dict[int, dict[torch.device, Tensor]]) -> Tensor:
    with torch.no_grad():
        made = _memory(tensor.detach(), device, homes)
        local = local_part(made)
        if local.is_floating_point() or local.is_complex():
            local.fill_(torch.nan)
        else:
            local.zero_()
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    if type(made) is not type(tensor):
        made.__class__ = type(tensor)
    made.__dict__.update({key: value for key, value in tensor.__dict__.items() if key not in made.__dict__})
    return made


def _memory(tensor: Tensor, device: torch.device, homes: dict[int, dict[torch.device, Tensor]]) -> Tensor:
    if not _is_simple(tensor):
        return torch.empty_like(tensor, device=device)
    storage = tensor.untyped_storage()
    if storage._cdata not in homes:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    home = homes[storage._cdata]
    if device not in home:
        home[device] = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
    made = torch.empty(0, dtype=tensor.dtype, device=device)
    return made.set_(home[device].untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _tell_engine(model: nn.Module) -> None:
    """FSDP2 keeps the memory of its shards a second time, and looks for it anew when told that something has moved."""
    for module in model.modules():
        if hasattr(module, "_get_fsdp_state"):
            module._apply(lambda tensor: tensor, recurse=False)


def unwritten(blank: Iterable[Tenant], known: Collection[str]) -> list[str]:
    """The names of the tensors that still hold NaN, or that can hold none and are not among the known.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data[1].fill_(torch.nan)
    >>> unwritten(tenants(layer), [])
    ['weight']
    """
    return list(dict.fromkeys(one.name for one in blank if not _is_written(one, known)))


def _is_written(one: Tenant, known: Collection[str]) -> bool:
    local = local_part(one.tensor).detach()
    if is_lazy(one.tensor) or not local.numel():
        return True
    if not (local.is_floating_point() or local.is_complex()):
        return one.name in known
    values = torch.view_as_real(local) if local.is_complex() else local
    return (
        not any(_has_nan(part) for part in values.reshape(-1).split(_CHUNK))
        if values.is_contiguous()
        else not _has_nan(values)
    )


def _has_nan(values: Tensor) -> bool:
    # The smallest value is NaN if any is, which takes no memory; 8-bit floats have no order of their own.
    return bool((values.float() if values.dtype.itemsize == 1 else values).amin().isnan())
