"""Opening a source, with the progress of its download."""

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.output import Out

if TYPE_CHECKING:
    from quantkit.checkpoint import Checkpoint


def is_gguf(source: str) -> bool:
    """Whether SOURCE is a GGUF file, not a checkpoint."""
    return source.endswith(".gguf") and not Path(source).is_dir()


def fetch(source: str, out: Out, *, offline: bool, headers_only: bool) -> "Checkpoint":
    """Open a checkpoint; its config.json is checked before anything else is downloaded."""
    from quantkit.families import open_model

    with out.progress() as progress:
        return open_model(source, offline=offline, headers_only=headers_only, progress=progress)
