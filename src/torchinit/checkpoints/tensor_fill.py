"""Loaded: the fill that copies from a checkpoint, no more of it than the shard at hand needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from torch import Tensor, nn

from torchinit.checkpoints.adapters import Adapter, Part
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.open import InMemory, open_cached
from torchinit.core.fills import Fill
from torchinit.core.shards import Box, Shard
from torchinit.core.transfers import magnitude, transfer
from torchinit.errors import CheckpointError, masked
from torchinit.noise import Noise

if TYPE_CHECKING:
    Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | nn.Module | Checkpoint | InMemory
else:
    Source = str | InMemory  # what any of these becomes, and what plain data can hold of it


@final
@dataclass(frozen=True, slots=True)
class Loaded(Fill):
    """The values that a checkpoint has under ``keys``, through an ``adapter`` if there is one.

    ``key`` is what the site is called in the checkpoint once prefix and renames are done; an adapter wants to
    know. ``like`` are keys of the same tensor under its other names, which must hold the same. ``dtype`` rounds
    the values before they come into the site's own dtype. ``finite`` refuses NaN and infinities, ``lock`` lets no
    later rule write over them. The file is looked for again where the plan is carried out, and must have the
    same ``sha256``, if that is known.

    >>> import torch
    >>> from torchinit.core.runs import write
    >>> from torchinit.noise import Global
    >>> tensor = torch.empty(2)
    >>> write(Loaded({"b": torch.ones(2)}, ("b",)), Shard.whole("b", tensor), Global())
    >>> tensor
    tensor([1., 1.])
    """

    source: Source
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", InMemory.wrap(self.source))
        if not self.keys:
            raise ValueError("Loaded needs a key of the checkpoint")

    def __repr__(self) -> str:
        """The source without its secrets, the keys, and what is not as usual."""
        said = (
            (one.name, getattr(self, one.name)) for one in fields(self)[2:] if getattr(self, one.name) != one.default
        )
        more = "".join(f", {name}={value!r}" for name, value in said)
        return f"Loaded({masked(str(self.source))!r}, {self.keys!r}{more})"

    def __str__(self) -> str:
        through = f" through {self.adapter}" if self.adapter else ""
        return f"{' + '.join(self.keys)} of {masked(str(self.source))}{through}"

    @property
    def locked(self) -> bool:
        return self.lock

    def _checkpoint(self, *, again: bool = True) -> Checkpoint:
        keys = (*self.keys, *self.like)
        return open_cached(self.source, part=self.part, sha256=self.sha256, again=again, keys=keys)

    def prepare(self, shard: Shard) -> None:
        """Raises CheckpointError where what will be read is not finite, or does not fit into the shard's dtype."""
        checkpoint = self._checkpoint()
        for key, box in zip(self.keys, self._part(checkpoint, shard).boxes, strict=True):
            if self.finite or not self._widens(checkpoint.info(key).dtype, shard.local.dtype):
                self._check_range(key, checkpoint.read(key, box), shard.local.dtype)
        for other in self.like:
            if not _same(checkpoint.read(self.keys[0]), checkpoint.read(other)):
                raise CheckpointError(
                    f"is one tensor in the model, but {checkpoint.name} holds other values as {other!r} than as"
                    f" {self.keys[0]!r}; let the rule match one of the names, or untie the two"
                )

    def _part(self, checkpoint: Checkpoint, shard: Shard) -> Part:
        """What of each key the shard is made of, and how."""
        box = Box(shard.start, tuple(shard.local.shape))
        shapes, key = [checkpoint.info(key).shape for key in self.keys], self.key or self.keys[0]
        if self.adapter is not None:
            self.adapter.check(shapes, shard.shape, key)
            return self.adapter.part(shapes, shard.shape, box, key)
        if shapes[0] != shard.shape:
            raise CheckpointError(f"{key} has another shape by now: {list(shapes[0])}")
        return Part((box,), lambda tensors: tensors[0])

    def _widens(self, seen: torch.dtype, held: torch.dtype) -> bool:
        """Whether every number of a dtype that is a float's fits into the dtypes that it goes through."""
        return seen.is_floating_point and all(_most(dtype) >= _most(seen) for dtype in (self.dtype or seen, held))

    def _check_range(self, key: str, seen: Tensor, dtype: torch.dtype) -> None:
        if not seen.numel() or seen.dtype == torch.bool:
            return
        if not (seen.is_floating_point() or seen.is_complex()):
            _check_whole(key, seen, dtype)
            return
        largest, endless = magnitude(seen), float("inf")
        if self.finite and not largest < endless:
            raise CheckpointError(f"{key} holds NaN or infinity in {self.source}; finite = false loads it all the same")
        if min(_most(dtype), _most(self.dtype or seen.dtype)) < largest < endless:
            raise CheckpointError(f"{key} goes up to {largest:.6g}, beyond the largest number of {dtype}")

    def write(self, shard: Shard, noise: Noise) -> None:
        del noise
        checkpoint = self._checkpoint(again=False)  # what was looked through is what is written, whatever came since
        part = self._part(checkpoint, shard)
        read = (checkpoint.read(key, box) for key, box in zip(self.keys, part.boxes, strict=True))
        values = part.make([self._moved(tensor) for tensor in read])
        transfer(values if self.dtype is None else values.to(self.dtype), shard.local)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor if self.map_location == "cpu" else tensor.to(self.map_location)


def _most(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point or dtype.is_complex else float("inf")


def _check_whole(key: str, seen: Tensor, dtype: torch.dtype) -> None:
    if dtype in (seen.dtype, torch.bool) or dtype.is_floating_point:
        return
    low, high = map(int, torch.aminmax(seen))
    info = torch.iinfo(dtype)
    if low < info.min or high > info.max:
        raise CheckpointError(f"{key} holds whole numbers from {low} to {high}, which {dtype} cannot")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
