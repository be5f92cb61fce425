"""Adapters: what a checkpoint holds, made into what a model needs."""

from __future__ import annotations

from torchinit.checkpoints.adapters.adapter import ADAPTERS, Adapter
from torchinit.checkpoints.adapters.axes import Transpose
from torchinit.checkpoints.adapters.channels import InputChannels
from torchinit.core.vocabulary import SCHEMA
from torchinit.schema import Vocabulary

__all__ = ["ADAPTERS", "Adapter", "InputChannels", "Transpose"]

for _adapter in (InputChannels, Transpose):
    ADAPTERS.register(_adapter)

SCHEMA.add(Adapter, Vocabulary(ADAPTERS))
