"""Opening a checkpoint as a model: its config.json is checked first, and its output head is decided."""

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.families.base.output_head import resolve_output_head
from quantkit.families.base.pooling import resolve_pooling
from quantkit.families.base.registry import check_config, complete_architecture
from quantkit.progress import SILENT, Progress


def open_model(
    source: str,
    *,
    offline: bool = False,
    headers_only: bool = False,
    any_architecture: bool = False,
    progress: Progress = SILENT,
) -> Checkpoint:
    """A checkpoint (folder or hub id `ORG/NAME[@REVISION]`) of a known family; see `open_checkpoint`.

    An unsupported model is refused before its weights are downloaded. `any_architecture` opens it all the same, for a
    description.

    Raises:
        CheckpointError, HubError, UnsupportedError: the source is not found, damaged, or not supported.
    """
    check = complete_architecture if any_architecture else check_config
    checkpoint = open_checkpoint(source, offline=offline, headers_only=headers_only, progress=progress, check=check)
    try:
        resolve_output_head(checkpoint)
        resolve_pooling(checkpoint)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint
