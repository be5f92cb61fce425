"""Agreement: whether all ranks are about to do the same, found before any of them does it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torchinit._text import count, some
from torchinit.distributed.collectives import gathered, ranks_of
from torchinit.errors import RunError
from torchinit.noise import Keyed
from torchinit.noise.keyed import STREAM
from torchinit.plans.plan import Plan

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_MOST = 10


def check_agreement(intent: Mapping[str, str], noise: Keyed, group: ProcessGroup | None = None) -> None:
    """Raises RunError on every rank unless all ranks of the group have one stream, one seed and one intent.

    The intent is what will happen, by the name of that to which it will. All ranks of the group have to call this.
    Digests are sent, and intents only where they differ.
    """
    ranks = ranks_of(group)
    digest = hashlib.blake2b("\n".join(f"{name}: {text}" for name, text in intent.items()).encode()).hexdigest()
    said = gathered({"stream": STREAM, "seed": str(noise.seed), "plan": digest}, group)
    problems = []
    for what in ("stream", "seed"):
        values = [each[what] for each in said]
        problems += [f"the {what} is {_told(ranks, values)}"] if len(set(values)) > 1 else []
    if len({each["plan"] for each in said}) > 1:
        found = list(_differences(ranks, gathered(dict(intent), group)))
        rest = len(found) - _MOST
        problems += [*found[:_MOST], *([f"and {count(rest, 'more site')}"] if rest > 0 else [])]
    if problems:
        raise RunError(
            "the ranks do not start alike; nothing was written. Give each its own group= if that is meant", problems
        )


def intent_of(plan: Plan) -> dict[str, str]:
    """What each step of a plan does, by the name of its site."""
    return {step.site.name: f"{step.fill!r} in {list(step.site.shape)} {step.site.dtype}" for step in plan.steps}


def _told(ranks: Sequence[int], values: Sequence[str]) -> str:
    holders: dict[str, list[str]] = defaultdict(list)
    for rank, value in zip(ranks, values, strict=True):
        holders[value].append(str(rank))
    return ", ".join(f"{value} on {'rank' if len(who) == 1 else 'ranks'} {some(who)}" for value, who in holders.items())


def _differences(ranks: Sequence[int], intents: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """That for which the ranks have something else in mind."""
    for name in dict.fromkeys(name for intent in intents for name in intent):
        values = [intent.get(name, "nothing") for intent in intents]
        if len(set(values)) > 1:
            yield f"{name}: {_told(ranks, values)}"
