"""The fingerprint of a step's inputs: the words of its command, the files that it reads, and quantkit's version."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.recipes.bake.commands import chat_template_file
from quantkit.recipes.bake.journal import stamps
from quantkit.recipes.recipe import Recipe


def fingerprint(folder: Path, words: Sequence[str], files: Iterable[Path], more: Any = None) -> str:
    """A sha256 of the words, the size and time of change of each file, and `more` (a JSON value).

    It stays the same when `folder`, the folder of the outputs, moves. `folder` and `files` are absolute paths.
    """
    relative = [word.replace(f"{folder}{os.sep}", "") for word in words]
    listed = sorted(stamps(files, folder).items())
    text = json.dumps([__version__, relative, listed, more], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_files(recipe: Recipe) -> list[Path]:
    """The files of a source folder; none for a hub id, because the words of the command contain its revision."""
    folder = Path(recipe.source)
    if not folder.is_absolute():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def calibration_files(recipe: Recipe) -> list[Path]:
    """The calibration texts and the chat template, if they are files."""
    files = [Path(text) for text in recipe.calibration.texts if Path(text).is_absolute()]
    template = chat_template_file(recipe)
    return files if template is None else [*files, template]


def text_files(recipe: Recipe) -> list[Path]:
    """The measured texts that are files."""
    return [Path(text) for text in (recipe.measure.texts if recipe.measure else ()) if Path(text).is_absolute()]


def weight_files(output: Path) -> list[Path]:
    """The files of an output with weights, config and tokens; without the files that later steps write there."""
    if not output.is_dir():
        return [output]
    names = ("*.safetensors", "config.json", "quantize_config.json", "tokenizer*")
    return sorted({path for pattern in names for path in output.glob(pattern)}) or [output / "config.json"]
