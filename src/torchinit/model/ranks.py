"""Ranks: what each process of a job says to the others, in an order in which none waits for one that waits for it."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchinit._text import abbreviate
from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
_Error = TypeVar("_Error", bound=BaseException)
_log = logging.getLogger("torchinit")


def is_alone() -> bool:
    """Whether there is no process group, and so nobody to talk to."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())


def is_shared(group: ProcessGroup | None = None) -> bool:
    """Whether the group has other ranks."""
    return not is_alone() and torch.distributed.get_world_size(group) > 1


def gathered(value: _T, group: ProcessGroup | None, doing: str, *, first: bool = False) -> list[_T]:
    """The values of all ranks of a group, in their order; every rank has to call this, and be ``doing`` the same.

    Where it is the ``first`` time that they do, ranks that do not come are told of after some seconds.
    Raises RunError where there is no process group, on all ranks where one does something else, and where a rank gives
    no answer: it has died, or the group's timeout has passed.
    """
    dist = torch.distributed
    if is_alone():
        raise RunError("there is no process group: call torch.distributed.init_process_group first")
    found: list[Any] = [(doing, value)] * dist.get_world_size(group)
    if dist.get_backend(group) != "fake":  # of a dry run on one process: nobody else is there
        roll = _RollCall(group, doing) if first else None
        try:
            dist.all_gather_object(found, (doing, value), group)
        except RuntimeError as error:
            absent = roll.absent() if roll else []
            headline = f"no word from the other ranks: {str(error).splitlines()[0]}"
            raise told(RunError(headline, absent or [f"all had come to {doing}; then one was lost"])) from error
    if len({each for each, _ in found}) > 1:
        works = dict(zip(ranks_of(group), (each for each, _ in found), strict=True))
        texts = [f"{work}: {ranks}" for work, ranks in by_value(works)]
        raise told(RunError("the ranks do not do the same", texts))
    return [each for _, each in found]


def told(error: _Error) -> _Error:
    """The error, marked as one that the other ranks have heard of or cannot."""
    vars(error)["torchinit_told"] = True
    return error


def is_told(error: BaseException) -> bool:
    """Whether an error has that mark."""
    return "torchinit_told" in vars(error)


def ranks_of(group: ProcessGroup | None = None) -> list[int]:
    """The ranks of a group, as the whole job counts them."""
    return torch.distributed.get_process_group_ranks(group or _everyone())


def _everyone() -> ProcessGroup:
    return cast("ProcessGroup", torch.distributed.group.WORLD)


def ranks_text(ranks: Sequence[int], most: int = 5) -> str:
    """Ranks as a reader would write them."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {abbreviate([str(rank) for rank in ranks], most)}"


def by_value(values: Mapping[int, str]) -> list[tuple[str, str]]:
    """Each of the ranks' values, and the text of those that have it."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, value in values.items():
        ranks[value].append(rank)
    return [(value, ranks_text(those)) for value, those in ranks.items()]


# --- who is waited for -------------------------------------------------------------------------------------

# A gathering tells nobody whom it waits for, and ends with the timeout of the group, half an hour by default. So each
# rank first signs in the job's store that it has come, and waits there for the others: after some seconds it logs who
# is missing and what each of these was last seen doing, and goes on to the gathering, whose error tells the same. To
# raise at once was not possible: a rank that does something else may have it to do before it comes. It also leaves a
# word for those who are missing. A rank whose model has no part of what others hold is done before they know that it
# does not come, and nothing of torchinit's need run on it again: so a thread looks there once, when they have waited.
_PATIENCE: Final = timedelta(seconds=10)
_LISTENER: Final = "torchinit.listener"
_TURNS: Final[Counter[str]] = Counter()


class _RollCall:
    """The ranks of a group that have come to one gathering of theirs."""

    def __init__(self, group: ProcessGroup | None, doing: str) -> None:
        ranks, name = ranks_of(group), (group or _everyone()).group_name
        _TURNS[name] += 1
        self.doing = doing
        self._signs = {rank: f"torchinit/{name}/{_TURNS[name]}/{rank}" for rank in ranks}
        sign_in(f"{doing} with {ranks_text(ranks)}")
        with suppress(Exception):  # a job may have no store; the gathering itself tells what is wrong
            store = _store()
            store.set(self._signs[_rank()], "")
            store.delete_key(f"torchinit/{name}/{_TURNS[name] - 1}/{_rank()}")  # which all have seen
            store.delete_key(_word_for(_rank()))  # it is here
            try:
                store.wait([*self._signs.values()], _PATIENCE)
            except RuntimeError:
                lines = self.absent()
                for line in lines:
                    _log.warning("%s", line)
                for rank in [rank for rank, sign in self._signs.items() if not store.check([sign])]:
                    store.set(_word_for(rank), "; ".join(lines))

    def absent(self) -> list[str]:
        """Which ranks have not come, a line for each work that they were last seen at."""
        seen = dict[int, str]()
        with suppress(Exception):  # the store goes with the rank that holds it
            store = _store()
            for rank in [rank for rank, sign in self._signs.items() if not store.check([sign])]:
                seen[rank] = store.get(_seen(rank)).decode() if store.check([_seen(rank)]) else "nothing of torchinit's"
        return [f"{self.doing} waits for {ranks}, last seen at: {work}" for work, ranks in by_value(seen)]


