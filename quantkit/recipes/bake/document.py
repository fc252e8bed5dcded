"""The JSON document of a finished bake."""

from pathlib import Path
from typing import Any

from quantkit.inspection.record import readable_record
from quantkit.recipes.bake.commands import output_of, report_folder
from quantkit.recipes.bake.result import Baked


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
