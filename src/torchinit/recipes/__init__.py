"""Recipes: rules as plain data, in files and in Python."""

from __future__ import annotations

from torchinit.recipes.files import schemes
from torchinit.recipes.forms import RecipeLike, decode_recipe, load_recipe, recipe_to_data
from torchinit.recipes.forms import to_rules as to_rules
from torchinit.rules.rule import INITIALIZERS

__all__ = ["INITIALIZERS", "RecipeLike", "decode_recipe", "load_recipe", "recipe_to_data", "schemes"]
