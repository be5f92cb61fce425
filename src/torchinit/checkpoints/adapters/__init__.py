"""Adapters: the tensors of a checkpoint made into those that a model needs."""

from __future__ import annotations

from torchinit.checkpoints.adapters.base import ADAPTERS, Adapter, Chain, ReadPlan
from torchinit.checkpoints.adapters.factors import BatchNormAffine, Dequantize, FoldBatchNorm, WeightNorm
from torchinit.checkpoints.adapters.fusion import Fuse, PoolHeads, Rearrange, RopeOrder, Split, Stack, Unstack
from torchinit.checkpoints.adapters.images import (
    Inflate,
    InputChannels,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
)
from torchinit.checkpoints.adapters.low_rank import LoRA
from torchinit.checkpoints.adapters.mixtures import MergeExperts, Upcycle, UpcycleRouter
from torchinit.checkpoints.adapters.rows_and_axes import Drop, Labels, ResizeVocabulary, Rows, Transpose
from torchinit.checkpoints.adapters.width import HyperClone, Net2Wider, Repeat, WeightSelection
from torchinit.rules.rule import SCHEMA
from torchinit.serialization.registry import TaggedUnion

__all__ = [
    "ADAPTERS", "Adapter", "BatchNormAffine", "Chain", "Dequantize", "Drop", "FoldBatchNorm", "Fuse", "HyperClone",
    "Inflate", "InputChannels", "Labels", "LoRA", "MergeExperts", "Net2Wider", "PoolHeads", "ReadPlan",
    "Rearrange", "Repeat", "ResizePatches", "ResizePositions", "ResizeRelativeBias", "ResizeVocabulary", "RopeOrder",
    "Rows", "Split", "Stack", "Transpose", "Unstack", "Upcycle", "UpcycleRouter", "WeightNorm", "WeightSelection",
]  # fmt: skip

SCHEMA.add(Adapter, TaggedUnion(ADAPTERS))
