"""Baking: a recipe as steps, each a quantkit command in a process of its own, with a journal that survives a kill."""
