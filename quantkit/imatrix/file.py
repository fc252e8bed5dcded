"""Importance matrices in llama.cpp's file formats: the mean square of every input of a weight over a text.

Both formats are from llama.cpp's tools/imatrix. GGUF has sums of squares and token counts of each tensor; the older
.dat has means. The values read are those that llama-quantize passes to the kernels (load_imatrix in tools/quantize).
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, ImatrixError, OutputError
from quantkit.gguf.reader import read_header

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_LONGEST_NAME = 1 << 12
_FLOATS = NDArray[np.float32]


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix in the form that the kernels take."""

    values: Mapping[str, _FLOATS]
    """Tensor name -> mean squares, float32 (n_experts * n_cols,), in the order of experts; 1.0 for an expert that
    received no token."""
    datasets: list[str]
    """Names of the texts it was computed on, from the file."""
    chunks: int
    """Number of chunks of text; 0 when the file does not have it."""
    chunk_size: int
    """Tokens of a chunk; 0 when the file does not have it."""
    sha256: str
    """The sha256 of the file."""


def load_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix. The first bytes of the file give its format.

    Raises:
        ImatrixError: the file is missing, malformed or truncated, or has values that are negative or not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImatrixError(f"cannot read importance matrix {path} ({error.strerror}); check the path") from error
    read = _read_gguf if data[:4] == b"GGUF" else _read_dat
    imatrix = read(path, data)
    if not imatrix.values:
        raise ImatrixError(f"importance matrix {path} has no entries; compute it again")
    for name, values in imatrix.values.items():
        if not np.isfinite(values).all() or values.min(initial=0.0) < 0.0:
            wrong = values[~(np.isfinite(values) & (values >= 0.0))][0]
            raise ImatrixError(
                f"importance matrix {path} has the value {wrong} for {name}; every value must be finite and at least 0;"
                " compute it again"
            )
    return imatrix


def write_imatrix(
    path: Path,
    sums: Mapping[str, NDArray[Any]],
    counts: Mapping[str, NDArray[Any]],
    *,
    datasets: Sequence[str],
    chunk_size: int,
    chunks: int,
) -> None:
    """Write `path` in the GGUF format of llama-imatrix (save_imatrix in tools/imatrix), which llama-quantize reads.

    `sums`: tensor name -> sums of squared inputs, (n_cols,), for experts (n_experts, n_cols). `counts`: tensor name ->
    number of tokens, a scalar, for experts (n_experts,). `datasets`: at least one name.

    Raises:
        ValueError: `datasets` is empty, or `sums` and `counts` do not match.
        OutputError: the file cannot be written.
    """
    if not datasets:
        raise ValueError("an importance matrix must name the text it was computed on")
    if sums.keys() != counts.keys():
        raise ValueError(f"sums and counts have different tensors: {sorted(sums.keys() ^ counts.keys())}")
    try:
        writer = gguf.GGUFWriter(path, "imatrix")
        writer.kv_data[0].clear()  # llama-imatrix writes no architecture
        writer.add_string("general.type", "imatrix")
        writer.add_key_value(_DATASETS, list(datasets), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
        writer.add_uint32(_CHUNKS, chunks)
        writer.add_uint32(_CHUNK_SIZE, chunk_size)
        for name in sorted(sums):
            count = np.asarray(counts[name], dtype=np.float32).reshape(-1, 1)
            total = np.asarray(sums[name], dtype=np.float32)
            if total.size == 0 or total.size % len(count):
                raise ValueError(f"{name}: {total.shape} sums do not split into {len(count)} matrices")
            writer.add_tensor(name + _SUMS, np.ascontiguousarray(total.reshape(len(count), -1)))
            writer.add_tensor(name + _COUNTS, count)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise OutputError(
            f"cannot write importance matrix {path} ({error.strerror}); check the folder and its free space"
        ) from error


def _read_gguf(path: Path, data: bytes) -> Imatrix:
    try:
        header = read_header(path)
    except CheckpointError as error:
        raise ImatrixError(f"importance matrix {path} is malformed or truncated: {error}; compute it again") from error
    missing = next((key for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE) if header.value(key) is None), None)
    if missing is not None:
        raise ImatrixError(
            f"{path} is a GGUF file without {missing}, not an importance matrix; pass a file written by llama-imatrix"
        )
    datasets, chunks, chunk_size = (header.value(key) for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE))
    if not (isinstance(datasets, list) and isinstance(chunks, int) and isinstance(chunk_size, int)):
        raise ImatrixError(
            f"importance matrix {path} is malformed: {_DATASETS} must be a list of texts, {_CHUNKS} and {_CHUNK_SIZE}"
            " must be integers; compute it again"
        )
    slots = {slot.name: slot for slot in header.tensors}

    def floats(name: str) -> _FLOATS:
        slot = slots[name]
        if slot.type != gguf.GGMLQuantizationType.F32:
            raise ImatrixError(
                f"importance matrix {path} has {slot.type.name} values for {name}, not F32; compute it again"
            )
        return np.frombuffer(data, "<f4", slot.nbytes // 4, slot.offset).astype(np.float32)

    values = {}
    for name in sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in slots}):
        _refuse_unprintable(path, name)
        if name + _SUMS not in slots or name + _COUNTS not in slots:
            if name not in slots:
                raise ImatrixError(
                    f"importance matrix {path} has only sums or only counts for {name}; compute it again"
                )
            continue  # not a tensor of the importance matrix
        values[name] = _means(path, name, floats(name + _SUMS), floats(name + _COUNTS))
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in datasets]
    return Imatrix(values, texts, chunks, chunk_size, hashlib.sha256(data).hexdigest())


