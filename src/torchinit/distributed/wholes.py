"""Wholes: plain tensors in the places of DTensors, so that code that knows nothing of parts can work on a model.

Code of users' own indexes, copies from NumPy, assigns ``.data`` and looks at class names. On DTensors most of that is
refused by torch, and a write through an index of a sharded dimension goes to a copy and is lost without a word. So for
as long as foreign code works on a sharded model it sees each parameter whole, as on one process. Its memory is there
only while it is worked on: the storage has size 0 until an operation wants it (as FSDP1 does it), and what has been
written goes back into the parts, after which the storage is empty again. A parameter that code writes over as a whole
is never gathered; one that it reads, or writes in part, is, by all ranks at the same point of the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves

from torchinit._text import abbreviate
from torchinit.distributed.allocation import ModuleTensor, module_tensors
from torchinit.errors import RunError
from torchinit.model.dtensor import BEHIND, is_distributed, local_part, shards_of
from torchinit.model.parametrizations import parametrized
from torchinit.model.ranks import gathered, met_in
from torchinit.model.sandbox import OperationMode
from torchinit.model.shards import Box, Shard
from torchinit.model.storage import overlaps
from torchinit.plans.observers import observing_runs, unobserved
from torchinit.plans.plan import Step
from torchinit.tracing.observer import FunctionMode, name_of, written_by
from torchinit.tracing.regions import MemoryIndex, storage_of
from torchinit.tracing.seeded import TRUNCATED
from torchinit.tracing.source_lines import frame_of_caller

Exchange: TypeAlias = Callable[[Any, Any], list[Any]]
"""Called with a DTensor and what this rank has of it; returns what the ranks have that hold it."""

_BUDGET = 1 << 28
"""The most bytes of wholes that have memory at one time, unless a single one has more."""

_BY_PARTS = frozenset({"fill_", "zero_", "normal_", "uniform_"})
"""Operations that write a DTensor's parts as they write the whole, the draws under their names."""

_DRAWING = frozenset({"bernoulli_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"})
_OVERWRITING = _BY_PARTS | _DRAWING | {"copy_"}
"""Operations that write every element of their first argument and read none of it."""

_LOOKING = frozenset({"detach", "alias", "view", "lift_fresh"})
"""Operations that make a view, and work on a storage without memory."""

_HANDING_OUT = frozenset({"numpy", "tolist", "__array__", "__dlpack__"})
"""Functions that hand memory to NumPy and others, where no dispatcher sees what is read and written."""


class WholeTensor:
    """One parameter or buffer: the DTensor, and the plain tensor that stands in its place.

    ``is_valid`` says that the memory holds the values, ``is_changed`` that code has written to it, ``is_handed_out``
    that something outside of torch has it.
    """

    def __init__(self, name: str, spread: Any) -> None:
        self.name = name
        self.spread = spread
        self._renew()
        self.tensor: Tensor = self.base.data  # which counts its own versions: gathering is not a write
        if isinstance(spread, nn.Parameter):
            self.tensor = nn.Parameter(self.tensor, requires_grad=spread.requires_grad)
        vars(self.tensor).update(_noted(spread))
        self.is_valid: bool = False
        self.is_changed: bool = False
        self.is_handed_out: bool = False

    def _renew(self) -> None:
        spread = self.spread
        device = local_part(spread).device
        self.base: Tensor = torch.empty_strided(spread.shape, spread.stride(), dtype=spread.dtype, device=device)
        self.bytes: int = self.base.untyped_storage().nbytes()
        self.base.untyped_storage().resize_(0)
        self.home: int | None = storage_of(self.base)

    def fill(self, exchange: Exchange) -> None:
        """Take the values that the ranks hold."""
        shards = shards_of(self.name, self.spread)
        parts = [(shard.start, shard.local) for shard in shards]
        if not all(shard.is_whole for shard in shards):
            answers = exchange(self.spread, (self.name, [(start, part.cpu()) for start, part in parts]))
            if len(names := {name for name, _ in answers}) > 1:
                raise RunError(f"{self.name}: code on other ranks works on {abbreviate(sorted(names))}")
            parts = [part for _, theirs in answers for part in theirs]
        for start, part in parts:
            Box(start, tuple(part.shape)).of(self.base).copy_(part)
        self.is_valid = True

    def put_back(self) -> bool:
        """Write what code has written into the local parts, and free the memory; whether the tensor moved."""
        elsewhere = storage_of(self.tensor) != self.home  # after `tensor.data = other`
        if elsewhere or self.is_changed:
            values = self.tensor.detach() if elsewhere else self.base
            if values.shape != self.spread.shape:
                raise RunError(f"{self.name}: code gave it shape {list(values.shape)}, not {list(self.spread.shape)}")
            write_whole(self.name, self.spread, values)
        moves = elsewhere or self.is_handed_out
        if self.is_handed_out:
            self._renew()  # what has the memory keeps it
        self.base.untyped_storage().resize_(0)
        if moves:
            self.tensor.data = self.base.data
        self.is_valid = self.is_changed = self.is_handed_out = False
        return moves

    def hand_back(self) -> Any:
        """The DTensor, with what code has set on the tensor that stood for it."""
        vars(self.spread).update(_noted(self.tensor))
        if self.spread.requires_grad != self.tensor.requires_grad:
            self.spread.requires_grad_(self.tensor.requires_grad)
        return self.spread


