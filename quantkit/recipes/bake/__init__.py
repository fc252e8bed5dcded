"""Bake a recipe: each step is a quantkit command in a separate process; a journal survives a kill."""
