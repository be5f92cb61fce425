"""Checks: a plan just before it is carried out, with warnings of what its user may not have meant."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torchinit._text import abbreviate, count
from torchinit.errors import PlanError
from torchinit.model.traversal import HeldTensor
from torchinit.plans.only import loss_of_loaded
from torchinit.plans.plan import Plan, Strict
from torchinit.recipes.forms import RecipeLike, is_like_init_cfg, read_otherwise

_log = logging.getLogger("torchinit")


def checked_plan(
    drafted: Plan, held: Iterable[HeldTensor], recipe: RecipeLike, seed: object, *, complete: bool, strict: Strict
) -> Plan:
    """The plan, with warnings; that a scheme is for other models comes before the errors, which it may explain."""
    for reach in drafted.reach:
        if reach.is_low:
            _log.warning("%s", reach.summary())
    drafted.check(complete=complete, strict=strict)
    if parts := [f"{skip.site.name} {skip.site.lack}" for skip in drafted.skipped if skip.site.is_partitioned]:
        raise PlanError(f"{count(len(parts), 'problem')} in the plan; nothing was written", parts)
    hints = [hint for _, hint in drafted.unused]
    # A bare dict is an entry of a recipe. Where it could be an init_cfg and MMEngine would write other values, the user
    # hears of it. To choose the dialect by the shape of the data was tried: an added default then changed the values.
    if is_like_init_cfg(recipe) and (others := read_otherwise(drafted, seed)):
        hints.append(
            f"{count(len(others), 'tensor')} would get other values from an init_cfg of these words:"
            f" {abbreviate(others)}."
            " If one is meant, call torchinit.mmengine.initialize"
        )
    hints += [loss] if (loss := loss_of_loaded(drafted, held)) else []
    for text in (*hints, *drafted.left_alone, *(text for load in drafted.loads for text in load.warnings)):
        _log.warning("%s", text)
    return drafted
