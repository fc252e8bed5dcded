"""The plan of a bake, from headers alone: its commands, and the sizes, disk and memory of the conversion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.chat import BUILT_IN
from quantkit.errors import UsageError
from quantkit.progress import Progress
from quantkit.recipes.bake.commands import (
    Machine,
    convert_commands,
    measure_command,
    ollama_command,
    ollama_files,
    termux_commands,
)
from quantkit.recipes.bake.process import run_command
from quantkit.recipes.ollama import NONE, ollama_recipe
from quantkit.recipes.recipe import Recipe


@dataclass(frozen=True)
class BakePlan:
    """`commands`: (step, words of the command) in order. `sizes`: bytes by format. `disk` and `memory` in bytes."""

    recipe: Recipe
    commands: tuple[tuple[str, tuple[str, ...]], ...]
    sizes: dict[str, int]
    disk: int
    memory: int


def needs_template(recipe: Recipe, steps: Sequence[str]) -> bool:
    """Whether a step that follows the conversion refuses a GGUF without a chat template."""
    if recipe.chat_template is not None or not recipe.formats.gguf:
        return False
    publishes = "ollama" in steps and recipe.ollama_name is not None
    return publishes or ("termux" in steps and recipe.phone is not None)


def require_template(recipe: Recipe, document: Mapping[str, Any]) -> None:
    """Raises UsageError if the conversion of `document` writes GGUF files without a chat template."""
    if document["origin"].get("chat_template") == "none":
        raise UsageError(
            f"{recipe.opened.path}: {recipe.source} has no chat template and none is known for it; add chat_template"
            f" to [model]: a file, one of {', '.join(BUILT_IN)}, or {NONE} for a model that only completes text"
        )


def plan_bake(
    recipe: Recipe,
    folder: Path,
    steps: Sequence[str],
    machine: Machine,
    progress: Progress,
    warn: Callable[[str], object],
) -> BakePlan:
    """Plan `steps`; `warn` receives each warning.

    Raises:
        QuantkitError: the dry run of a conversion failed.
        UsageError: [ollama] or [phone] needs a chat template, and none is known.
    """
    commands: list[tuple[str, tuple[str, ...]]] = []
    sizes: dict[str, int] = {}
    disk = memory = 0
    if "convert" in steps:
        for command in convert_commands(recipe, recipe.formats.names, folder, machine):
            commands.append(("convert", command.line))
            document = run_command((*command.line, "--dry-run"), progress, warn).document
            if needs_template(recipe, steps):
                require_template(recipe, document)
            sizes |= {output["type"].lower(): output["bytes"] for output in document["outputs"]}
            disk += document["disk_bytes"]
            memory = max(memory, document["expected_peak_memory_bytes"])
    if "measure" in steps and recipe.measure is not None:
        commands.append(("measure", measure_command(recipe, recipe.formats.names, folder, machine).line))
    if "ollama" in steps and recipe.ollama_name is not None:
        files = ollama_files(recipe, ollama_recipe(recipe.opened), folder)
        if files:
            commands.append(("ollama", ollama_command(recipe, files, folder / f"{recipe.name}.recipe.toml").line))
    if "termux" in steps and recipe.phone is not None:
        commands += [("termux", command.line) for command, _ in termux_commands(recipe, folder)]
    return BakePlan(recipe, tuple(commands), sizes, disk, memory)
