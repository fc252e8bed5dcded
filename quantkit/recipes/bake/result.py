"""The options and the result of a bake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.recipes.bake.commands import Machine
from quantkit.recipes.recipe import Recipe

STEPS = ("convert", "measure", "ollama", "cards", "termux", "push")


@dataclass(frozen=True)
class Options:
    """Options of a bake.

    Attributes:
        output: the folder of the outputs.
        only: the steps to run; empty for all steps except push.
        push: run the step push.
        force: repeat every step and overwrite outputs.
        machine: options that do not change the outputs.
    """

    output: Path
    only: tuple[str, ...] = ()
    push: bool = False
    force: bool = False
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Step:
    """The result of a step.

    Attributes:
        state: "done" by this bake, "kept" from an earlier one, or "left out".
        why: the reason, or what the step wrote.
        commands: the commands that ran.
        seconds, peak_memory: of the latest run; memory in bytes.
    """

    name: str
    state: str
    why: str = ""
    commands: tuple[tuple[str, ...], ...] = ()
    seconds: float = 0.0
    peak_memory: int = 0


@dataclass(frozen=True)
class Baked:
    """A finished bake.

    Attributes:
        report: the document of report.json; None without a measurement.
        broken: a sentence for each floor that is not met.
        pushed: the repositories.
    """

    recipe: Recipe
    folder: Path
    steps: tuple[Step, ...]
    report: dict[str, Any] | None
    broken: tuple[str, ...] = ()
    pushed: tuple[str, ...] = ()
