"""Files of ``torch.save``, the tensors in memory that they become, and the search for the weights in nested ones."""

from __future__ import annotations

import math
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import torchinit._limits as limits
from torchinit._text import abbreviate, count, did_you_mean
from torchinit.checkpoints.formats.base import Checkpoint, Info, Stamp, cut
from torchinit.checkpoints.formats.common_pickle import read_common
from torchinit.checkpoints.formats.pickle_audit import Filled, Leaves, check_pickles
from torchinit.checkpoints.formats.pickle_names import refused
from torchinit.checkpoints.formats.zip_audit import Audited, check_zip, is_zip
from torchinit.errors import CheckpointError
from torchinit.model.dtensor import is_distributed
from torchinit.model.shards import Box

PARTS = (  # the keys under which training code keeps weights, the trained ones before their averages
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "generator", "student", "teacher", "params_ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema",
)  # fmt: skip
_OPTIMIZER = ("optimizer", "optim", "optimizer_state", "optimizer_state_dict", "param_groups", "lr_scheduler")


class MemoryCheckpoint(Checkpoint):
    """A checkpoint of tensors that are there already.

    Sparse, quantized and other odd tensors are refused by themselves, when they are asked for; so are those of a
    file whose elements share memory (an expanded tensor), where they claim far more than is there.
    """

    _most_shared = math.inf

    def __init__(
        self, name: str, tensors: Mapping[str, Tensor], form: str, part: str = "", notes: tuple[str, ...] = ()
    ) -> None:
        self.name: str = name
        self.format: str = form
        self.part: str = part
        self.notes: tuple[str, ...] = notes
        self._entries = dict(tensors)
        claims = {key: _claimed(tensor) for key, tensor in tensors.items()}
        self._is_bomb = sum(claims.values()) > self._most_shared

    @classmethod
    def of_model(cls, model: nn.Module) -> MemoryCheckpoint:
        """The parameters and persistent buffers of a model."""
        tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        return cls(f"{type(model).__name__} in memory", tensors, "model")

    def _info(self, key: str) -> Info:
        tensor = self._plain(key)
        return Info(tuple(tensor.shape), tensor.dtype)

    def _read(self, key: str, box: Box | None) -> Tensor:
        # The memory of a tensor that is marked as conjugated or negated has other bits than its values.
        return cut(self._plain(key).detach(), box).resolve_conj().resolve_neg()

    def _plain(self, key: str) -> Tensor:
        tensor: Tensor = self._entries[key]
        if odd := _oddity(tensor):
            remedy = ": dequantize() it first" if odd.startswith(("quantized", "wrapped")) else ""
            raise CheckpointError(f"{self.name}: {key} is a {odd} tensor; only plain ones can be loaded{remedy}")
        if self._is_bomb and (claimed := _claimed(tensor)):
            there = tensor.untyped_storage().nbytes()
            only = f"claims {claimed:,} bytes, but only {there:,} are there: its elements share memory"
            raise CheckpointError(f"{self.name}: {key} of shape {tuple(tensor.shape)} {only}")
        return tensor


class TorchCheckpoint(MemoryCheckpoint):
    """A file of ``torch.save``: of the zip format nothing is read before it is used, of the older one everything."""

    _most_shared = 1 << 26  # a file of a kilobyte can claim any number of elements, and be written out so

    def __init__(self, path: Path, part: str | None = None) -> None:
        self._stamp = Stamp(path)
        tensors, where, notes = find_state_dict(load_file(path), str(path), part)
        super().__init__(str(path), tensors, "torch" if is_zip(path) else "torch, legacy", where, notes)


def _claimed(tensor: Tensor) -> int:
    """The bytes that a plain tensor claims where its memory has fewer; else 0."""
    if type(tensor) not in (Tensor, nn.Parameter) or _oddity(tensor):
        return 0
    claimed = tensor.numel() * tensor.element_size()
    return claimed if claimed > tensor.untyped_storage().nbytes() else 0


