"""Bake several recipes, one after the other or on a Ray cluster. A recipe that fails does not stop the others."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import QuantkitError, UsageError
from quantkit.progress import SILENT, Progress
from quantkit.recipes.bake.document import baked_document
from quantkit.recipes.bake.process import failure
from quantkit.recipes.bake.ray_cluster import bake_on_ray
from quantkit.recipes.bake.result import Options
from quantkit.recipes.bake.run import bake
from quantkit.recipes.recipe import Recipe
from quantkit.units import listed


@dataclass(frozen=True)
class Bakes:
    """The result of several bakes.

    Attributes:
        documents: one JSON document for each recipe that did not fail.
        errors: (name of the recipe, its error) for each recipe that failed.
    """

    documents: tuple[dict[str, Any], ...]
    errors: tuple[tuple[str, QuantkitError], ...]

    @property
    def broken_floors(self) -> list[str]:
        """A sentence for each floor that is not met."""
        return [reason for document in self.documents for reason in document["floors_not_met"]]

    def raise_first(self) -> None:
        """Raise the first error; with several recipes it names the recipe and the number of failures."""
        if not self.errors:
            return
        name, error = self.errors[0]
        more = f" ({len(self.errors)} recipes failed)" if len(self.errors) > 1 else ""
        several = len(self.errors) + len(self.documents) > 1
        raise type(error)(f"{name}: {error}{more}" if several else str(error)) from error


def require_unique_names(recipes: Sequence[Recipe]) -> None:
    """Raise UsageError if two recipes would write the same files."""
    names = [recipe.name for recipe in recipes]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        paths = [str(recipe.opened.path) for recipe in recipes if recipe.name == repeated]
        each = "all" if paths[2:] else "both"
        raise UsageError(
            f"{listed(paths)} {each} name their model {repeated} and would write the same files; rename one of them"
        )


def bake_in_turn(
    recipes: Sequence[Recipe],
    options: Options,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> Bakes:
    """Bake one recipe after the other on this machine; `warn` receives each warning, and each error of several."""
    documents: list[dict[str, Any]] = []
    errors: list[tuple[str, QuantkitError]] = []
    for recipe in recipes:
        try:
            documents.append(baked_document(bake(recipe, options, progress, warn)))
        except QuantkitError as error:
            errors.append((recipe.name, error))
            if len(recipes) > 1:
                warn(f"{recipe.name}: {error}")
    return Bakes(tuple(documents), tuple(errors))


def bake_on_cluster(
    recipes: Sequence[Recipe],
    options: Options,
    overrides: Sequence[str],
    address: str,
    progress: Progress = SILENT,
    warn: Callable[[str], object] = lambda text: None,
) -> Bakes:
    """Bake each recipe on a worker of the Ray cluster at `address`.

    Args:
        overrides: the overrides (KEY=VALUE) of the recipes; a worker reads each recipe again.
        warn: receives each error.
    """
    words = [*_words(options), *(word for override in overrides for word in ("--set", override))]
    paths = [recipe.opened.path for recipe in recipes]
    documents: list[dict[str, Any]] = []
    errors: list[tuple[str, QuantkitError]] = []
    finished = bake_on_ray(paths, words, address, options.machine.threads, progress)
    for recipe, done in zip(recipes, finished, strict=True):
        answers = json.loads(done.ended.answer)["recipes"] if done.ended.answer else []
        documents += answers
        # a floor that is not met is an exit code too, but the document reports it
        if done.ended.code and not (answers and answers[0]["floors_not_met"]):
            error = failure("bake", done.ended.code, done.ended.sentences)
            if not isinstance(error, QuantkitError):
                raise error
            errors.append((recipe.name, error))
            warn(f"{recipe.name}: {error}")
    return Bakes(tuple(documents), tuple(errors))


def _words(options: Options) -> list[str]:
    """The options as words of a worker's command line; `bake_on_ray` adds the threads."""
    machine = options.machine
    words = ["-o", str(options.output.absolute()), *(word for step in options.only for word in ("--only", step))]
    words += ["--push"] if options.push else []
    words += ["--force"] if options.force else []
    words += ["--device", machine.device] if machine.device else []
    words += ["--max-ram", machine.max_ram] if machine.max_ram else []
    return words + (["--offline"] if machine.offline else [])
