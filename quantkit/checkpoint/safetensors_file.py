"""Parse and check the header of a safetensors file of unknown origin.

Format: https://github.com/huggingface/safetensors#format. A file is 8 bytes of little-endian header length, a JSON
header of that length, then the data. The checks are those of the reference library (`SafeTensors::read_metadata`,
`Metadata::validate`): the tensors cover the data from the first byte to the last, without hole or overlap. The format's
text requires three more: the header starts with "{", every key is unique, a tensor has no further field.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from quantkit.checkpoint.jsonfile import parse_object, shown
from quantkit.checkpoint.tensor import DTYPE_BITS, TensorInfo
from quantkit.errors import CheckpointError
from quantkit.system.descriptors import read_at

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
_MAX_BITS = 2**63
_GIT_LFS = b"version "
_FIELDS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True)
class Header:
    """A checked header: its tensors by name and the sha256 (hex) of its JSON bytes."""

    tensors: Mapping[str, TensorInfo]
    sha256: str


def header_length(prefix: bytes, file: str, file_size: int) -> int:
    """The length of the JSON header, from a file's first 8 bytes; checked before the header is read.

    `file_size` is in bytes. Raises CheckpointError naming `file`.
    """
    if prefix == _GIT_LFS:
        raise CheckpointError(f"{file} is a git-lfs pointer, not the weights; run 'git lfs pull' first")
    if len(prefix) < PREFIX_BYTES:
        raise CheckpointError(
            f"{file} is only {file_size} bytes long, too short for a safetensors file; download it again"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} claims a header of {length} bytes, more than the {MAX_HEADER_BYTES} the safetensors format "
            f"allows; it is damaged or not a safetensors file, download it again"
        )
    if PREFIX_BYTES + length > file_size:
        raise CheckpointError(
            f"{file} is truncated: its header takes {length} bytes but the file has only {file_size}; download it again"
        )
    return int(length)


def parse_header(header: bytes, file: str, file_size: int) -> Header:
    """The tensors a JSON header describes, with absolute offsets, checked against the file's size in bytes.

    Raises CheckpointError with the names of `file` and of the tensor, if there is one.
    """
    document = f"the header of {file}"
    if not header.startswith(b"{"):
        raise CheckpointError(f"{document} does not start with '{{', so it is not safetensors; download it again")
    # most headers have no "-0", and the parser's own integers take less time
    entries = parse_object(header, document, parse_int=_integer if b"-0" in header else int)
    _check_metadata(entries.pop("__metadata__", None), file)
    start = PREFIX_BYTES + len(header)
    tensors = {name: _tensor(name, entry, file, start) for name, entry in entries.items()}
    _check_layout(tensors, file, start, file_size)
    return Header(tensors, hashlib.sha256(header).hexdigest())


def read_header(fd: int, file: str) -> Header:
    """The checked header of an open safetensors file; `file` is its name for messages and for the tensors."""
    size = os.fstat(fd).st_size
    length = header_length(read_at(fd, PREFIX_BYTES, 0), file, size)
    header = read_at(fd, length, PREFIX_BYTES)
    if len(header) != length:
        raise CheckpointError(
            f"{file} ended after {len(header)} of its {length} header bytes; it changed while being read"
        )
    return parse_header(header, file, size)


def _check_metadata(metadata: Any, file: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"__metadata__ in the header of {file} must map text to text; download the file again")
    for text in (*metadata, *metadata.values()):
        _check_text(text, file)


def _check_text(text: str, file: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"the header of {file} holds text that is not Unicode ({shown(text)}); download the file again"
        ) from error


def _tensor(name: str, entry: Any, file: str, start: int) -> TensorInfo:
    """The tensor of an entry of the header; entries that are usual are accepted in less time than `_checked` takes."""
    if not (name.isascii() and isinstance(entry, dict) and len(entry) == len(_FIELDS)):
        return _checked(name, entry, file, start)
    dtype, shape, offsets = map(entry.get, _FIELDS)
    if not (type(dtype) is str and type(shape) is type(offsets) is list and len(offsets) == 2):
        return _checked(name, entry, file, start)
    if set(map(type, (*shape, *offsets))) != {int}:
        return _checked(name, entry, file, start)
    sizes, begin, end = tuple(shape), *offsets
    nbytes = _tensor_bytes(dtype, sizes)
    if nbytes is None or begin < 0 or end >= _MAX_BITS or end - begin != nbytes:
        return _checked(name, entry, file, start)
    return TensorInfo(name, dtype, sizes, file, start + begin, nbytes)


@lru_cache(maxsize=4096)
def _tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None if `_checked` has an objection. The tensors of a mixture are of a few shapes."""
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        return None
    for size in shape:
        bits *= size
        if not (0 <= size < _MAX_BITS and bits < _MAX_BITS):
            return None
    return None if bits % 8 else bits // 8


