"""pytorch_model.bin: the offset of each tensor in the file, so that rows are read as from safetensors.

A file of torch.save is a zip archive: a pickle that describes the tensors, and one uncompressed member per storage.
Only torch's weights_only loader reads the pickle (it refuses anything that would run code), with the data mapped. The
storages' addresses then tell which member each is, and with it the offset in the file; torch lets go of the file before
the first row is read.
"""

import hashlib
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.safetensors_file import Header
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, MissingExtraError

# torch.load(weights_only=True) of earlier releases could be made to run code (CVE-2025-32434, CVE-2026-24747).
_SAFE_TORCH = (2, 10)
_LOCAL_HEADER_BYTES = 30

_DTYPES: dict[str, str] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "bool": "BOOL",
    "complex64": "C64",
}


@dataclass(frozen=True)
class _Member:
    offset: int
    nbytes: int


def read_header(path: Path, file: str) -> Header:
    """The tensors of one torch.save file, with their offsets in it; the sha256 is that of its pickle.

    Raises MissingExtraError without torch, CheckpointError for a file that is damaged, of torch's old format, or that
    would run code.
    """
    torch = _import_torch(file)
    members, digest = _zip_members(path, file)
    state: Any
    try:
        state = torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and could run code when loaded, so it was refused; take safetensors"
        ) from error
    except (
        Exception
    ) as error:  # a damaged archive raises RuntimeError, KeyError, EOFError and others, depending on the damaged place
        _refuse(file, f"cannot be loaded by torch ({_first_line(error)})", error)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and _is_dense(tensor, torch)
        for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{file} is not a flat table of dense tensors; save model.state_dict() alone, or take safetensors"
        )
    base = _mapping_base([tensor.untyped_storage() for tensor in state.values()], members, file)
    return Header({name: _tensor(name, tensor, base, file) for name, tensor in state.items()}, digest)


def _is_dense(tensor: Any, torch: Any) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _import_torch(file: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"{file} is a pickle that only torch can read safely; run: pip install 'quantkit[torch]'"
        ) from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE_TORCH:
        raise MissingExtraError(
            f"torch {torch.__version__} cannot read {file} safely, 2.10 can; run: pip install -U 'quantkit[torch]'"
        )
    return torch


def _zip_members(path: Path, file: str) -> tuple[list[_Member], str]:
    """The uncompressed members of the archive, and the sha256 of the pickle among them."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            members, digest = [], ""
            for info in archive.infolist():
                if info.filename.endswith("/data.pkl"):
                    digest = hashlib.sha256(archive.read(info)).hexdigest()
                if info.compress_type != zipfile.ZIP_STORED:
                    continue
                raw.seek(info.header_offset)
                name, extra = struct.unpack("<26xHH", raw.read(_LOCAL_HEADER_BYTES))
                members.append(_Member(info.header_offset + _LOCAL_HEADER_BYTES + name + extra, info.file_size))
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{file} is damaged or saved in the format torch had before 1.6; download it again or take safetensors"
        ) from error
    except (OSError, struct.error, EOFError, NotImplementedError, RuntimeError) as error:
        _refuse(file, f"cannot be read ({_first_line(error)})", error)
    return members, digest


def _mapping_base(storages: Iterable[Any], members: list[_Member], file: str) -> int:
    """The address torch mapped the file's first byte to: the one that puts every storage on a member of its size."""
    placed = {(storage.data_ptr(), storage.nbytes()) for storage in storages if storage.nbytes()}
    if not placed:
        return 0
    known = {(member.offset, member.nbytes) for member in members}
    address, nbytes = min(placed)
    for member in members:
        base: int = address - member.offset
        if member.nbytes == nbytes and all((pointer - base, size) in known for pointer, size in placed):
            return base
    raise CheckpointError(f"{file} is laid out in a way quantkit does not know; take a safetensors checkpoint")


def _tensor(name: str, tensor: Any, base: int, file: str) -> TensorInfo:
    dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or not tensor.is_contiguous():
        kind = str(tensor.dtype) if dtype is None else "a transposed view"
        raise CheckpointError(
            f"tensor {shown(name)} of {file} is {kind}, which cannot be read in rows; take safetensors"
        )
    shape = tuple(tensor.shape)
    nbytes = math.prod(shape) * tensor.element_size()
    return TensorInfo(name, dtype, shape, file, tensor.data_ptr() - base if nbytes else 0, nbytes)


def _refuse(file: str, problem: str, cause: BaseException) -> NoReturn:
    raise CheckpointError(f"{file} {problem}; download it again or take a safetensors checkpoint") from cause


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