def _means(path: Path, name: str, sums: _FLOATS, counts: _FLOATS) -> _FLOATS:
    if not counts.size or sums.size % counts.size or not np.isfinite(counts).all():
        raise ImatrixError(
            f"importance matrix {path} has {sums.size} sums and {counts.size} counts for {name}, which do not match;"
            " compute it again"
        )
    per_matrix = np.rint(counts).astype(np.float32).reshape(-1, 1)
    reached = per_matrix > 0
    # in float32, as llama-quantize divides
    means = np.where(
        reached, sums.reshape(len(per_matrix), -1) / np.where(reached, per_matrix, np.float32(1)), np.float32(1)
    )
    return means.ravel()


def _refuse_unprintable(path: Path, name: str) -> None:
    if not name.isprintable():
        raise ImatrixError(
            f"importance matrix {path} has an invalid tensor name {name[:40]!a}; pass a file written by llama-imatrix"
        )


def _read_dat(path: Path, data: bytes) -> Imatrix:
    """The .dat format: int32 number of entries; an entry is name length, name, calls, number of values and float32
    values. The number of chunks and the name of the text follow.
    """
    position = 0

    def take(size: int, field: str) -> bytes:
        nonlocal position
        if size < 0 or position + size > len(data):
            raise ImatrixError(
                f"{path} is truncated or not an importance matrix: {field} at byte {position} needs {size} bytes, but"
                f" {len(data) - position} are left; pass a file written by llama-imatrix"
            )
        position += size
        return data[position - size : position]

    def number(field: str) -> int:
        value: int = struct.unpack("<i", take(4, field))[0]
        return value

    values = {}
    for index in range(number("the number of entries")):
        length = number(f"the length of name {index}")
        name = take(length if length <= _LONGEST_NAME else len(data), f"name {index}").decode("utf-8", "replace")
        _refuse_unprintable(path, name)
        calls = number(f"the calls of {name}")
        means = np.frombuffer(take(4 * number(f"the size of {name}"), f"the values of {name}"), dtype="<f4")
        if not means.size:
            raise ImatrixError(f"importance matrix {path} has no values for {name}; compute it again")
        # the file has means times calls
        values[name] = means.astype(np.float32) / np.float32(calls) if calls > 0 else means.astype(np.float32)
    chunks, datasets = 0, []
    if position < len(data):
        chunks = number("the number of chunks")
        text = take(number("the length of the text's name"), "the text's name") if position < len(data) else b""
        datasets = [text.decode("utf-8", "replace")] if text else []
    return Imatrix(values, datasets, chunks, 0, hashlib.sha256(data).hexdigest())
