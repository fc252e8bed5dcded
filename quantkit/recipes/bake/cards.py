"""The steps that run in this process: the model card of each folder, and the push to the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.progress import Progress
from quantkit.publish.card.card import CardModel, write_card
from quantkit.publish.hub import push_folder
from quantkit.recipes.bake.commands import gguf_folder, output_of, report_folder
from quantkit.recipes.recipe import Recipe


def folders(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """gguf, or a format of folders -> the folder, for the formats of the recipe."""
    gguf = {"gguf": gguf_folder(recipe, folder)} if recipe.formats.gguf else {}
    return gguf | {method: output_of(recipe, folder, method) for method in recipe.formats.packed}


def card_model(recipe: Recipe, kind: str) -> CardModel:
    """The recipe's facts about the model, for the card of one folder."""
    return CardModel(
        name=recipe.name,
        base_model=recipe.base_model,
        license=recipe.license,
        languages=recipe.languages,
        context_length=recipe.context_length,
        ollama_name=recipe.ollama_name,
        hub_repo=recipe.hub.get(kind),
    )


def write_cards(recipe: Recipe, folder: Path, report: Mapping[str, Any] | None) -> list[Path]:
    """Write README.md into every folder.

    Returns:
        The paths of the cards.

    Raises:
        UsageError, PublishError, CheckpointError, OutputError: as `write_card`.
    """
    plots = report_folder(recipe, folder) / "plots"
    return [
        write_card(
            output,
            kind=kind,
            model=card_model(recipe, kind),
            report=report,
            plots=plots if report is not None and plots.is_dir() else None,
        )
        for kind, output in folders(recipe, folder).items()
    ]


def push(recipe: Recipe, folder: Path, progress: Progress) -> list[str]:
    """Push each folder that has a repository to it; returns the repositories."""
    pushed = []
    for kind, output in folders(recipe, folder).items():
        repo = recipe.hub.get(kind)
        if repo is not None:
            progress.advance(0, f"{output.name} to {repo}")
            push_folder(output, repo, private=recipe.private, dry_run=False)
            pushed.append(repo)
    return pushed
