"""Recipes: one TOML file says everything about how a model is baked, checked and published.

Format `version = 1`; a recipe may stand on another one by `extends`. Files: recipes/NAME.toml.
"""

from quantkit.recipes.reading import open_recipe
from quantkit.recipes.recipe import Recipe, read_recipe

__all__ = ["Recipe", "open_recipe", "read_recipe"]
