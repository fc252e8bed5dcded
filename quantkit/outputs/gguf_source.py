"""A GGUF as a source: an existing file with its shards, or one that exists only as a header and a reader of rows."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, ReadError, UnsupportedError
from quantkit.gguf.layout import Slot
from quantkit.gguf.metadata import QUANTIZATION_KEYS, SPLIT_KEYS
from quantkit.gguf.mix import sort_key
from quantkit.gguf.reader import GgufHeader, read_header, shard_paths
from quantkit.gguf.types import TENSOR_TYPES
from quantkit.outputs.model import FLOAT_TYPES, Model, ModelTensor, mix_model
from quantkit.system.descriptors import READ, read_at

# with DeepSeek-V4's tables of experts
READABLE = frozenset((*TENSOR_TYPES.values(), GGMLQuantizationType.I32))


def model_from_gguf(path: Path, *, name: str | None = None) -> Model:
    """An existing GGUF, with all its shards, as a source.

    Raises:
        CheckpointError: the file is not a valid GGUF, or a shard is missing.
    """
    headers = [read_header(shard) for shard in shard_paths(path)]
    first = headers[0]
    where = {slot.name: (index, slot) for index, header in enumerate(headers) for slot in header.tensors}
    expected = first.value("split.tensors.count")
    if expected is not None and expected != len(where):
        raise CheckpointError(
            f"{path.name} and its shards have {len(where)} tensors, but state {expected}; download it again"
        )
    opened = ExitStack()
    files = []
    for header in headers:
        files.append(os.open(header.path, READ))
        opened.callback(os.close, files[-1])

    def read_rows(tensor: str, start: int, stop: int) -> NDArray[Any]:
        index, slot = where[tensor]
        width = slot.row_bytes
        try:
            data = read_at(files[index], (stop - start) * width, slot.offset + start * width)
        except OSError as error:
            raise ReadError(
                f"{headers[index].path.name} cannot be read at tensor {tensor} ({error.strerror}); check the disk"
            ) from error
        if len(data) != (stop - start) * width:
            raise ReadError(
                f"{headers[index].path.name} ends inside tensor {tensor}; it is truncated, download it again"
            )
        return typed_rows(np.frombuffer(data, dtype=np.uint8).reshape(stop - start, width), slot)

    stem = path.name.removesuffix(".gguf")
    return model_of_header(
        first,
        [slot for _, slot in where.values()],
        name=name or (stem[: -len("-00001-of-00001")] if len(headers) > 1 else stem),
        read_rows=read_rows,
        weight_files=tuple(header.path for header in headers),
        origin={
            "source": path.name,
            "revision": None,
            "header_sha256": {h.path.name: _header_hash(h) for h in headers},
        },
        close=opened.close,
    )


def model_of_header(header: GgufHeader, slots: Sequence[Slot], **facts: Any) -> Model:
    """The model whose keys are those of a GGUF header, and whose tensors are `slots`. `facts`: other fields of `Model`.

    Raises:
        CheckpointError: the header names no architecture.
        UnsupportedError: a tensor's type is not supported.
    """
    arch = header.value("general.architecture")
    if not isinstance(arch, str):
        raise CheckpointError(
            f"{header.path.name} has no general.architecture, so it is not a model; pass a GGUF model"
        )
    for slot in slots:
        if slot.type not in READABLE:
            raise UnsupportedError(
                f"tensor {slot.name} of {header.path.name} is {slot.type.name}, which is not supported;"
                " convert the original checkpoint"
            )
    keys = [key for key in header.keys if key.key not in (*QUANTIZATION_KEYS, *SPLIT_KEYS, "general.alignment")]
    return Model(
        keys=tuple(keys),
        tensors=tuple(
            ModelTensor(slot.name, slot.shape, slot.type, 1, slot.name)
            for slot in sorted(slots, key=lambda slot: sort_key(slot.name))
        ),
        sizes=mix_model(arch, {key.key: key.value for key in header.keys}),
        family=arch,
        **facts,
    )


def typed_rows(rows: NDArray[np.uint8], slot: Slot) -> NDArray[Any]:
    """Bytes of whole rows (n, row bytes) as the tensor's own float type; blocks stay bytes."""
    dtype = next((dtype for dtype, kind in FLOAT_TYPES.items() if kind == slot.type), None)
    return rows if dtype is None else rows.view(dtype)


def _header_hash(header: GgufHeader) -> str:
    with header.path.open("rb") as file:
        return hashlib.sha256(file.read(header.header_bytes)).hexdigest()
