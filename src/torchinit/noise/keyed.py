"""Keyed noise, whose every value is a function of seed, name and position alone; and what a seed stands for."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from torchinit.errors import RunError
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.shards import Shard
from torchinit.model.storage import overlaps
from torchinit.noise.base import Distribution, DrawRequest, Noise
from torchinit.noise.distributions import Draw, DrawKind, resolve
from torchinit.noise.engines import dispatch, torch_engine
from torchinit.noise.engines.tasks import FillTask, are_simple, is_simple
from torchinit.noise.settings import drawing_threads, one_thread, plain_process, plain_thread
from torchinit.noise.torch_generator import Global, drawing_from, seeded_generators

STREAM = "torchinit-stream-1"
"""The version of the stream; it changes if any value ever does."""

_LIMIT = 1 << 64

_LENT: ContextVar[bool] = ContextVar("torchinit_lent", default=False)


def is_lent() -> bool:
    """Whether torch's generators are lent to user code now, in a state that belongs to a name."""
    return _LENT.get()


class Alike(NamedTuple):
    """Tensors of one dtype that get one draw each, the same but for their names: a distribution with its parameters."""

    draw: tuple[Distribution, tuple[float, ...]]
    draw_index: int
    names: list[str]
    outs: list[Tensor]


@final
@dataclass(frozen=True, slots=True)
class Keyed(Noise):
    """Values that belong to a name: element i of a draw is a function of (seed, name, draw index, i).

    So they are the same bits for any order of layers, any sharding, thread count, device and torch version,
    and torch's own generators are never touched. ``docs/reference/stream.md`` says how they are made.

    Raises TypeError for a seed that is not an integer, ValueError for one outside of [0, 2**64).

    >>> import torch
    >>> from torchinit.model.shards import Shard
    >>> whole, row = torch.empty(4, 3), torch.empty(1, 3)
    >>> Keyed(7).fill(Shard.whole("weight", whole), "normal", (0.0, 1.0))
    >>> Keyed(7).fill(Shard("weight", row, shape=(4, 3), start=(2, 0)), "normal", (0.0, 1.0))
    >>> torch.equal(row[0], whole[2])
    True
    """

    seed: int
    is_stateful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__"):
            raise TypeError(f"a seed is an int, got {self.seed!r}")
        seed = operator.index(self.seed)
        if not 0 <= seed < _LIMIT:
            raise ValueError(f"a seed is at least 0 and below 2**64, got {seed}")
        if type(self.seed) is not int:
            object.__setattr__(self, "seed", seed)

    def fill(self, shard: Shard, distribution: Distribution, params: tuple[float, ...], index: int = 0) -> None:
        """Draw the shard, whatever part of its tensor it is."""
        compiled = dispatch.chosen_kernel()
        if compiled and _is_simple(shard):
            draw = resolve(distribution, params, shard.local.dtype)
            compiled.fill_one(shard.local, derive(self.seed, shard.name, index), draw, torch.get_num_threads())
        else:
            dispatch.fill([self._task(DrawRequest(shard, distribution, params, index))])

    def fill_many(self, jobs: Iterable[DrawRequest]) -> None:
        """Draw all shards; nothing is written if one of the jobs cannot be done."""
        batch = list(jobs)
        shards = [job[0] for job in batch]
        outs = [shard.local for shard in shards]
        # A model has hundreds of small tensors that are wholly here; they skip what cannot be wrong with them.
        known = dispatch.chosen_kernel() is not None and are_simple(outs)
        if known and not any([shard.local.shape != shard.shape or any(shard.start) for shard in shards]):  # noqa: C419
            self.fill_simple(_alike(batch))
        else:
            dispatch.fill([self._task(job) for job in batch])

    def fill_simple(self, groups: Iterable[Alike]) -> None:
        """Draw tensors that are wholly here and simple, by the kernel, which has to be there."""
        compiled = dispatch.chosen_kernel()
        assert compiled is not None
        alike = [
            (_head(self.seed, index), resolve(*draw, outs[0].dtype), names, outs) for draw, index, names, outs in groups
        ]
        compiled.fill_whole(alike, drawing_threads())

    def order(self, shard: Shard, index: int = 0) -> Tensor:
        """The stable argsort of one word an element down each column of the region."""
        device = shard.local.device
        there = device if dispatch.draws_on(device) else torch.device("cpu")
        box = torch.empty(shard.region.shape, dtype=torch.float32, device=there)
        key = derive(self.seed, shard.name, index, "order")
        # The words of the rows' own places in the whole, under a purpose of its own: they tell nothing of the values
        # that are drawn for the same name. Two words of a column are alike now and then, and a stable sort has one
        # answer for these on every device, too.
        words = torch_engine.words(
            FillTask(box, shard.shape, shard.region.start, key, Draw(DrawKind.WORDS)), 0, box.numel()
        )
        return words.view(box.shape).argsort(dim=0, stable=True).to(device)

    def linalg_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Double precision: the values must not depend on the dtype that they end in."""
        return torch.complex128 if dtype.is_complex else torch.float64

    @contextmanager
    def lending(self, name: str, index: int, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
        """Torch's generators in a state of seed, name and index; one thread, on which sums depend; torch's settings."""
        state = int.from_bytes(derive(self.seed, name, index)[:8], "little")
        with plain_thread(), plain_process(dtype), one_thread(), seeded_generators(state, device):
            # What is called now may run under `tracing.seeded`, which gives each draw of foreign code a state of its
            # own by name. It looks here first, and leaves the lent generators alone.
            token = _LENT.set(True)
            try:
                yield
            finally:
                _LENT.reset(token)

    def _task(self, job: DrawRequest) -> FillTask:
        shard, distribution, params, index = job
        local, shape, start = shard.local, shard.shape, shard.start
        _check_place(shard)
        key, dtype = derive(self.seed, shard.name, index), local.dtype
        if dtype.is_floating_point:
            return FillTask(local, shape, start, key, resolve(distribution, params, dtype))
        if not dtype.is_complex:
            raise RunError(f"{shard.name}: {dtype} cannot hold random numbers; only floating dtypes can")
        if distribution != "normal":
            raise ValueError(f"{shard.name} is complex, and {distribution} has no complex form; use a normal")
        mean, std = params
        # A complex number is two real ones along a last axis of 2, which counts as one for the places in the stream.
        # Each has a half of the variance, so that E|z - mean|² is std²; mean goes to both parts, as torch's own normal_
        # has it.
        out = torch.view_as_real(local.detach())
        draw = resolve("normal", (mean, std / math.sqrt(2)), out.dtype)
        return FillTask(out, (*shape, 2), (*start, 0), key, draw)


def derive(seed: int, name: str, index: int = 0, purpose: Literal["fill", "order"] = "fill") -> bytes:
    """The 128-bit key of a draw: BLAKE2b over stream version, purpose, seed, draw index and name.

    Numbers have a fixed width and the name comes last, so no two draws share a message. The name is taken as
    it is: sites have bare names already (``model.names``), and only they know where two would be the same.
    """
    state = _begun(seed, index, purpose).copy()  # the same for all names
    state.update(name.encode("utf-8", "surrogatepass"))
    return state.digest()


@lru_cache(maxsize=64)
def _begun(seed: int, index: int, purpose: str) -> blake2b:
    return blake2b(_head(seed, index, purpose), digest_size=16)


def _head(seed: int, index: int, purpose: str = "fill") -> bytes:
    if not 0 <= index < _LIMIT:
        raise ValueError(f"a draw index is at least 0 and below 2**64, got {index}")
    return f"{STREAM}\0{purpose}\0".encode() + struct.pack("<QQ", seed, index)


def _alike(batch: Iterable[DrawRequest]) -> list[Alike]:
    """Jobs of whole tensors in groups, in their order: neighbours nearly always have one draw."""
    groups: list[Alike] = []
    last, names, outs = None, list[str](), list[Tensor]()
    for shard, distribution, params, index in batch:
        asked = distribution, params, index, shard.local.dtype
        if asked != last:
            last, names, outs = asked, list[str](), list[Tensor]()
            groups.append(Alike((distribution, params), index, names, outs))
        names.append(shard.name)
        outs.append(shard.local)
    return groups


def _is_simple(shard: Shard) -> bool:
    return is_simple(shard.local) and shard.local.shape == shard.shape and not any(shard.start)


def _check_place(shard: Shard) -> None:
    local, shape, start = shard.local, shard.shape, shard.start
    if local.is_meta:
        raise RunError(f"{shard.name} is on the meta device: there is no memory to write to")
    if not (len(shape) == len(start) == local.dim()) or not all(
        first >= 0 and first + here <= size for first, here, size in zip(start, local.shape, shape, strict=True)
    ):
        part = f"the part of shape {list(local.shape)} at {list(start)}"
        raise RunError(f"{shard.name}: {part} does not lie within {list(shape)}")
    if not local.is_contiguous() and _shares_memory(local):
        raise RunError(f"{shard.name}: several of its elements share memory, so they cannot all have their values")
    if math.prod(shape) * (2 if local.is_complex() else 1) > _LIMIT:
        raise RunError(f"{shard.name}: shape {list(shape)} has more than 2**64 numbers")


def _shares_memory(local: Tensor) -> bool:
    """Whether two elements lie in the same place, as those of an expanded tensor do."""
    if not local.numel() or not overlaps(local):
        return False
    axes = [(stride, size) for stride, size in zip(local.stride(), local.shape, strict=True) if size > 1]
    if any(stride == 0 for stride, _ in axes):
        return True
    # Axes that reach into each other need not meet; only the places themselves can tell.
    place = torch.zeros(1, dtype=torch.int64, device="cpu")
    for stride, size in axes:
        place = (place[:, None] + stride * torch.arange(size, device="cpu")).flatten()
    return bool((place.sort().values.diff() == 0).any())


@contextmanager
def noise_of(seed: int | torch.Generator | None, devices: Iterable[torch.device]) -> Iterator[Noise]:
    """The noise that a ``seed`` stands for, while it is drawn from on the devices; of an int without users' modes.

    Raises RunError where tensors have no values.
    """
    refuse_fakes()
    if isinstance(seed, torch.Generator):
        with drawing_from(seed, devices) as noise:
            yield noise
    elif seed is None:
        yield Global()
    else:
        with plain_thread():
            yield Keyed(seed)
