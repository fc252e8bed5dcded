"""Opening a checkpoint as a model: config.json and tensors are checked first, then its output head is decided."""

from quantkit.checkpoint import Access, Checkpoint, Checks, open_checkpoint
from quantkit.errors import UnsupportedError
from quantkit.families.base.mapping import map_tensors
from quantkit.families.base.output_head import resolve_output_head
from quantkit.families.base.pooling import resolve_pooling
from quantkit.families.base.registry import check_config, complete_architecture, find_architecture, find_family
from quantkit.families.base.reranker import resolve_reranker
from quantkit.progress import SILENT, Progress


def open_model(
    source: str, access: Access = Access(), *, any_architecture: bool = False, progress: Progress = SILENT
) -> Checkpoint:
    """A checkpoint (folder or hub id `ORG/NAME[@REVISION]`) of a known family; see `open_checkpoint`.

    An unsupported model is refused before its weights are downloaded. `any_architecture` opens it all the same, for a
    description.

    Raises:
        CheckpointError, HubError, UnsupportedError: the source is not found, damaged, or not supported.
    """
    checks = Checks(complete_architecture) if any_architecture else Checks(check_config, _check_tensors)
    checkpoint = open_checkpoint(source, access, progress=progress, checks=checks)
    try:
        if not any_architecture:
            checkpoint.require_shapes()
        _turn_linears(checkpoint)
        resolve_output_head(checkpoint)
        _resolve_pooling(checkpoint)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose headers lack a tensor, or have one that the family does not know.

    Raises:
        CheckpointError, UnsupportedError: see `map_tensors`.
    """
    if checkpoint.quantized is not None and not checkpoint.quantized.has_shapes:
        return
    _turn_linears(checkpoint)
    resolve_output_head(checkpoint)
    _resolve_pooling(checkpoint)
    family = find_family(checkpoint.config)
    map_tensors(family, family.sizes(checkpoint.config, checkpoint.tensors), checkpoint.tensors)


def _resolve_pooling(checkpoint: Checkpoint) -> None:
    try:
        family = find_family(checkpoint.config)
    except UnsupportedError:
        resolve_pooling(checkpoint)
        return
    resolve_pooling(checkpoint, dense=family.dense)
    resolve_reranker(checkpoint, family.rerankers)


def _turn_linears(checkpoint: Checkpoint) -> None:
    """Quantizers store all linears as (outputs, inputs); GPT-2's are (inputs, outputs) in a checkpoint."""
    if checkpoint.quantized is None:
        return
    try:
        form = find_architecture(checkpoint.config).attention.form
    except UnsupportedError:
        return
    if form.turned:
        checkpoint.turn_quantized()