def _oddity(tensor: Tensor) -> str:
    """The odd kind that a tensor is of; empty for a plain one."""
    if type(tensor) is Tensor and tensor.is_cpu and tensor.layout == torch.strided and not tensor.is_quantized:
        return "nested" if tensor.is_nested else ""
    if tensor.layout != torch.strided:
        return str(tensor.layout)
    kinds = {
        "meta": tensor.is_meta,
        "quantized": tensor.is_quantized,
        "nested": tensor.is_nested,
        f"wrapped ({type(tensor).__name__})": hasattr(tensor, "__tensor_flatten__") and not is_distributed(tensor),
    }
    return next((kind for kind, is_so in kinds.items() if is_so), "")


# --- reading the file ------------------------------------------------------------------------------------------------


def load_file(path: Path, map_location: Any = "cpu", *, mapped: bool = True) -> Any:
    """The content of a file of ``torch.save``; no code in it is run, and with ``mapped`` nothing read before its use.

    Raises CheckpointError for a file that is damaged or compressed, and RefusedPickleError, which is one, for
    other objects than tensors and plain data.
    """
    zipped = is_zip(path)
    audited = check_zip(path) if zipped else Audited(check_legacy(path))
    try:
        content = read_common(path, audited) if mapped and map_location == "cpu" else None
        if content is None:
            with _unmade(audited.leaves):
                content = torch.load(path, map_location=map_location, weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        text = str(error)
        asked = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function|global) ([\w.]+)", text)
        odd = f"does what torch.save does not ({_first_line(error).rstrip('.')})"
        raise refused(str(path), f"asks for {asked[1]}" if asked else odd) from None
    except Exception as error:  # of any kind: it depends on where the pickle is damaged
        raise CheckpointError(f"{path}: cannot be read, it is damaged: {_first_line(error)}") from error
    _check_methods(path, content)
    return content


def check_legacy(path: Path) -> Leaves:
    """Return what the pickle of a file of torch's older format asks for that is not to be made.

    Raises CheckpointError for one that is damaged, or whose memory is not all there.
    """
    with path.open("rb") as file:
        memory, keys, leaves = check_pickles(str(path), file)
        if memory.keys() != {*keys} or len(keys) > len(memory):
            raise CheckpointError(f"{path}: the memory of its tensors is not in the file")
        size = path.stat().st_size
        for key in keys:  # a piece is its number of elements, then these
            numel = int.from_bytes(file.read(8), "little")
            if numel != memory[key].numel or file.seek(memory[key].nbytes, 1) > size:
                raise CheckpointError(f"{path}: the memory {key!r} of its tensors is not whole in the file")
    return leaves


class Unmade:
    """An object of a file that was not made: nothing of its class was imported or called."""

    name = ""

    def __setstate__(self, state: object) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.name}, not made>"


_ALONE: Final = threading.Lock()
"""torch keeps the classes that its unpickler allows for the whole process."""


@contextmanager
def _unmade(leaves: Leaves) -> Iterator[None]:
    """Have torch's unpickler make none of these: it gets a class of ours for each name, which lets all go."""
    # For as long as this file is read another thread that calls torch.load would get the same in place of its error.
    if not leaves:
        yield
        return
    stand_ins: list[Any] = [(_stand_in(name, form), str(name)) for name, form in leaves.items()]
    with _ALONE, torch.serialization.safe_globals(stand_ins):
        yield


def _stand_in(name: str, form: Filled) -> type[Unmade]:
    # What is filled afterwards must be a list or dict itself, since torch's unpickler fills nothing else.
    def new(cls: type, *_: object) -> object:
        return object.__new__(cls) if form == "object" else [] if form == "list" else OrderedDict()

    return type(name.rpartition(".")[2], (Unmade,), {"__new__": new, "name": str(name)})


