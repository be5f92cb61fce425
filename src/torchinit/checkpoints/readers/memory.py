"""Tensors in memory: those of a dict, of a model, or of a file that ``torch.load`` has mapped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchinit.checkpoints.readers.base import Checkpoint, Info, cut
from torchinit.core.placements import is_distributed
from torchinit.core.shards import Box
from torchinit.errors import CheckpointError


class MemoryCheckpoint(Checkpoint):
    """A checkpoint of tensors that are there already.

    Raises CheckpointError for a tensor whose shape claims more elements than its memory holds. Sparse, quantized
    and other odd tensors are refused by themselves, when they are asked for.
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
            if not _oddity(tensor):
                _check_memory(name, key, tensor)

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def _info(self, key: str) -> Info:
        tensor = self._plain(key)
        return Info(tuple(tensor.shape), tensor.dtype)

    def _read(self, key: str, box: Box | None) -> Tensor:
        # What is only marked as conjugated or negated has other bits than values.
        return cut(self._plain(key).detach(), box).resolve_conj().resolve_neg()

    def _known(self) -> Mapping[str, object]:
        return self.tensors

    def _plain(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        if odd := _oddity(tensor):
            way = ": dequantize() it first" if odd.startswith(("quantized", "wrapped")) else ""
            raise CheckpointError(f"{self.name}: {key} is a {odd} tensor; only plain ones can be loaded{way}")
        return tensor


def _oddity(tensor: Tensor) -> str:
    """Of which odd kind a tensor is; nothing for a plain one."""
    if tensor.layout != torch.strided:
        return str(tensor.layout)
    kinds = {
        "meta": tensor.is_meta,
        "quantized": tensor.is_quantized,
        "nested": tensor.is_nested,
        f"wrapped ({type(tensor).__name__})": hasattr(tensor, "__tensor_flatten__") and not is_distributed(tensor),
    }
    return next((kind for kind, is_so in kinds.items() if is_so), "")


def _check_memory(name: str, key: str, tensor: Tensor) -> None:
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
