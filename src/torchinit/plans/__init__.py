"""Plans: what will be written, worked out, carried out, reported and compared."""

from __future__ import annotations

from torchinit.plans.diff import Change, Diff
from torchinit.plans.fingerprint import Fingerprint
from torchinit.plans.plan import Plan, Skipped, Step
from torchinit.plans.planner import make_plan
from torchinit.plans.report import Record, Report
from torchinit.plans.run import local_shards, run

__all__ = [
    "Change",
    "Diff",
    "Fingerprint",
    "Plan",
    "Record",
    "Report",
    "Skipped",
    "Step",
    "local_shards",
    "make_plan",
    "run",
]
