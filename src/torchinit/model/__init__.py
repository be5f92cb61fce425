"""Model: the tensors of a model by name, the parts of them that are here, and their description as sites."""

from __future__ import annotations

from torchinit.model.layouts import Layout, Slot, register_layout
from torchinit.model.shards import Box, Shard
from torchinit.model.sites import LayerClass, Site

__all__ = ["Box", "LayerClass", "Layout", "Shard", "Site", "Slot", "register_layout"]
