"""Opening a source, with the progress of its download."""

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.output import Out
from quantkit.errors import UsageError
from quantkit.files import user_path

if TYPE_CHECKING:
    from quantkit.checkpoint import Access, Checkpoint


def is_gguf(source: str) -> bool:
    """Whether SOURCE is a GGUF file, not a checkpoint."""
    return source.endswith(".gguf") and not Path(source).is_dir()


def check_stream(source: str, *, stream: bool, offline: bool) -> None:
    """Raise UsageError if --stream is given for a source on the disk, or with --offline."""
    if stream and user_path(source).exists():
        raise UsageError(f"--stream reads from a hub, but {source} is on the disk; leave out --stream")
    if stream and offline:
        raise UsageError("--stream needs the network; leave out --stream or --offline")


def fetch(source: str, out: Out, access: "Access") -> "Checkpoint":
    """Open a checkpoint; its config.json is checked before anything else is downloaded."""
    from quantkit.families import open_model

    with out.progress() as progress:
        return open_model(source, access, progress=progress)
