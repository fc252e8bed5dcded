"""Recipes: one TOML file describes how a model is converted, measured and published.

Format `version = 1`; a recipe can extend another one (key `extends`). Files: recipes/NAME.toml.
"""

from quantkit.recipes.reading import open_recipe
from quantkit.recipes.recipe import Recipe, read_recipe

__all__ = ["Recipe", "open_recipe", "read_recipe"]
