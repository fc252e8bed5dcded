"""Bake a recipe: its steps are quantkit commands in processes of their own, with a journal that survives a kill."""
