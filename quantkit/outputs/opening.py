"""Opening the source of a conversion: a GGUF, a checkpoint of a family, or one that llama.cpp's converter reads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.adapters import Adapter, AdapterRequest, apply_adapters, open_adapter
from quantkit.checkpoint import Access, Checkpoint, open_checkpoint
from quantkit.errors import UnknownArchitectureError, UnsupportedError, UsageError
from quantkit.families import open_model
from quantkit.llamacpp.converter import FOLDER_VARIABLE, ConverterOptions, find_converter
from quantkit.llamacpp.pinned_converter import PINNED
from quantkit.outputs.converted import model_from_converter
from quantkit.outputs.gguf_source import model_from_gguf
from quantkit.outputs.model import Model, Mtp
from quantkit.progress import SILENT, Progress


def is_gguf(source: str | Path) -> bool:
    """Whether `source` names a GGUF file, not a checkpoint."""
    return str(source).endswith(".gguf") and not Path(source).is_dir()


def open_convertible(
    source: str,
    access: Access = Access(),
    *,
    converter: ConverterOptions | None = None,
    mtp: Mtp = "keep",
    adapters: Sequence[AdapterRequest] = (),
    progress: Progress = SILENT,
) -> Checkpoint | Model:
    """A checkpoint of a family, or the model of a GGUF or of a checkpoint that llama.cpp's converter reads.

    `mtp` and `adapters` are for the converter, which reads merged weights; for a family `mtp` belongs to the plan, and
    `merge_adapters` to the checkpoint. The caller closes the result.

    Raises:
        UnknownArchitectureError: no family has the architecture, and no converter was named.
        QuantkitError: as `open_model`, `model_from_gguf` and `model_from_converter` raise.
    """
    if is_gguf(source):
        return model_from_gguf(Path(source))
    try:
        return open_model(source, access, progress=progress)
    except UnknownArchitectureError as error:
        options = converter or ConverterOptions()
        tool = find_converter(options, offline=access.offline, progress=progress)
        if tool is None:
            steps = (
                f"for a GGUF, run pip install 'quantkit[converter]', then pass --converter {PINNED}"
                if error.for_converter
                else f"or pass a checkout of that llama.cpp to --converter (or set {FOLDER_VARIABLE})"
            )
            raise UnknownArchitectureError(f"{error}; {steps}", for_converter=error.for_converter) from error
        unknown = error
    if access.headers_only and not Path(source).is_dir():
        raise UnsupportedError(
            f"{source} needs llama.cpp's converter, which reads its weights; leave --dry-run out, or download it first"
        ) from unknown
    if access.stream:
        raise UnsupportedError(
            f"{source} needs llama.cpp's converter, which reads whole files; leave out --stream"
        ) from unknown
    checkpoint = open_checkpoint(source, Access(offline=access.offline), progress=progress)
    try:
        merged = _merge(checkpoint, adapters, bridged=True, offline=access.offline, progress=progress)
        model = model_from_converter(checkpoint, tool, options, mtp=mtp, merged=merged)
    except BaseException:
        checkpoint.close()
        raise
    reason = str(unknown).split(" is not supported yet")[0] + " has no family in quantkit"
    note = f"{reason}; llama.cpp's converter in {tool.name} reads the model"

    def close() -> None:
        model.close()
        checkpoint.close()

    return replace(model, warnings=(note, *checkpoint.notes, *model.warnings), close=close)


def merge_adapters(
    source: Checkpoint | Model,
    requests: Sequence[AdapterRequest],
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> None:
    """From now on the rows of `source` are merged with these adapters, in order (see `apply_adapters`).

    Nothing is left to do for a model that llama.cpp's converter reads (see `open_convertible`).

    Raises:
        UsageError: the source is a GGUF.
        CheckpointError, HubError, UnsupportedError: see `open_adapter` and `apply_adapters`.
    """
    if isinstance(source, Checkpoint):
        _merge(source, requests, bridged=False, offline=offline, progress=progress)
    elif requests and source.folder is None:
        raise UsageError(
            f"--adapter needs a checkpoint, but {source.name} is a GGUF; convert the base checkpoint, or write the"
            " adapter alone with quantkit lora"
        )


def _merge(
    checkpoint: Checkpoint, requests: Sequence[AdapterRequest], *, bridged: bool, offline: bool, progress: Progress
) -> tuple[str, ...]:
    """Merge adapters into a checkpoint, which closes them; the names of the tensors that they change."""
    if not requests:
        return ()
    adapters: list[Adapter] = []
    try:
        for request in requests:
            adapters.append(open_adapter(request, offline=offline, progress=progress))
        return apply_adapters(checkpoint, adapters, bridged=bridged)
    except BaseException:
        for adapter in adapters:
            adapter.close()
        raise