def sign_in(doing: str) -> None:
    """Let others know what this rank does, if they wait for it."""
    with suppress(Exception):  # a job may have no store
        _store().set(_seen(_rank()), doing)


def _listen() -> None:
    """Log it if other ranks are found to wait for this one, which goes on without them."""
    is_listening = any(thread.name == _LISTENER for thread in threading.enumerate())
    if "torch.distributed.tensor" in sys.modules and not is_listening:  # without which no rank has a DTensor
        timer = threading.Timer(3 * _PATIENCE.total_seconds(), _tell_word)
        timer.name, timer.daemon = _LISTENER, True
        timer.start()


def _tell_word() -> None:
    with suppress(Exception):  # the job may have ended
        if _store().check([_word_for(_rank())]):
            _log.warning("other ranks wait for this one: %s", _store().get(_word_for(_rank())).decode())


def _seen(rank: int) -> str:
    return f"torchinit/seen/{rank}"


def _word_for(rank: int) -> str:
    return f"torchinit/waited-for/{rank}"


def _rank() -> int:
    return torch.distributed.get_rank()


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


# --- the ranks that have a model together --------------------------------------------------------------------


class Spread:
    """Tells what each rank that has a model says: the values by rank. All these ranks have to call it.

    ``has_spoken`` tells whether this one has, ``in_one_group`` whether there is one group in which all of them meet.
    """

    def __init__(self, say: Callable[[Any, bool], dict[int, Any]], *, in_one_group: bool = True) -> None:
        self._say = say
        self.in_one_group = in_one_group
        self.has_spoken: bool = False

    def __call__(self, value: _T, /) -> dict[int, _T]:
        first, self.has_spoken = not self.has_spoken, True
        return self._say(value, first)


def over_group(group: ProcessGroup | None, doing: str) -> Spread:
    """The spread over the ranks of a group; None: all there are. RunError for a group that this rank is not in."""
    if not is_alone() and torch.distributed.get_rank(group) < 0:
        raise RunError(f"rank {_rank()} is not in the group that it was given")

    def say(value: Any, first: bool) -> dict[int, Any]:
        values = gathered(value, group, doing, first=first)
        return dict(zip(ranks_of(group), values, strict=True))

    return Spread(say)


def over_model(model: nn.Module, doing: str) -> Spread | None:
    """The spread over the ranks that hold parts or replicas of a model; None where this rank alone does.

    A plain tensor is a replica below DistributedDataParallel; elsewhere each rank may mean its own.
    """
    if is_alone():
        return None
    wrappers = (each for each in model.modules() if isinstance(each, DistributedDataParallel))
    return over_meshes(chain(model.parameters(), model.buffers()), doing, (each.process_group for each in wrappers))


def replicated_in(model: nn.Module) -> Iterator[Tensor]:
    """The plain parameters of a model that DistributedDataParallel keeps alike on its ranks."""
    for wrapper in model.modules():
        if isinstance(wrapper, DistributedDataParallel):
            ignored = wrapper.parameters_to_ignore
            yield from (each for name, each in wrapper.module.named_parameters() if name not in ignored)


