"""Checks: whether a model and a plan are what a user meant, just before the plan is carried out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from reprlib import repr as short

import torch
from torch import nn

from torchinit._text import abbreviate, count
from torchinit.errors import PlanError
from torchinit.initializers.composed import Padded
from torchinit.initializers.elementwise import Constant, TruncNormal
from torchinit.model.sites import Site
from torchinit.model.traversal import HeldTensor
from torchinit.plans.only import loss_of_loaded
from torchinit.plans.plan import Plan, Reach, Strict
from torchinit.plans.planner import make_plan
from torchinit.recipes.files import shipped_schemes
from torchinit.recipes.forms import RecipeLike, is_like_init_cfg, is_state_dict, load_recipe

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
        differ = f"{count(len(others), 'tensor')} would get other values from an init_cfg of these words"
        hints.append(f"{differ}: {abbreviate(others)}. If one is meant, call torchinit.mmengine.initialize")
    hints += [loss] if (loss := loss_of_loaded(drafted, held)) else []
    for text in (*hints, *drafted.left_alone, *(text for load in drafted.loads for text in load.warnings)):
        _log.warning("%s", text)
    return drafted


def read_otherwise(plan: Plan, seed: object) -> list[str]:
    """The sites that would not get the same values if the entries of a plan were read as an ``init_cfg``.

    MMEngine writes the tensors that a layer calls weight and bias, buffers among them, and no others, padding rows too;
    it loses a tensor that a parametrization computes anew, and draws truncated normals without a seed in its own way.
    """
    names, is_unseeded = {"weight", "bias"}, seed is None or isinstance(seed, torch.Generator)
    written = [
        step.site.name
        for step in plan
        if names.isdisjoint(view.leaf for view in step.site.views)
        or (isinstance(step.fill, Padded) and step.fill.fill != Constant(0.0))
        or step.site.parametrized
        or (isinstance(step.fill, TruncNormal) and is_unseeded)
    ]
    rules = [*{id(step.rule): step.rule for step in plan}.values(), *(rule for rule, _ in plan.unused)]
    buffers = [site for site in plan.untouched if site.kind == "buffer" and site.leaf in names]
    return written + [site.name for site in buffers if any(rule.where.matches(site) for rule in rules)]


def with_better(plan: Plan, known: Sequence[Site]) -> Plan:
    """The plan of a model's sites; where a scheme reaches little of the model, with the schemes that reach more."""
    plans = [make_plan(known, load_recipe(name)) for name in shipped_schemes()]
    others = [reach for made in plans if not (made.problems or made.unused) for reach in made.reach]
    others.sort(key=lambda reach: (-reach.share, reach.scheme != "general"))

    def better(reach: Reach) -> tuple[Reach, ...]:
        return tuple(other for other in others if reach.is_low and other.share > reach.share)

    return replace(plan, reach=tuple(replace(reach, better=better(reach)) for reach in plan.reach))


def check_model(model: object, recipe: object) -> None:
    """Raise TypeError where something else is given in the place of a model, with what to give."""
    if isinstance(model, nn.Module):
        return
    inner = next((name for name in ("model", "module") if isinstance(getattr(model, name, None), nn.Module)), "")
    text = f"{short(model)} is not a model; give {f'its .{inner}' if inner else 'a torch.nn.Module'}"
    if isinstance(recipe, nn.Module):
        text = "the arguments are in the wrong order: the model comes first, then the recipe"
    elif isinstance(model, type):
        text = f"{model.__name__} is a class; write {model.__name__}(...)"
    elif is_state_dict(model):
        text = "this is a state dict; give the model, and load the state dict by Rule('**', Pretrained(state_dict))"
    raise TypeError(text)