def write_whole(name: str, spread: Any, values: Tensor) -> None:
    """Write to the parts of a tensor that are here the values that the whole has there."""
    with torch.no_grad():
        for shard in shards_of(name, spread):
            shard.local.copy_(Box(shard.start, tuple(shard.local.shape)).of(values))


def _noted(tensor: Tensor) -> dict[str, Any]:
    """The attributes that users have set on a tensor, without those that make it a DTensor."""
    return {key: value for key, value in vars(tensor).items() if key not in ("_local_tensor", "_spec", "_is_param")}


class WholeTensors:
    """The DTensors of a model as plain tensors, whole; and its modules with the classes that FSDP2 has taken from them.

    Tensors that a parametrization computes others from stay as they are. ``exchange`` gives what the ranks hold of a
    tensor; by default they tell each other along the dimensions of its mesh.
    """

    def __init__(self, model: nn.Module, exchange: Exchange | None = None) -> None:
        self._exchange = exchange or _along_the_mesh
        self._classes = [(module, cls) for module in model.modules() if bare_class(cls := type(module)) is not cls]
        self._places: list[tuple[dict[str, Any], str, WholeTensor]] = []
        wholes: dict[int, WholeTensor] = {}  # by the id of the DTensor: tied ones stay tied
        for entry in list(_spread(model)):
            whole = wholes.get(id(entry.tensor)) or WholeTensor(entry.name, entry.tensor)
            wholes[id(entry.tensor)] = whole
            self._places.append((entry.home, entry.leaf, whole))
            entry.home[entry.leaf] = whole.tensor
            BEHIND[whole.tensor] = whole.spread
        for module, cls in self._classes:
            module.__class__ = bare_class(cls)
        self._hooks = [(hooks, dict(hooks)) for each in model.modules() if (hooks := each._load_state_dict_post_hooks)]
        for hooks, before in self._hooks:
            for key, hook in before.items():
                if getattr(hook, "__module__", "").startswith("torch.distributed.fsdp"):
                    del hooks[key]  # after each load it looks for its DTensors, which stay where they are
        self._by_tensor = {id(whole.tensor): whole for whole in wholes.values()}
        self._by_home = {whole.home: whole for whole in wholes.values()}
        self._touched: dict[WholeTensor, None] = {}
        self._index = MemoryIndex()

    def __enter__(self) -> WholeTensors:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.take_out(failed=error is not None)

    def take_out(self, *, failed: bool = False) -> None:
        """Give the model its DTensors and classes back; RunError where code has put others in their places.

        Where that code has ``failed`` with an error of its own this one is not raised.
        """
        replaced = [leaf for home, leaf, _ in self._places if id(home.get(leaf)) not in self._by_tensor]
        try:
            self.put_back()
        finally:
            for home, leaf, whole in self._places:
                home[leaf] = whole.hand_back()
                BEHIND.pop(whole.tensor, None)  # a tied one comes by a second time
            for module, cls in self._classes:
                module.__class__ = cls
            for hooks, before in self._hooks:
                hooks.clear()
                hooks.update(before)
        if replaced and not failed:
            text = "code put new tensors in the places of distributed ones, which cannot be"
            raise RunError(f"{text}: {abbreviate(replaced)}")

    @contextmanager
    def working(self, index: MemoryIndex) -> Iterator[None]:
        """Let code work on the tensors: they have memory and values when it wants those.

        ``index`` has the tensors, and from now on also the DTensors behind them.
        """
        if index is not self._index:
            self._index = index
            for whole in self._by_tensor.values():
                for key in index.find(whole.tensor):
                    index.add(key, whole.spread)
        try:
            with FunctionMode(self._function), OperationMode(self._operation), observing_runs(self):
                yield
        finally:
            self.put_back()

    def before_run(self, step: Step, parts: Sequence[Shard]) -> None:
        """Let go of wholes before a plan is run, which writes to the parts behind them."""
        self.put_back()

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """Nothing: no whole has memory now."""

    def put_back(self) -> None:
        """Write all that code has written into the local parts; nothing has memory any more."""
        with unobserved(watched=True), torch.no_grad():
            self._put_back(list(self._touched))

    def _put_back(self, wholes: Sequence[WholeTensor]) -> None:
        for whole in wholes:
            home = whole.home
            if whole.put_back():
                del self._by_home[home]
                self._by_home[whole.home] = whole
                self._index.follow(whole.tensor)
            del self._touched[whole]

    # --- while code works ------------------------------------------------------------------------------------

    # Each operation is looked at before it runs. One that writes a whole over from end to end goes to the parts
    # instead, if it is one that draws or sets the same there. Any other needs memory; it needs the values as well
    # unless it only makes a view or overwrites all. All ranks run the same code and come to the same decision, so that
    # they gather together; where they do not, the names that they exchange tell.

    def _operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do an operation, with memory for the wholes that it works on."""
        name = name_of(func)
        leaves = tree_leaves((args, kwargs))
        used = [whole for leaf in leaves if isinstance(leaf, Tensor) and (whole := self._of(leaf))]
        if not used:
            return func(*args, **kwargs)
        if len(used) == 1 and self._is_by_parts(name, args, kwargs, used[0]):
            func(used[0].spread, *args[1:], **kwargs)
            return args[0]
        overwritten = name in _OVERWRITING and len(used) == 1 and _covers(args[0], used[0])
        if name not in _LOOKING and not name.startswith("new_") and not name.endswith("_like"):
            self._bring(used, values=not (func.is_view or overwritten))
        result = func(*args, **kwargs)
        if overwritten:
            used[0].is_valid = True
        for tensor in written_by(func, args, kwargs):
            self._moved(tensor)
            if whole := self._of(tensor):
                whole.is_changed = True
        return result

    def _function(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do a function of torch, and see to ``tensor.data = other`` and to memory that is handed out."""
        name = getattr(func, "__name__", "")
        if name in _HANDING_OUT and (whole := self._of(args[0])):
            self._bring([whole], values=True)
            whole.is_changed = whole.is_handed_out = True
        result = func(*args, **kwargs)
        if name == "__set__":
            self._moved(args[0])
        return result

    def _is_by_parts(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], whole: WholeTensor) -> bool:
        """Whether an operation need not have the whole in memory. Within ``trunc_normal_`` it is looked at next."""
        if name not in _BY_PARTS or whole in self._touched or kwargs.get("generator") is not None:
            return False
        target, base, frame = args[0], whole.base, frame_of_caller()
        if any(isinstance(value, Tensor) for value in args[1:]) or (frame is not None and frame.f_code is TRUNCATED):
            return False
        return (target.shape, target.stride(), target.storage_offset()) == (base.shape, base.stride(), 0)

    def _moved(self, tensor: Tensor) -> None:
        """Keep in mind that a tensor may have other memory now."""
        if whole := self._by_tensor.get(id(tensor)):
            self._touched[whole] = None

    def _of(self, tensor: Tensor) -> WholeTensor | None:
        return self._by_home.get(storage_of(tensor))

    def _bring(self, used: Sequence[WholeTensor], *, values: bool) -> None:
        """Give wholes memory, and their values if these are wanted; others lose theirs where there are too many."""
        others = [whole for whole in self._touched if whole not in used]
        with unobserved(watched=True), torch.no_grad():
            if sum(whole.bytes for whole in {*used, *others}) > _BUDGET:
                self._put_back(others)
            for whole in used:
                self._touched[whole] = None
                if not whole.base.untyped_storage().nbytes():
                    whole.base.untyped_storage().resize_(whole.bytes)
                if values and not whole.is_valid:
                    whole.fill(self._exchange)