def over_meshes(tensors: Iterable[Tensor], doing: str, replicas: Iterable[ProcessGroup] = ()) -> Spread | None:
    """The spread over the ranks that hold parts of these DTensors, or are in groups of ``replicas``; None for one rank.

    Values travel along each dimension of each mesh, twice. Raises RunError on the ranks that know of each other
    where the tensors of one are on a mesh that has another rank, whose tensors are not.
    """
    # Every rank takes its groups in the same order of all, so that none waits for one that waits for it; that does not
    # depend on the tensors, of which ranks may have others. The widest mesh comes first, since what it tells is
    # whether all have the narrower ones, too. Twice, since tensors on the rows and on the columns of ranks leave those
    # in the corners two steps apart; on every rank, since one that has fewer groups than its neighbours would else be
    # waited for. One mesh needs a single round, however many dimensions it has. What can go wrong: a rank that has no
    # DTensor at all cannot know that others wait for it, which ends with their timeout.
    groups = {} if is_alone() else _groups_of(tensors, replicas)
    order = sorted(groups)
    if not order:
        if is_shared():
            sign_in(f"{doing}, alone, as its model holds no part of a DTensor")
            _listen()
        return None

    def say(value: Any, first: bool) -> dict[int, Any]:
        known = {_rank(): (frozenset(order), value)}
        for turn, key in enumerate(order * 2):
            if all(key in known[rank][0] for rank in ranks_of(groups[key]) if rank in known):
                for each in gathered(known, groups[key], doing, first=first and turn < len(order)):
                    known |= each
        lacking = {
            (rank, key[1:3]) for keys, _ in known.values() for key in keys for rank in known
            if rank in key[1] and all(key[:3] != other[:3] for other in known[rank][0])
        }  # fmt: skip
        if lacking:
            texts = [f"rank {rank} has no DTensor on the mesh of {_mesh_text(*mesh)}" for rank, mesh in sorted(lacking)]
            raise RunError("the ranks' models lie on other meshes; nothing was written", texts)
        return {rank: known[rank][1] for rank in sorted(known)}

    return Spread(say, in_one_group=len(order) == 1)


def _groups_of(tensors: Iterable[Tensor], replicas: Iterable[ProcessGroup]) -> dict[tuple[Any, ...], ProcessGroup]:
    """The groups of this rank by size, ranks, shape and dimension of the mesh that they belong to."""
    groups: dict[tuple[Any, ...], ProcessGroup] = {}
    for mesh in dict.fromkeys(tensor.device_mesh for tensor in tensors if is_distributed(tensor)):
        ranks = tuple(mesh.mesh.flatten().tolist())
        for axis in range(mesh.ndim) if mesh.get_coordinate() is not None else ():
            with suppress(RuntimeError):  # the mesh has no groups
                key, group = (-mesh.size(), ranks, tuple(mesh.shape), axis), met_in(mesh.get_group(axis))
                if mesh.size(axis) > 1:  # of meshes that differ in their words only, the group that was made first
                    groups[key] = min(group, groups.get(key, group), key=lambda each: each.group_name)
    for group in replicas:
        if len(members := tuple(ranks_of(group))) > 1:
            groups.setdefault((-len(members), members, (len(members),), 0), met_in(group))
    return groups


def _mesh_text(ranks: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return f"ranks {[*ranks]}" + (f" in shape {[*shape]}" if len(shape) > 1 else "")


def met_in(group: ProcessGroup) -> ProcessGroup:
    """The group itself; of all ranks the job's own, in which those of other meshes meet it."""
    is_everyone = torch.distributed.get_world_size(group) == torch.distributed.get_world_size()
    return _everyone() if is_everyone else group


# --- agreements ------------------------------------------------------------------------------------------------


def check_same(spread: Spread, noun: str, value: object) -> None:
    """Raise RunError on every rank of a spread unless all have one value. All of them have to call this."""
    values = {rank: str(each) for rank, each in spread(str(value)).items()}
    if len({*values.values()}) > 1:
        texts = ", ".join(f"{each} on {ranks}" for each, ranks in by_value(values))
        raise RunError("the ranks do not start alike; nothing was written", [f"{noun} is {texts}"])


class Agreement:
    """What ranks ``compare`` before the first write to what they have together: once for each mesh or group."""

    def __init__(self, doing: str, compare: Callable[[Spread], None]) -> None:
        self.doing = doing
        self.compare = compare
        self._agreed: set[Any] = set()

    def __reduce__(self) -> tuple[type[Agreement], tuple[Any, ...]]:
        return type(self), (self.doing, self.compare)  # a copy's ranks have not agreed yet

    def over(self, tensors: Iterable[Tensor], replicas: Iterable[ProcessGroup] = ()) -> None:
        """Compare over the ranks that hold parts of these tensors, or are in these groups, where they have not yet."""
        new = [each for each in tensors if is_distributed(each) and each.device_mesh not in self._agreed]
        groups = [each for each in replicas if each not in self._agreed]
        if new or groups:
            self._agreed.update(groups)
            self._among(over_meshes(new, self.doing, groups), new)

    def over_model(self, model: nn.Module) -> None:
        """The same of all that a model holds, replicas of DistributedDataParallel among it."""
        tensors = chain(model.parameters(), model.buffers())
        self._among(over_model(model, self.doing), filter(is_distributed, tensors))

    def _among(self, spread: Spread | None, tensors: Iterable[Any]) -> None:
        self._agreed.update(each.device_mesh for each in tensors)
        if spread is not None:
            self.compare(spread)
