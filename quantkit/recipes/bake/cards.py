"""The last steps, which need no process of their own: a model card a folder, and the push to the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.publish.card.card import CardModel, write_card
from quantkit.publish.hub import push_folder
from quantkit.recipes.bake.commands import gguf_folder, output_of, report_folder
from quantkit.recipes.bake.process import Messages
from quantkit.recipes.recipe import Recipe


def folders(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """gguf, awq, gptq -> the folder, of those that the recipe makes."""
    found = {"gguf": gguf_folder(recipe, folder)} if recipe.formats.gguf else {}
    return found | {method: output_of(recipe, folder, method) for method in recipe.formats.packed}


def card_model(recipe: Recipe, kind: str) -> CardModel:
    """What the recipe says of the model, for the card of one folder."""
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
    """README.md of every folder; their paths. Raises what `write_card` raises."""
    plots = report_folder(recipe, folder) / "plots"
    return [
        write_card(
            each,
            kind=kind,
            model=card_model(recipe, kind),
            report=report,
            plots=plots if report is not None and plots.is_dir() else None,
        )
        for kind, each in folders(recipe, folder).items()
    ]


def push(recipe: Recipe, folder: Path, messages: Messages) -> list[str]:
    """Push each folder that has a repository; the repositories."""
    pushed = []
    for kind, each in folders(recipe, folder).items():
        repo = recipe.hub.get(kind)
        if repo is not None:
            messages.note(f"{each.name} to {repo}")
            push_folder(each, repo, private=recipe.private, dry_run=False)
            pushed.append(repo)
    return pushed
