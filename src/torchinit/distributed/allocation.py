"""Allocations: memory for a model on the meta device, what keeps it from getting some, and what was left unwritten."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit._text import abbreviate, count
from torchinit.errors import RunError
from torchinit.model.dtensor import ASCEND, is_distributed, is_in_order, local_part, shards_of
from torchinit.model.names import normalize
from torchinit.model.traversal import Kind

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class ModuleTensor:
    """A tensor where a module keeps it, including those behind parametrizations."""

    name: str
    module: nn.Module
    leaf: str
    tensor: Tensor
    kind: Kind

    @property
    def home(self) -> dict[str, Any]:
        """The dictionary of the module that the tensor is in."""
        return self.module._parameters if self.kind == "parameter" else self.module._buffers


def module_tensors(model: nn.Module) -> Iterator[ModuleTensor]:
    """Every tensor of a model, once for each module that keeps it."""
    for path, module in model.named_modules():
        kinds: tuple[tuple[Kind, Any], ...] = (("parameter", module._parameters), ("buffer", module._buffers))
        for kind, home in kinds:
            for leaf, tensor in home.items():
                if tensor is not None:
                    yield ModuleTensor(normalize(f"{path}.{leaf}" if path else leaf), module, leaf, tensor, kind)


# --- what keeps a model from getting memory ----------------------------------------------------------------


def check_device(device: torch.device | str) -> torch.device:
    """The device, if there is memory on it; else RunError."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunError(f"device {str(device)!r} is not there: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise RunError("the meta device has no memory: give the device that the model is to live on")
    return found


def check_meta(model: nn.Module, leave: Collection[str] = (), *, with_memory: str = "torchinit.initialize") -> None:
    """Raise RunError unless all parameters of a model, but for those to ``leave``, are on the meta device.

    Buffers may have memory already. ``with_memory`` is the function to call for a model that has memory.
    """
    there, here = list[str](), list[str]()
    for entry in module_tensors(model):
        if entry.kind == "parameter" and entry.name not in leave and not is_lazy(entry.tensor):
            (there if entry.tensor.is_meta else here).append(entry.name)
    if here and there:
        raise RunError(
            f"the model is half on the meta device: {abbreviate(there)} {'is' if len(there) == 1 else 'are'}, but"
            f" {abbreviate(here)} {'has' if len(here) == 1 else 'have'} memory. Build all of it under"
            " torch.device('meta'), or move it there: model.to('meta')"
        )
    if here:
        raise RunError(f"the model is not on the meta device, it has memory already: call {with_memory}")


def check_ranks(model: nn.Module) -> None:
    """Raise RunError where this rank cannot hold its part of a model.

    That is where a DTensor lies on a mesh that the rank does not belong to, is placed as ``Partial``, or there is no
    process group that could tell the other ranks of it.
    """
    dist = torch.distributed
    spread: dict[str, Any] = {each.name: each.tensor for each in module_tensors(model) if is_distributed(each.tensor)}
    if spread and not dist.is_initialized():
        names = f"{abbreviate(list(spread))} {'is' if len(spread) == 1 else 'are'}"
        remedy = "call torch.distributed.init_process_group first"
        raise RunError(f"there is no process group, but {names} distributed: {remedy}")
    problems = []
    for name, tensor in spread.items():
        if not shards_of(name, tensor):
            ranks = abbreviate([str(rank) for rank in tensor.device_mesh.mesh.flatten().tolist()])
            problems.append(f"{name}: lies on a mesh of ranks {ranks}, and this is rank {dist.get_rank()}")
    if problems:
        raise RunError(f"the mesh does not cover the model: {count(len(problems), 'tensor')} outside of it", problems)


def check_styles(model: nn.Module) -> None:
    """Raise RunError for layers whose outputs will not be those of their weights, whatever the weights are.

    ``RowwiseParallel`` finds the rows of an embedding, and its part of inputs that are replicated, by the place in the
    mesh; the weight is cut by the rank in the group. On a mesh whose ranks do not ascend these are different parts.
    ``ColwiseParallel`` is right, and so is ``RowwiseParallel`` for inputs that are cut already, as a column-wise layer
    leaves them.
    """
    if "torch.distributed.tensor.parallel" not in sys.modules:  # without which nothing has a style
        return
    problems = []
    for path, module in model.named_modules():
        found = "the rows that it looks up" if isinstance(module, nn.Embedding) else "its part of the inputs"
        for mesh in _meshes_of_rowwise(module):
            if not is_in_order(mesh):
                text = f"RowwiseParallel over ranks {mesh.mesh.tolist()} finds {found} by the place in the mesh"
                problems.append(f"{path}: {text}")
    if problems:
        headline = f"{count(len(problems), 'layer')} that torch would not compute from its weight: {ASCEND}"
        raise RunError(headline, problems)


