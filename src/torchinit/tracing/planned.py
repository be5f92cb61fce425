"""Planned writes: the steps of torchinit's own runs, in the words of a trace."""

from __future__ import annotations

from collections.abc import Sequence

from torchinit.core.plans import Step
from torchinit.core.shards import Box, Shard
from torchinit.tracing.writes import Region


def said(step: Step) -> tuple[str, str]:
    """The operation and the arguments of a step: the name of its fill, and the rest of how that is spelled.

    >>> from torchinit import Leaf, Normal, Rule, Site
    >>> said(Step(Site("weight", (2,)), Normal(std=0.02), Rule(Leaf("weight"), Normal(std=0.02))))
    ('Normal', 'std=0.02')
    """
    name, text = type(step.fill).__name__, str(step.fill)
    plain = text.startswith(f"{name}(") and text.endswith(")")
    return name, text[len(name) + 1 : -1] if plain else text


def region(parts: Sequence[Shard]) -> Region:
    """Which elements of a site its shards hold."""
    if all(part.is_whole for part in parts):
        return None
    return Box(parts[0].start, tuple(parts[0].local.shape)) if len(parts) == 1 else "part"
