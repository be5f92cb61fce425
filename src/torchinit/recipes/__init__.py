"""Recipes: rules as plain data, in files and in Python."""

from __future__ import annotations

from torchinit.core.vocabulary import INITIALIZERS
from torchinit.recipes.decode import decode_recipe, recipe_to_data
from torchinit.recipes.files import load_recipe, schemes

__all__ = ["INITIALIZERS", "decode_recipe", "load_recipe", "recipe_to_data", "schemes"]
