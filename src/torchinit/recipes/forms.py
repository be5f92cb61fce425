"""Forms: what stands for a recipe, in every call that takes one, and what does not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from reprlib import repr as short
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.core.code import Function
from torchinit.core.composites import Padded
from torchinit.core.fills import Constant, Initializer, TruncNormal
from torchinit.core.plans import Plan, Recipe, Rule
from torchinit.core.selectors import Selector
from torchinit.errors import ConfigError
from torchinit.recipes.decode import decode_recipe
from torchinit.recipes.entries import ENTRY_WORDS
from torchinit.recipes.files import load_recipe

RecipeLike: TypeAlias = str | os.PathLike[str] | Rule | Initializer | Function | Mapping[Any, Any] | Iterable[Any]
"""What stands for a recipe, as :func:`to_rules` reads it."""


def to_rules(recipe: RecipeLike) -> Recipe:
    """The rules that a recipe stands for, whatever its form.

    A path or the name of a scheme; a rule; an entry (``{"type": ...}``); ``{"rules": [...]}``; ``{glob: initializer}``,
    whose values may be functions of a tensor or entries without a name; a list of any of these, or an iterator; an
    initializer alone, which is for each weight that it fits: not for biases, norms and elementwise scales. Any mapping
    or sequence will do, OmegaConf's and MMEngine's among them. Raises ConfigError or TypeError for what is none.

    >>> from torchinit import Kaiming, Zeros
    >>> for rule in to_rules([Kaiming(), {"head.weight": nn.init.zeros_}]):
    ...     print(rule)
    Kinds('weight') -> Kaiming()
    Name('head.weight') -> Zeros()
    """
    _check(recipe)
    if isinstance(recipe, (str, os.PathLike)):
        rules = load_recipe(recipe)
    else:
        data = list(recipe) if isinstance(recipe, Iterable) and not isinstance(recipe, (Mapping, Sequence)) else recipe
        if isinstance(data, (list, tuple)):
            data = [_loaded(item) if isinstance(item, (str, os.PathLike)) else item for item in data]
        hint = " (an init_cfg is for torchinit.mmengine.initialize)" if is_like_init_cfg(data) else ""
        rules = decode_recipe(data, f"recipe{hint}")
    if not rules:
        raise ConfigError("the recipe is empty, so nothing would be written: give it a rule")
    return rules


def _loaded(source: str | os.PathLike[str]) -> list[Rule]:
    return [replace(rule, origin=f"{source} {rule.origin}") for rule in load_recipe(source)]


def _check(recipe: object) -> None:
    """Raise TypeError where something else is given in the place of a recipe, with what to write."""
    if isinstance(recipe, type):
        text = f"{recipe.__name__} is a class; write {recipe.__name__}()"
    elif isinstance(recipe, nn.Module):
        text = f"a {type(recipe).__name__} is a model, not a recipe; to load it, write Rule('**', Pretrained(model))"
    elif is_state_dict(recipe):
        text = "this is a state dict, not a recipe; to load it, write Rule('**', Pretrained(state_dict))"
    elif isinstance(recipe, Selector):
        text = f"{recipe!r} says where, and not what; write Rule({recipe!r}, Normal(std=0.02))"
    elif isinstance(recipe, Plan):
        text = "this is a plan, not a recipe; torchinit.run(plan, torchinit.local_shards(model), noise) carries it out"
    elif isinstance(recipe, Set):
        text = f"{short(recipe)} has no order, and later rules win; write a list"
    elif isinstance(recipe, (int, float)) and not isinstance(recipe, bool):
        text = f"{recipe!r} is a number, not a recipe; write Constant({recipe!r}), for each weight"
    elif isinstance(recipe, (bytes, Tensor)) or not (
        isinstance(recipe, (Rule, Initializer, Iterable)) or callable(recipe)
    ):
        text = (
            f"{short(recipe)} is not a recipe; write the path of a file, the name of a scheme, rules, entries such as"
            " {'type': 'Normal', 'std': 0.02, 'name': '**.weight'}, or an initializer such as Normal(std=0.02)"
        )
    else:
        return
    raise TypeError(text)


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


def is_state_dict(value: object) -> bool:
    """Whether a value is a mapping of tensors.

    >>> is_state_dict(nn.Linear(2, 2).state_dict()), is_state_dict({})
    (True, False)
    """
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def is_like_init_cfg(recipe: object) -> bool:
    """Whether the data could be an ``init_cfg``: each entry names a type, and uses no word that only recipes have.

    >>> is_like_init_cfg([{"type": "Xavier", "layer": "LSTM"}]), is_like_init_cfg({"type": "Xavier", "name": "rnn.*"})
    (True, False)
    """
    entries = [recipe] if isinstance(recipe, dict) else recipe if isinstance(recipe, (list, tuple)) else []
    beyond = ENTRY_WORDS - {"layer"}
    fits = [isinstance(one, dict) and "type" in one and not beyond & one.keys() for one in entries]
    return bool(fits) and all(fits)


def read_otherwise(plan: Plan, seed: object) -> list[str]:
    """The sites that would not get the same values if the entries of a plan were read as an ``init_cfg``.

    MMEngine writes what a layer calls weight and bias, buffers among them and nothing else, padding rows too; it loses
    what a parametrization computes anew, and draws truncated normals from torch's generator in a way of its own.
    """
    names, unseeded = {"weight", "bias"}, seed is None or isinstance(seed, torch.Generator)
    found = [
        step.site.name
        for step in plan
        if names.isdisjoint(view.leaf for view in step.site.views)
        or (isinstance(step.fill, Padded) and step.fill.fill != Constant(0.0))
        or step.site.parametrized
        or (isinstance(step.fill, TruncNormal) and unseeded)
    ]
    rules = [*{id(step.rule): step.rule for step in plan}.values(), *(rule for rule, _ in plan.unused)]
    buffers = [site for site in plan.untouched if site.kind == "buffer" and site.leaf in names]
    return found + [site.name for site in buffers if any(rule.where.matches(site) for rule in rules)]
