"""The fill of tensors from a checkpoint: it copies no more of them than the shard at hand needs."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from torchinit._frozen import changed, quickly_made
from torchinit._text import masked
from torchinit.checkpoints.adapters import Adapter, ReadPlan
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.open import InMemory, open_cached
from torchinit.errors import CheckpointError
from torchinit.initializers.base import Fill, why_not
from torchinit.initializers.statistics import magnitude, magnitudes, transfer
from torchinit.model.shards import Box, Shard, replaced
from torchinit.noise import Noise
from torchinit.noise.engines.tasks import is_plain

if TYPE_CHECKING:
    CheckpointSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | nn.Module | Checkpoint | InMemory
else:
    CheckpointSource = str | InMemory  # what any of these becomes, and what plain data can hold of it

_SMALL: Final = 1 << 13
"""Of no more elements than this a tensor takes longer to ask for than to read."""
_PIECE: Final = 1 << 22
"""So many bytes of a shard are made at a time, where an adapter goes by slices: what it computes lies beside them."""
_MANY: Final = 1 << 9
"""So many small tensors are read after one look at their file: few enough that nothing happens to it meanwhile."""


@final
@quickly_made
@dataclass(frozen=True, slots=True)
class Loaded(Fill):
    """The values that a checkpoint has under ``keys``, through an ``adapter`` if there is one.

    ``key`` is the site's name once prefix and renames are done, for the adapter. ``like`` are keys of the same tensor
    under its other names, which must hold the same. ``dtype`` rounds the values before they come into the site's own
    dtype. ``finite`` refuses NaN and infinities, ``lock`` lets no later rule write over them. The file is looked for
    again where the plan is carried out, and must have the same ``sha256``, if that is known.

    >>> import torch
    >>> from torchinit.plans.run import write
    >>> from torchinit.noise import Global
    >>> tensor = torch.empty(2)
    >>> write(Loaded({"b": torch.ones(2)}, ("b",)), Shard.whole("b", tensor), Global())
    >>> tensor
    tensor([1., 1.])
    """

    source: CheckpointSource
    keys: tuple[str, ...]
    key: str = ""
    adapter: Adapter | None = None
    like: tuple[str, ...] = ()
    part: str | None = None
    dtype: torch.dtype | None = None
    map_location: str = "cpu"
    finite: bool = True
    lock: bool = True
    sha256: str | None = None
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", InMemory.wrap(self.source))
        if not self.keys:
            raise ValueError("Loaded needs a key of the checkpoint")

    def __repr__(self) -> str:
        values = ((field, getattr(self, field.name)) for field in fields(self)[2:])
        more = "".join(f", {field.name}={value!r}" for field, value in values if value != field.default)
        return f"Loaded({masked(str(self.source))!r}, {self.keys!r}{more})"

    def __str__(self) -> str:
        through = f" through {self.adapter}" if self.adapter else ""
        return f"{' + '.join(self.keys)} of {masked(str(self.source))}{through}"

    @property
    def locked(self) -> bool:
        return self.lock

    @property
    def content(self) -> str:
        """Shapes, dtypes and values of the tensors: all of a small one, a few stretches of a large one."""
        checkpoint, digest = self._checkpoint(), blake2b(digest_size=8)
        for key in (*self.keys, *self.like):
            info = checkpoint.info(key)
            digest.update(f"{key} {info.dtype} {info.shape}".encode())
            for box in _samples(info.shape):
                read = checkpoint.read(key, box).contiguous().view(-1)
                digest.update(read.view(torch.uint8).numpy().tobytes() if read.numel() else b"")
        return f" (values {digest.hexdigest()})"

    def _checkpoint(self, *, again: bool = True) -> Checkpoint:
        keys = (*self.keys, *self.like)
        return open_cached(self.source, part=self.part, sha256=self.sha256, again=again, keys=keys)

    def prepare(self, shard: Shard) -> None:
        """Raise CheckpointError for values that are not finite, or do not fit into the shard's dtype."""
        self._look_through(self._checkpoint(), shard)

    @classmethod
    def prepare_all(cls, pairs: Sequence[tuple[Loaded, Shard]]) -> list[str]:
        of_file: dict[object, list[int]] = defaultdict(list)
        for at, (fill, _) in enumerate(pairs):
            of_file[fill.source, fill.part, fill.sha256].append(at)
        reasons: dict[int, str] = {}
        for numbers in of_file.values():
            found = _prepare_file([pairs[at] for at in numbers])
            reasons |= zip(numbers, found, strict=True)
        return [reasons[at] for at in range(len(pairs))]

    @classmethod
    def write_all(cls, pairs: Sequence[tuple[Loaded, Shard]], noise: Noise) -> None:
        small: dict[Checkpoint, list[tuple[str, Tensor]]] = defaultdict(list)
        for fill, shard in pairs:
            checkpoint = fill._checkpoint(again=False)
            if fill._is_small_copy(checkpoint, shard):
                small[checkpoint].append((fill.keys[0], shard.local))
            else:
                fill.write(shard, noise)
        for checkpoint, copies in small.items():
            torch._foreach_copy_([out for _, out in copies], checkpoint.read_all([key for key, _ in copies]))

    def _is_small_copy(self, checkpoint: Checkpoint, shard: Shard) -> bool:
        """Whether the shard is a small tensor of the file as it is, but for the dtype: such are done many at a time."""
        out, shape = shard.local, shard.shape
        if self.adapter or self.dtype or out.numel() > _SMALL or out.shape != shape or not is_plain(out):
            return False
        info = checkpoint.info(self.keys[0])
        return info.dtype.is_floating_point and info.shape == shape and self.map_location == "cpu"

    def _look_through(self, checkpoint: Checkpoint, shard: Shard) -> None:
        # A pass over the values before the one that copies them, so that NaN in the last tensor of the last rank is
        # found before anything is written. The copy pays for it: it goes past the caches.
        target = shard.local.dtype
        plan = self._read_plan(checkpoint, shard)
        if self.adapter and isinstance(self.source, InMemory) and shard.local.numel():
            memory = [checkpoint.read(key).untyped_storage().data_ptr() for key in self.keys]
            if shard.local.untyped_storage().data_ptr() in memory:
                what = f"is made by {self.adapter} of the model itself, which is written at the same time"
                raise CheckpointError(f"{what}; give its file, or copies of its tensors")
        for key, box in zip(self.keys, plan.boxes, strict=True):
            if self.finite or not self._widens(checkpoint.info(key).dtype, target):
                self._check_range(key, checkpoint.read(key, box), target)
        if self.adapter and _most(target) < _most(torch.float32):  # what is computed may be larger than what is read
            for piece in self._pieces(shard):
                self._check_range(self.key or self.keys[0], self._values(checkpoint, piece, "cpu"), target)
        for other in self.like:
            first, second = checkpoint.read(self.keys[0]), checkpoint.read(other)
            if first.shape != second.shape or not torch.equal(first, second):
                raise CheckpointError(
                    f"is one tensor in the model, but {checkpoint.name} holds other values as {other!r} than as"
                    f" {self.keys[0]!r}; let the rule match one of the names, or untie the two"
                )

    def _widens(self, dtype: torch.dtype, target: torch.dtype) -> bool:
        """Whether all numbers of a dtype fit into those that they become."""
        return dtype.is_floating_point and all(_most(to) >= _most(dtype) for to in (self.dtype or dtype, target))

    def write(self, shard: Shard, noise: Noise) -> None:
        del noise
        checkpoint = self._checkpoint(again=False)
        for piece in self._pieces(shard):
            values = self._values(checkpoint, piece, self.map_location)
            transfer(values if self.dtype is None else values.to(self.dtype), piece.local)

    def _values(self, checkpoint: Checkpoint, shard: Shard, device: str) -> Tensor:
        """The values of a shard, computed on a device."""
        plan = self._read_plan(checkpoint, shard)
        read = (checkpoint.read(key, box) for key, box in zip(self.keys, plan.boxes, strict=True))
        return plan.combine([tensor if device == "cpu" else tensor.to(device) for tensor in read])

    def _pieces(self, shard: Shard) -> Iterator[Shard]:
        """The shard in pieces that are made one after the other; as a whole where its adapter needs all at once."""
        local = shard.local
        if self.adapter is None or not self.adapter.goes_by_slices or local.nbytes <= _PIECE:
            yield shard
            return
        axis, size = next((axis, size) for axis, size in enumerate(local.shape) if size > 1)
        rows = max(1, _PIECE * size // local.nbytes)
        for low in range(0, size, rows):
            start = replaced(shard.start, axis, shard.start[axis] + low)
            piece = changed(shard, local=local.narrow(axis, low, min(rows, size - low)), start=start)
            yield from self._pieces(piece) if rows == 1 else (piece,)  # one expert of a stack is large in itself

    def _read_plan(self, checkpoint: Checkpoint, shard: Shard) -> ReadPlan:
        box = Box(shard.start, tuple(shard.local.shape))
        shapes, key = [checkpoint.info(key).shape for key in self.keys], self.key or self.keys[0]
        if self.adapter is not None:
            self.adapter.check(shapes, shard.shape, key)
            return self.adapter.read_plan(shapes, shard.shape, box, key)
        if shapes[0] != shard.shape:
            raise CheckpointError(f"{key} has another shape by now: {list(shapes[0])}")
        return ReadPlan((box,), lambda tensors: tensors[0])

    def _check_range(self, key: str, values: Tensor, target: torch.dtype) -> None:
        if values.is_floating_point() or values.is_complex():
            self._check_largest(key, magnitude(values), values.dtype, target)
        elif values.numel() and target not in (values.dtype, torch.bool) and not target.is_floating_point:
            low, high = map(int, torch.aminmax(values))
            if low < torch.iinfo(target).min or high > torch.iinfo(target).max:
                raise CheckpointError(f"{key} holds whole numbers from {low} to {high}, which {target} cannot")

    def _check_largest(self, key: str, largest: float, dtype: torch.dtype, target: torch.dtype) -> None:
        if self.finite and not largest < math.inf:
            remedy = "finite = false loads it all the same"
            raise CheckpointError(f"{key} holds NaN or infinity in {self.source}; {remedy}")
        if min(_most(target), _most(self.dtype or dtype)) < largest < math.inf:
            raise CheckpointError(f"{key} goes up to {largest:.6g}, beyond the largest number of {target}")


def _prepare_file(pairs: Sequence[tuple[Loaded, Shard]]) -> list[str]:
    """The reasons why fills from one file cannot be written; it is opened once, and small tensors are read together."""
    first, keys = pairs[0][0], [key for fill, _ in pairs for key in (*fill.keys, *fill.like)]
    try:
        checkpoint = open_cached(first.source, part=first.part, sha256=first.sha256, keys=keys)
    except CheckpointError as error:
        return [str(error)] * len(pairs)
    reasons = [""] * len(pairs)
    small = list[int]()
    for at, (fill, shard) in reversed([*enumerate(pairs)]):
        try:
            if not fill.like and fill._is_small_copy(checkpoint, shard):
                small.append(at)
            else:
                fill._look_through(checkpoint, shard)
        except (ValueError, CheckpointError) as error:
            reasons[at] = str(error)
    for begin in range(0, len(small), _MANY):
        some = small[begin : begin + _MANY]
        try:
            read = checkpoint.read_all([pairs[at][0].keys[0] for at in some])
        except CheckpointError:  # which of them it is shows one by one
            for at in some:
                reasons[at] = why_not(pairs[at][0]._look_through, checkpoint, pairs[at][1])
            continue
        for at, values, largest in zip(some, read, magnitudes(read), strict=True):
            fill, shard = pairs[at]
            reasons[at] = why_not(fill._check_largest, fill.keys[0], largest, values.dtype, shard.local.dtype)
    return reasons


def _samples(shape: tuple[int, ...]) -> Iterator[Box]:
    """The whole of a tensor of up to 4k elements; of a larger one eight boxes of at most 512, evenly along its rows."""
    if math.prod(shape) <= 1 << 12:
        yield Box.whole(shape)
        return
    sizes = (1, *shape[1:]) if len(shape) > 1 else (1 << 9,)
    while math.prod(sizes) > 1 << 9:
        sizes = replaced(sizes, sizes.index(max(sizes)), max(sizes) // 2)
    for low in sorted({at * (shape[0] - sizes[0]) // 7 for at in range(8)}):
        yield Box((low, *(0 for _ in shape[1:])), sizes)


def _most(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point or dtype.is_complex else float("inf")
