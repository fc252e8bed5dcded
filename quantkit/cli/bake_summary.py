"""Output of `quantkit bake`: its progress, a plan, and a finished bake, as text and as documents."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.cli.output import Out
from quantkit.recipes.bake.dry_run import BakePlan
from quantkit.units import human_bytes


class BakeProgress:
    """A Progress that prints each stage and each item as a line: each command of a bake has its own progress."""

    def __init__(self, out: Out, indent: str = "  ") -> None:
        self._out, self._indent = out, indent

    def start(self, stage: str, total: int = 0) -> None:
        self._out.note(stage, style="bold")

    def advance(self, amount: int = 1, item: str = "") -> None:
        self._out.note(f"{self._indent}{item}")


def show_plans(plans: Sequence[BakePlan], out: Out) -> None:
    """Print the commands, sizes, disk and memory of a dry run."""
    for plan in plans:
        for step, words in plan.commands:
            out.say(f"{step}: quantkit {shlex.join(words)}")
        if plan.sizes:
            sizes = ", ".join(f"{name} {human_bytes(size)}" for name, size in plan.sizes.items())
            out.say(
                f"{plan.recipe.name}: {sizes}; {human_bytes(plan.disk)} of disk, about {human_bytes(plan.memory)} of"
                " memory"
            )
    out.say("dry run: nothing was written")


def planned_document(plan: BakePlan) -> dict[str, Any]:
    """The JSON document of one recipe's dry run."""
    return {
        "name": plan.recipe.name,
        "commands": [{"step": step, "words": ["quantkit", *words]} for step, words in plan.commands],
        "bytes": plan.sizes,
        "disk_bytes": plan.disk,
        "expected_peak_memory_bytes": plan.memory,
    }


def show_baked(recipe: Mapping[str, Any], out: Out) -> None:
    """Print the outputs, steps and floors of one recipe, from its document."""
    folder, rows = Path(recipe["folder"]), []
    for output in recipe["outputs"]:
        quality = output["quality"] or {}
        ratio, kl = quality.get("perplexity_ratio"), quality.get("kl")
        rows.append(
            [
                output["format"],
                human_bytes(output["bytes"]),
                f"{100 * (ratio['value'] - 1):+.1f} ± {100 * ratio['error']:.1f}%" if ratio else "",
                f"{kl['mean']:.3g} ± {kl['error']:.1g}" if kl else "",
                str(Path(output["path"]).relative_to(folder)),
            ]
        )
    headers = [("format", "left"), ("size", "right"), ("perplexity", "right"), ("KL", "right"), ("where", "left")]
    if rows:
        out.table(headers, rows, title=f"{recipe['name']} in {_shown(folder)}")
    for step in recipe["steps"]:
        peak = f", peak memory {human_bytes(step['peak_memory_bytes'])}" if step["peak_memory_bytes"] else ""
        was = "was " if step["state"] == "kept" else ""
        time = f", {was}made in {step['seconds']:.1f} s{peak}" if step["seconds"] else ""
        why = f" ({step['why']})" if step["why"] else ""
        out.say(f"{step['step']}: {step['state']}{time}{why}")
    if recipe["report"] is not None:
        out.say(f"report: {_shown(Path(recipe['report']) / 'report.md')}")
    for reason in recipe["floors_not_met"]:
        out.say(f"floor not met: {reason}")


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
