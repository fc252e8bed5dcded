"""`--mmproj` of the commands that convert: the projectors beside the text model."""

from collections.abc import Sequence
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.cli.gguf_options import GgufOptions
from quantkit.conversion.projector import Projector, plan_bridged
from quantkit.errors import UsageError
from quantkit.families.base.multimodal import has_tower
from quantkit.gguf.file_types import FileType
from quantkit.outputs.model import Model
from quantkit.outputs.plan import ConversionPlan
from quantkit.outputs.projector import find_projector, projector_types
from quantkit.progress import Progress


def own_projector_types(source: Checkpoint | Model, options: GgufOptions) -> tuple[FileType, ...]:
    """The types of --mmproj if quantkit has rules for the source's projector; otherwise none.

    Raises UsageError for another type, or for a source that has no towers.
    """
    types = projector_types(options.mmproj or ())
    if types and source.folder is None:
        raise UsageError(f"--mmproj needs a checkpoint; {source.name} is a GGUF, which holds the text model only")
    if not types or not isinstance(source, Checkpoint):
        return ()
    if not has_tower(source.tensors):
        raise UsageError(f"{source.name} has no vision or audio tower; leave --mmproj out")
    return types if find_projector(source.config) is not None else ()


def with_bridged_projectors(
    source: Checkpoint | Model, plan: ConversionPlan, options: GgufOptions, progress: Progress
) -> ConversionPlan:
    """The plan with the projectors that llama.cpp's converter writes where quantkit has no rules for them."""
    types = projector_types(options.mmproj or ())
    if not types or plan.gguf is None or plan.projectors is not None:
        return plan
    return plan_bridged(plan, source, types, options.converter_options, progress)


def bridged_document(projectors: Sequence[Projector]) -> dict[str, Any]:
    """The part of the JSON document on projectors of llama.cpp's converter, empty without any."""
    files = [
        {"file": str(item.path), "type": item.type.name, "bytes": item.size, "sha256": item.sha256}
        for item in projectors
    ]
    return {"projectors": files} if files else {}
