"""Output of `quantkit bake`: its progress, a plan, and a finished bake, as text and as documents."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.cli.output import Out, human_bytes
from quantkit.inspection.record import readable_record
from quantkit.recipes.bake.commands import output_of, report_folder
from quantkit.recipes.bake.dry_run import BakePlan
from quantkit.recipes.bake.result import Baked


class BakeProgress:
    """A Progress that prints each stage and each item as a line: the commands of a bake have progress of their own."""

    def __init__(self, out: Out, name: str = "", indent: str = "  ") -> None:
        self._out, self._name, self._indent = out, name, indent

    def start(self, stage: str, total: int = 0) -> None:
        self._out.note(f"{self._name}: {stage}", style="bold")

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


def baked_document(baked: Baked) -> dict[str, Any]:
    """The JSON document of one finished recipe."""
    return {
        "name": baked.recipe.name,
        "source": baked.recipe.source,
        "folder": str(baked.folder),
        "steps": [
            {
                "step": step.name,
                "state": step.state,
                "why": step.why or None,
                "commands": [["quantkit", *words] for words in step.commands],
                "seconds": round(step.seconds, 3),
                "peak_memory_bytes": step.peak_memory or None,
            }
            for step in baked.steps
        ],
        "outputs": _outputs(baked),
        "report": str(report_folder(baked.recipe, baked.folder)) if baked.report is not None else None,
        "floors_not_met": list(baked.broken),
        "pushed": list(baked.pushed),
    }


def _outputs(baked: Baked) -> list[dict[str, Any]]:
    """The formats that exist: bytes, sha256 of the files, quality on the first text."""
    outputs = []
    models = {model["path"]: model for model in (baked.report or {}).get("models", [])[1:]}
    for name in baked.recipe.formats.names:
        path = output_of(baked.recipe, baked.folder, name)
        if not path.exists():
            continue
        quality = models.get(path.name, {}).get("quality") or [None]
        files = _recorded(path)
        outputs.append(
            {
                "format": name,
                "path": str(path),
                "bytes": sum(file["bytes"] for file in files.values()) if files else _size(path),
                "sha256": {file: about["sha256"] for file, about in files.items()},
                "quality": quality[0],
            }
        )
    return outputs


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    """The files of an output from its quantkit.json; {} if that is missing or damaged."""
    folder, key = (path, path.name) if path.is_dir() else (path.parent, path.stem)
    entries, _ = readable_record(folder)
    files: dict[str, dict[str, Any]] = entries.get(key, {}).get("files", {})
    return files


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
