"""Transfer: hyperparameters found on a small model, on a wide and deep one: muP, depth-muP and CompleteP as plans."""

from __future__ import annotations

from torchinit.transfer.base import Base
from torchinit.transfer.multipliers import Applied, Multiplier
from torchinit.transfer.optimizers import TRANSFER_CHECKS, Group, Megatron
from torchinit.transfer.rows import TransferRow
from torchinit.transfer.table import OPTIMIZERS, PARAMETRIZATIONS, Factors, Parametrization, Settings, TableRow
from torchinit.transfer.transfer import Transfer

__all__ = [
    "Applied",
    "Base",
    "Factors",
    "Group",
    "Megatron",
    "Multiplier",
    "OPTIMIZERS",
    "PARAMETRIZATIONS",
    "Parametrization",
    "Settings",
    "TRANSFER_CHECKS",
    "TableRow",
    "Transfer",
    "TransferRow",
]