def _checked(name: str, entry: Any, file: str, start: int) -> TensorInfo:
    """The tensor of any entry. Raises CheckpointError that names the problem."""

    def refuse(problem: str) -> NoReturn:
        raise CheckpointError(f"tensor {shown(name)} in the header of {file} {problem}; download the file again")

    _check_text(name, file)
    if not isinstance(entry, dict):
        refuse(f"is described by a JSON {type(entry).__name__}, not an object")
    for key in _FIELDS:
        if key not in entry:
            refuse(f"has no {key}")
    if len(entry) != len(_FIELDS):
        extra = next(key for key in entry if key not in _FIELDS)
        refuse(f"has a field the format does not know, {shown(extra)}")
    dtype, shape, offsets = (entry[key] for key in _FIELDS)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        refuse(f"has an unknown dtype {_quoted(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        refuse(f"has shape {_quoted(shape)}, which is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        refuse(f"has data_offsets {_quoted(offsets)}, which are not two positions")
    bits = DTYPE_BITS[dtype]
    for size in shape:
        # Checked at each step, not on the product: a later zero must not hide an overflow from a reader in C.
        bits *= size
        if bits >= _MAX_BITS:
            refuse(f"has shape {_quoted(shape)}, too large for any file")
    if bits % 8:
        refuse(f"has shape {_quoted(shape)} of {dtype}, which is not a whole number of bytes")
    begin, end = offsets
    if end - begin != bits // 8:
        refuse(
            f"has {end - begin} bytes at data_offsets [{begin}, {end}], but {dtype} {_quoted(shape)} takes {bits // 8}"
        )
    return TensorInfo(name, dtype, tuple(shape), file, start + begin, bits // 8)


def _check_layout(tensors: Mapping[str, TensorInfo], file: str, start: int, file_size: int) -> None:
    position, before = start, ""
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset < position:
            raise CheckpointError(
                f"tensors {shown(before)} and {shown(tensor.name)} of {file} overlap at byte {tensor.offset}; "
                f"download the file again"
            )
        if tensor.offset > position:
            raise CheckpointError(
                f"{file} has {tensor.offset - position} bytes before tensor {shown(tensor.name)} that belong to no "
                f"tensor; download the file again"
            )
        position, before = tensor.offset + tensor.nbytes, tensor.name
    if position > file_size:
        raise CheckpointError(
            f"{file} is truncated: its header describes {position} bytes but the file has only {file_size}; "
            f"download it again"
        )
    if position < file_size:
        raise CheckpointError(
            f"{file} has {file_size - position} bytes after its last tensor that belong to no tensor; download it again"
        )


def _integer(text: str) -> int:
    # "-0" is the integer 0 to Python but not to the reference library: made negative, it is refused with the others.
    return -1 if text == "-0" else int(text)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_BITS


def _quoted(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # its parser goes deeper
        return "[...]"
    return text if len(text) <= 80 else text[:80] + "..."