def _check_methods(path: Path, content: object) -> None:
    """Raise CheckpointError where a table or tensor has an attribute in place of a method, or one without a name."""
    # A pickle may set attributes of the OrderedDicts and tensors that it makes. One that sets `values` or `numel`
    # would show one thing to the checks here and another to whoever reads it afterwards.
    left, seen = [content], set[int]()
    while left:
        value = left.pop()
        if id(value) in seen or not isinstance(value, (Tensor, dict, list, tuple, set)):
            continue
        seen.add(id(value))
        own = getattr(value, "__dict__", ())
        if hidden := [name for name in own if not isinstance(name, str) or hasattr(type(value), name)]:
            raise refused(str(path), f"gives a {type(value).__name__} its own {hidden[0]!r}")
        if not isinstance(value, Tensor):
            left += value.values() if isinstance(value, Mapping) else value


def _first_line(error: Exception) -> str:
    reason = str(error).rpartition("WeightsUnpickler error:")[2]
    return (reason.strip().splitlines() or [type(error).__name__])[0][:200]


# --- where the weights are -------------------------------------------------------------------------------------------


def find_state_dict(content: object, name: str, part: str | None) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The named tensors in what a file holds, the path to them, and what else there was to choose from.

    ``part`` says where they are: ``"ema.state_dict"``. There may be a list of tensors without names, which are
    numbered; with ``""`` it is the only such list of the file. Raises CheckpointError where there are none.
    """
    # The search goes down, table by table: into the first of PARTS that holds no fewer named tensors than lie beside
    # it (beside flat weights a small table may be called "model"), or into the only table with tensors that is not an
    # optimizer's. It stops where neither is so, with all that is below. It can fail where a file keeps two
    # models under names of its own: then the tensors of both are taken, and their names tell.
    nest = _Nest(name)
    if part == "":
        return *_only_list(content, name), ()
    if part is not None:
        return nest.part(content, part), part, ()
    state: Any = content
    path, seen, notes = "", set[int](), list[str]()
    while (key := nest.next(state)) is not None:
        if id(state) in seen:
            raise CheckpointError(f"{name}: its part {path!r} holds itself")
        seen.add(id(state))
        path = _join(path, key)
        others = {other for other in nest.holders(state) if not _is_optimizer(other, state[other])} - {key}
        if others:
            notes.append(f"taken from {path!r}; there are also {abbreviate(sorted(others))}: choose with part")
        state = state[key]
    if tensors := nest.tensors(state):
        return tensors, path, tuple(notes)
    raise _empty(name, state)


class _Nest:
    """Tables in tables, of which one may lie in many places, or in itself; so what was counted is not counted again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: dict[tuple[int, int], int] = {}
        self.steps = 0

    def next(self, state: object) -> str | None:
        """The key below which the weights are; None if they are here."""
        if not isinstance(state, Mapping):
            return None
        here = sum(isinstance(value, Tensor) for value in state.values())
        holders = self.holders(state)
        for key in PARTS:
            if key in holders and self.count(state[key]) >= here:
                return key
        weighty = [key for key in holders if not _is_optimizer(key, state[key])]
        return weighty[0] if len(weighty) == 1 and not here else None

    def holders(self, state: object) -> list[str]:
        return [key for key, value in _named(state) if self.count(value)]

    def count(self, state: object, depth: int = limits.PART_LEVELS) -> int:
        if not isinstance(state, Mapping) or not depth:
            return 0
        if (id(state), depth) not in self.counts:
            counts = (isinstance(value, Tensor) or self.count(value, depth - 1) for _, value in _named(state))
            self.counts[id(state), depth] = sum(counts)
        return self.counts[id(state), depth]

    def tensors(self, state: object, prefix: str = "", depth: int = limits.PART_LEVELS) -> dict[str, Tensor]:
        """The named tensors here and in the tables below, whose names are joined with dots; optimizers are left out."""
        tensors: dict[str, Tensor] = {}
        for key, value in _named(state) if depth else ():
            self.steps += 1
            if isinstance(value, Tensor):
                tensors[prefix + key] = value
            elif self.count(value, depth - 1) and not _is_optimizer(key, value):
                tensors.update(self.tensors(value, f"{prefix}{key}.", depth - 1))
        if self.steps > limits.NAMES:
            raise CheckpointError(f"{self.name}: has more than {limits.NAMES:,} names; refused")
        return tensors

    def part(self, state: Any, part: str) -> dict[str, Tensor]:
        path = ""
        while part:
            keys = [key for key, _ in _named(state)]
            key = next((key for key in keys if part == key or part.startswith(f"{key}.")), None)
            if key is None:
                near = did_you_mean(part.split(".", maxsplit=1)[0], keys)
                raise CheckpointError(f"{self.name}: has no part {_join(path, part)!r}{near}")
            state, path, part = state[key], _join(path, key), part[len(key) + 1 :]
        if tensors := self.tensors(state) or _numbered(state):
            return tensors
        raise CheckpointError(f"{self.name}: its part {path!r} holds no named tensors")


