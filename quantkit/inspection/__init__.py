"""Description of a model from headers: a source or an output of quantkit or another tool."""

from pathlib import Path

from quantkit.checkpoint.sources import parse_source
from quantkit.errors import CheckpointError
from quantkit.files import user_path
from quantkit.gguf.layout import MAGIC
from quantkit.inspection.checkpoints import describe_checkpoint_folder, describe_hub_checkpoint
from quantkit.inspection.description import Description
from quantkit.inspection.gguf_files import describe_folder, describe_gguf

__all__ = ["Description", "inspect_source"]


def inspect_source(source: str, *, offline: bool = False) -> Description:
    """Describe a checkpoint folder, a hub id, a GGUF file (any shard), or a folder of GGUF files.

    Only headers, config and tokenizer files are read or fetched. `offline` uses only the hub's cache.

    Raises:
        CheckpointError: the source is not found or is damaged. HubError: the hub cannot be read.
        UnsupportedError: a hub repository that is quantized in a way that quantkit does not read.
    """
    path = user_path(source)
    if source.endswith(".gguf") and not path.exists():
        raise CheckpointError(f"{source} not found; check the name")
    if path.is_file():
        if _magic(path, source) != MAGIC:
            raise CheckpointError(f"{source} is not a GGUF file; pass a GGUF, or the folder that contains config.json")
        return describe_gguf(path, source)
    where = parse_source(source)
    if not isinstance(where, Path):
        return describe_hub_checkpoint(source, offline=offline)
    try:
        names = [entry.name for entry in where.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{source} cannot be listed ({error.strerror}); check its permissions") from error
    if "config.json" not in names and any(name.endswith(".gguf") for name in names):
        return describe_folder(where, source)
    return describe_checkpoint_folder(where, source)


def _magic(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read ({error.strerror}); check the file") from error
