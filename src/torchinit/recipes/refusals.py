"""Refusals: says of other things in the place of a recipe or a model what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Set
from reprlib import repr as short
from typing import Final

from torch import Tensor, nn

from torchinit.initializers.elementwise import Initializer
from torchinit.plans.plan import Plan
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Selector

_NOT_A_RECIPE: Final = (
    "{short} is not a recipe; write the path of a file, the name of a scheme, rules, entries such as"
    " {{'type': 'Normal', 'std': 0.02, 'name': '**.weight'}}, or an initializer such as Normal(std=0.02)"
)
_REMEDIES: Final[dict[type, str]] = {
    type: "{0.__name__} is a class; write {0.__name__}()",
    nn.Module: "a {0.__class__.__name__} is a model, not a recipe; to load it, write Rule('**', Pretrained(model))",
    Selector: "{0!r} says where, and not what; write Rule({0!r}, Normal(std=0.02))",
    Plan: "this is a plan, not a recipe; torchinit.plans.run(plan, torchinit.plans.local_shards(model), noise)"
    " carries it out",
    Set: "{short} has no order, and later rules win; write a list",
    bool: _NOT_A_RECIPE,
    int: "{0!r} is a number, not a recipe; write Constant({0!r}), for each weight",
    float: "{0!r} is a number, not a recipe; write Constant({0!r}), for each weight",
    bytes: _NOT_A_RECIPE,
    Tensor: _NOT_A_RECIPE,
}


def check_recipe(recipe: object) -> None:
    """Raise TypeError where something else is given in the place of a recipe, with what to write."""
    remedy = next((text for kind, text in _REMEDIES.items() if isinstance(recipe, kind)), "")
    if is_state_dict(recipe):
        remedy = "this is a state dict, not a recipe; to load it, write Rule('**', Pretrained(state_dict))"
    elif not (remedy or isinstance(recipe, (Rule, Initializer, Iterable)) or callable(recipe)):
        remedy = _NOT_A_RECIPE
    if remedy:
        raise TypeError(remedy.format(recipe, short=short(recipe)))


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
    """Whether a value is a mapping of tensors."""
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())
