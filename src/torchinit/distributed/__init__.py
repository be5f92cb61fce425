"""Distributed: models whose parts lie on several ranks."""

from __future__ import annotations

from torchinit.distributed.allocation import check_styles as check_styles
from torchinit.distributed.collectives import among as among
from torchinit.distributed.collectives import heard as heard
from torchinit.distributed.collectives import over_model as over_model
from torchinit.distributed.consensus import verify_replicas, verify_stages
from torchinit.distributed.materialize import OWN_STARTS as OWN_STARTS
from torchinit.distributed.materialize import Materialization as Materialization
from torchinit.distributed.materialize import PlannedStart as PlannedStart
from torchinit.distributed.materialize import Start as Start
from torchinit.distributed.materialize import over_ranks as over_ranks
from torchinit.distributed.materialize import own_starts as own_starts
from torchinit.distributed.own_code import needs as needs
from torchinit.distributed.own_code import own_resets as own_resets
from torchinit.distributed.plain_shards import initialize_shards
from torchinit.model.shards import Shard

__all__ = ["Shard", "initialize_shards", "verify_replicas", "verify_stages"]