def _numbered(state: object) -> dict[str, Tensor]:
    """The tensors of a list, as averages of weights are kept, by their numbers; none of anything else."""
    if isinstance(state, Mapping):
        state = [*state.values()] if [*state] == [*range(len(state))] else ()
    tensors = state if isinstance(state, (list, tuple)) else ()
    are_tensors = all(isinstance(tensor, Tensor) for tensor in tensors)
    return {str(at): tensor for at, tensor in enumerate(tensors)} if are_tensors else {}


def _lists(state: object, path: str = "", depth: int = limits.PART_LEVELS) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The lists of tensors here and in the tables below, and where they are; those of optimizers are left out."""
    if tensors := _numbered(state):
        yield path, tensors
    for key, value in _named(state) if depth else ():
        if not _is_optimizer(key, value):
            yield from _lists(value, _join(path, key), depth - 1)


def _named(state: object) -> list[tuple[str, Any]]:
    """The items of a table whose keys are text."""
    return [(key, value) for key, value in state.items() if isinstance(key, str)] if isinstance(state, Mapping) else []


def _is_optimizer(key: str, value: object) -> bool:
    inner = isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()
    return inner or key in _OPTIMIZER or key.startswith(("optimizer", "optim_"))


def _only_list(content: object, name: str) -> tuple[dict[str, Tensor], str]:
    """The one list of tensors without names, and where it is."""
    lists = [*_lists(content)]
    if len(lists) == 1:
        return lists[0][1], lists[0][0]
    several = (
        f"{len(lists)} lists of tensors without names: choose with part, one of {abbreviate([at for at, _ in lists])}"
    )
    raise CheckpointError(f"{name}: holds {several if lists else 'no list of tensors without names'}")


def _empty(name: str, state: object) -> CheckpointError:
    """The error for content without named tensors."""
    for value in (state, *(value for _, value in _named(state))):
        if isinstance(value, Unmade):
            return refused(name, f"asks for {value.name}")
    why = _why_empty(state) if isinstance(state, Mapping) else f"holds a {type(state).__name__}, not named tensors"
    if lists := [at for at, _ in _lists(state)]:
        why = f"holds no named tensors, only lists of them: {abbreviate(lists)}" if any(lists) else why
        why += "; a rule with order='parameters' takes one"
    return CheckpointError(f"{name}: {why}")


def _why_empty(state: Mapping[Any, Any]) -> str:
    keys = [key for key, _ in _named(state)]
    if _is_optimizer("", state) or any(_is_optimizer(key, value) for key, value in _named(state)):
        return "holds the state of an optimizer only, no weights; give the file in which its training saved the model"
    if any(isinstance(value, Tensor) for value in state.values()):
        return "its tensors have no names: their keys are not text"
    return f"holds no tensors, only {count(len(keys), 'entry', 'entries')}: {abbreviate(keys)}" if keys else "is empty"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
