"""What a step's outcome hangs on, as one fingerprint: the command's words, the files it reads, the version."""

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
    """Changes when a word, a file's size or time of change, or `more` (of JSON) does, but not when `folder` is moved.

    Files and `folder`, that of the outputs, are absolute.
    """
    here = [word.replace(f"{folder}{os.sep}", "") for word in words]
    listed = sorted(stamps(files, folder).items())
    text = json.dumps([__version__, here, listed, more], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_files(recipe: Recipe) -> list[Path]:
    """The files of a source that is a folder; none of one on the hub, whose name says it all."""
    folder = Path(recipe.source)
    if not folder.is_absolute():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def calibration_files(recipe: Recipe) -> list[Path]:
    """The calibration text and the chat template, where they are files."""
    text = recipe.calibration.text
    found = [Path(text)] if text is not None and Path(text).is_absolute() else []
    template = chat_template_file(recipe)
    return found if template is None else [*found, template]


def text_files(recipe: Recipe) -> list[Path]:
    """The texts to measure on that are files."""
    return [Path(text) for text in (recipe.measure.texts if recipe.measure else ()) if Path(text).is_absolute()]


def weight_files(output: Path) -> list[Path]:
    """The files of an output that its weights and tokens are in; not what other steps write beside them."""
    if not output.is_dir():
        return [output]
    names = ("*.safetensors", "config.json", "quantize_config.json", "tokenizer*")
    return sorted({path for pattern in names for path in output.glob(pattern)}) or [output / "config.json"]
