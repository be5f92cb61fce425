"""Adapters: what a checkpoint holds, made into what a model needs."""

from __future__ import annotations

from torchinit.checkpoints.adapters.adapter import ADAPTERS, Adapter, Part
from torchinit.checkpoints.adapters.attention import PoolHeads, RopeOrder
from torchinit.checkpoints.adapters.axes import Transpose
from torchinit.checkpoints.adapters.chains import Chain
from torchinit.checkpoints.adapters.channels import InputChannels
from torchinit.checkpoints.adapters.experts import Stack, Unstack
from torchinit.checkpoints.adapters.fusion import Fuse, Split
from torchinit.checkpoints.adapters.heads import Drop, Labels, Rows
from torchinit.checkpoints.adapters.norms import BatchNormAffine, FoldBatchNorm
from torchinit.checkpoints.adapters.patches import Inflate, ResizePatches
from torchinit.checkpoints.adapters.positions import ResizePositions, ResizeRelativeBias
from torchinit.checkpoints.adapters.tokens import ResizeVocabulary
from torchinit.checkpoints.adapters.weightnorm import WeightNorm
from torchinit.core.vocabulary import SCHEMA
from torchinit.schema import Vocabulary

__all__ = [
    "ADAPTERS",
    "Adapter",
    "BatchNormAffine",
    "Chain",
    "Drop",
    "FoldBatchNorm",
    "Fuse",
    "Inflate",
    "InputChannels",
    "Labels",
    "Part",
    "PoolHeads",
    "ResizePatches",
    "ResizePositions",
    "ResizeRelativeBias",
    "ResizeVocabulary",
    "RopeOrder",
    "Rows",
    "Split",
    "Stack",
    "Transpose",
    "Unstack",
    "WeightNorm",
]

for _adapter in (
    BatchNormAffine,
    Chain,
    Drop,
    FoldBatchNorm,
    Fuse,
    Inflate,
    InputChannels,
    Labels,
    PoolHeads,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
    ResizeVocabulary,
    RopeOrder,
    Rows,
    Split,
    Stack,
    Transpose,
    Unstack,
    WeightNorm,
):
    ADAPTERS.register(_adapter)

SCHEMA.add(Adapter, Vocabulary(ADAPTERS))
