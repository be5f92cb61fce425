"""Tensors in memory: those of a dict, of a model, or of a file that ``torch.load`` has mapped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchinit.checkpoints.readers.base import Checkpoint, Info, cut
from torchinit.core.shards import Box
from torchinit.errors import CheckpointError


class MemoryCheckpoint(Checkpoint):
    """A checkpoint of tensors that are there already.

    Raises CheckpointError for a tensor whose shape claims more elements than its memory holds.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        form: str = "dict",
        part: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.format = form
        self.part = part
        self.notes = notes
        self.tensors = dict(tensors)
        for key, tensor in self.tensors.items():
            _check(name, key, tensor)

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def _info(self, key: str) -> Info:
        tensor = self.tensors[key]
        return Info(tuple(tensor.shape), tensor.dtype)

    def _read(self, key: str, box: Box | None) -> Tensor:
        # What is only marked as conjugated or negated has other bits than values.
        return cut(self.tensors[key].detach(), box).resolve_conj().resolve_neg()

    def _known(self) -> Mapping[str, object]:
        return self.tensors


def _check(name: str, key: str, tensor: Tensor) -> None:
    kinds = {"meta": tensor.is_meta, "quantized": tensor.is_quantized, "nested": tensor.is_nested}
    kinds[str(tensor.layout)] = tensor.layout != torch.strided
    if odd := [kind for kind, is_so in kinds.items() if is_so]:
        raise CheckpointError(f"{name}: {key} is a {odd[0]} tensor; only plain ones can be loaded")
    held = tensor.untyped_storage().nbytes()
    claimed = tensor.numel() * tensor.element_size()
    if claimed > held and type(tensor) in (Tensor, nn.Parameter):
        raise CheckpointError(
            f"{name}: {key} of shape {tuple(tensor.shape)} claims {claimed:,} bytes, but only {held:,} are there:"
            " its elements share memory"
        )


def of_model(model: nn.Module) -> MemoryCheckpoint:
    """The parameters and persistent buffers of a model."""
    name = f"{type(model).__name__} in memory"
    tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    return MemoryCheckpoint(name, tensors, form="model")
