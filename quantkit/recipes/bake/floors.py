"""Compare a report with the floors of a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.measurement.summary import failures
from quantkit.recipes.bake.commands import output_of
from quantkit.recipes.recipe import Recipe


def broken_floors(recipe: Recipe, report: Mapping[str, Any]) -> list[str]:
    """A sentence for each limit that a format exceeds on a text; `report` is the document of report.json."""
    broken: list[str] = []
    models = {model["path"]: model for model in report["models"] if model["role"] == "candidate"}
    for name, floor in recipe.floors.items():
        model = models.get(output_of(recipe, Path(), name).name)
        for quality in model["quality"] if model else ():
            reasons = failures(quality, max_delta=floor.delta, max_kl=floor.kl, min_top1=floor.top1)
            broken += [f"{model['name']}: on {quality['text']} {reason}" for reason in reasons] if model else []
    return broken