def _covers(target: Any, whole: WholeTensor) -> bool:
    """Whether a view of a whole reaches every element of it."""
    return isinstance(target, Tensor) and target.numel() == whole.base.numel() and not overlaps(target)


def is_spread(model: nn.Module) -> bool:
    """Whether a model holds a DTensor with memory."""
    return next(_spread(model), None) is not None


def _spread(model: nn.Module) -> Iterator[ModuleTensor]:
    """The DTensors with memory of a model that no other tensor is computed from."""
    for entry in module_tensors(model):
        if is_distributed(entry.tensor) and not (entry.tensor.is_meta or isinstance(entry.module, ParametrizationList)):
            computed = parametrized(entry.module) if entry.module._forward_pre_hooks else ()
            if all(entry.leaf not in each.hidden for each in computed):
                yield entry


def bare_class(cls: type) -> type:
    """The class of a module before ``fully_shard`` put one of its own in front."""
    bases = cls.__bases__
    return bases[1] if len(bases) == 2 and bases[0].__name__ in ("FSDPModule", "ReplicateModule") else cls


def _along_the_mesh(tensor: Any, value: Any) -> list[Any]:
    known, mesh = [value], tensor.device_mesh
    for axis, placement in enumerate(tensor.placements):
        if mesh.size(axis) > 1 and not placement.is_replicate():
            answers = gathered(known, met_in(mesh.get_group(axis)), "code of a sharded model")
            known = [answer for each in answers for answer in each]
    return known
