"""What a bake would do: its commands, and of the conversion the sizes, disk and memory, from headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.recipes.bake.commands import (
    Machine,
    convert_commands,
    measure_command,
    ollama_command,
    ollama_files,
    termux_commands,
)
from quantkit.recipes.bake.process import Told, run_command
from quantkit.recipes.ollama import ollama_recipe
from quantkit.recipes.recipe import Recipe


@dataclass(frozen=True)
class Outlook:
    """`commands`: (step, words) in order. `sizes`: bytes by format. `disk` and `memory` in bytes."""

    recipe: Recipe
    commands: tuple[tuple[str, tuple[str, ...]], ...]
    sizes: dict[str, int]
    disk: int
    memory: int


def look_ahead(recipe: Recipe, folder: Path, asked: Sequence[str], machine: Machine, told: Told) -> Outlook:
    """The plan of the steps `asked`; raises what a dry run of the conversion raises."""
    commands: list[tuple[str, tuple[str, ...]]] = []
    sizes: dict[str, int] = {}
    disk = memory = 0
    if "convert" in asked:
        for command in convert_commands(recipe, recipe.formats.names, folder, machine):
            commands.append(("convert", command.line))
            document = run_command((*command.line, "--dry-run"), told).document
            sizes |= {each["type"].lower(): each["bytes"] for each in document["outputs"]}
            disk += document["disk_bytes"]
            memory = max(memory, document["expected_peak_memory_bytes"])
    if "measure" in asked and recipe.measure is not None:
        commands.append(("measure", measure_command(recipe, recipe.formats.names, folder, machine).line))
    if "ollama" in asked and recipe.ollama_name is not None:
        files = ollama_files(recipe, ollama_recipe(recipe.opened), folder)
        if files:
            commands.append(("ollama", ollama_command(recipe, files, folder / f"{recipe.name}.recipe.toml").line))
    if "termux" in asked and recipe.phone is not None:
        commands += [("termux", command.line) for command, _ in termux_commands(recipe, folder)]
    return Outlook(recipe, tuple(commands), sizes, disk, memory)
