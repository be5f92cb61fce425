"""Transfer: hyperparameters found on a small model, on a wide and deep one: muP, depth-muP and CompleteP as plans."""

from __future__ import annotations

from torchinit.transfer.base import Base
from torchinit.transfer.groups import Group
from torchinit.transfer.multipliers import Applied, Multiplier
from torchinit.transfer.table import OPTIMIZERS, PARAMETRIZATIONS, Factors, Parametrization, TableRow
from torchinit.transfer.transfer import Transfer, TransferRow

__all__ = [
    "Applied",
    "Base",
    "Factors",
    "Group",
    "Multiplier",
    "OPTIMIZERS",
    "PARAMETRIZATIONS",
    "Parametrization",
    "TableRow",
    "Transfer",
    "TransferRow",
]