def _meshes_of_rowwise(module: nn.Module) -> Iterator[Any]:
    """The mesh of each RowwiseParallel style of a module that splits what all ranks have.

    A style leaves no more than a hook, so its closure is what there is to look at. Where another torch builds it
    otherwise nothing is found, and nothing refused.
    """
    for hook in module._forward_pre_hooks.values():
        if not isinstance(hook, FunctionType) or hook.__code__.co_freevars != ("device_mesh", "input_fn"):
            continue
        mesh, prepare = (cell.cell_contents for cell in hook.__closure__ or ())
        name = getattr(prepare.func, "__qualname__", "") if isinstance(prepare, partial) else ""
        if name == "RowwiseParallel._prepare_input_fn":
            given, wanted = prepare.args
            splits = any(one.is_replicate() and other.is_shard() for one, other in zip(given, wanted, strict=True))
            if splits or isinstance(module, nn.Embedding):
                yield mesh


# --- memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allocation:
    """The tensors of a model that were given memory, each with what it was before."""

    model: nn.Module
    swaps: tuple[tuple[Tensor, Tensor], ...]
    blank: tuple[ModuleTensor, ...]

    def undo(self) -> None:
        """Take the memory away again."""
        for tensor, before in self.swaps:
            _swap(self.model, tensor, before)


# A tensor gets memory by changing places with a new one, so that ties, references of users' own and what an optimizer
# holds stay. `swap_tensors` refuses where something has a weak reference to the tensor or a gradient is being
# recorded; then the new tensor is put wherever a module of the model keeps the old one, and other references are lost.


def allocate(
    model: nn.Module, device: torch.device, leave: Callable[[ModuleTensor], bool] = lambda _: False
) -> Allocation:
    """Give memory to each tensor of a model that has none, filled with NaN, but for those to ``leave``.

    Kept are the tensor objects, and so ties, class, attributes, ``requires_grad`` and every reference to them; dtype
    and strides; tensors that were views of one memory are so again. Of a DTensor only the local part gets memory.

    >>> with torch.device("meta"):
    ...     layer = nn.Linear(1, 1)
    >>> allocation = allocate(layer, torch.device("cpu"))
    >>> layer.weight.item(), allocation.undo(), layer.weight.is_meta
    (nan, None, True)
    """
    on_meta = (entry for entry in module_tensors(model) if entry.tensor.is_meta and not is_lazy(entry.tensor))
    without = [entry for entry in on_meta if not leave(entry)]
    places = {(entry.module, entry.leaf) for entry in without}
    memories: dict[int, Tensor] = {}
    swaps: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in {id(entry.tensor): entry.tensor for entry in without}.values():
            swaps.append(_swap(model, tensor, _like(tensor, device, memories)))
        for module in model.modules():
            if hasattr(module, "_get_fsdp_state"):
                # FSDP2 keeps the memory of its shards a second time, and looks for it anew when told of a move.
                module._apply(lambda tensor: tensor, recurse=False)
    except BaseException:
        Allocation(model, tuple(swaps), ()).undo()
        raise
    blank = tuple(entry for entry in module_tensors(model) if (entry.module, entry.leaf) in places)
    return Allocation(model, tuple(swaps), blank)


def _swap(model: nn.Module, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Put one tensor in the place of the other; return the one that is there now, and the one that was."""
    with suppress(RuntimeError):
        torch.utils.swap_tensors(old, new)
        return old, new
    for entry in list(module_tensors(model)):
        if entry.tensor is old:
            entry.home[entry.leaf] = new
    return new, old


def _like(tensor: Tensor, device: torch.device, memories: dict[int, Tensor]) -> Tensor:
    with torch.no_grad():
        new = _memory(tensor.detach(), device, memories)
        local = local_part(new)
        local.fill_(torch.nan if local.is_floating_point() or local.is_complex() else 0)
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
    if type(new) is not type(tensor):
        new.__class__ = type(tensor)
    new.__dict__.update({key: value for key, value in tensor.__dict__.items() if key not in new.__dict__})
    return new


def _memory(tensor: Tensor, device: torch.device, memories: dict[int, Tensor]) -> Tensor:
    """Memory laid out as a tensor is; one for all tensors that share theirs on the meta device."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided:
        return torch.empty_like(tensor, device=device)
    storage = tensor.untyped_storage()
    if storage._cdata not in memories:
        memories[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
    new = torch.empty(0, dtype=tensor.dtype, device=device)
    return new.set_(memories[storage._cdata].untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def unwritten(blank: Iterable[ModuleTensor], known: Collection[str]) -> list[str]:
    """The names of the tensors that still hold NaN, or that can hold none and are not among the known."""
    return list(dict.fromkeys(entry.name for entry in blank if not _is_written(entry, known)))


def _is_written(entry: ModuleTensor, known: Collection[str]) -> bool:
    local = local_part(entry.tensor).detach()
    if is_lazy(entry.tensor) or not local.numel():
        return True
    if not (local.is_floating_point() or local.is_complex()):
        return entry.name in known
    values = torch.view_as_real(local) if local.is_complex() else local
    parts = values.reshape(-1).split(_CHUNK) if values.is_contiguous() else (values,)
    # The smallest value is NaN if any is, which takes no memory; 8-bit floats have no order of their own.
    return not any((part.float() if part.dtype.itemsize == 1 else part).amin().isnan() for part in parts)
