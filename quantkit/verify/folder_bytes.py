"""The bytes of a written folder: every tensor against what was written, in one reading of each file."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from io import FileIO
from itertools import cycle
from pathlib import Path

import numpy as np

from quantkit.checkpoint.tensor import TensorInfo, all_finite
from quantkit.errors import VerificationError
from quantkit.packed.layout import matrix_name
from quantkit.packed.reader import QuantizedFolder

_PIECE = 8 << 20


def check_bytes(opened: QuantizedFolder, sha256: Mapping[str, str], hashes: dict[str, str]) -> str:
    """Read every weight file once; the sha256 of each is put into `hashes`.

    `sha256`: of each tensor as it was written, or of each matrix of a stack.

    Raises:
        VerificationError: a tensor differs, or contains NaN or infinity.
    """
    tensors: dict[str, list[TensorInfo]] = {}
    for tensor in opened.tensors.values():
        tensors.setdefault(tensor.file, []).append(tensor)
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as pool:
        for name, file_tensors in tensors.items():
            with (opened.folder / name).open("rb", buffering=0) as file:
                whole, buffers = _Hash(pool), cycle([bytearray(_PIECE) for _ in range(3)])
                matrices = [matrix for tensor in file_tensors for matrix in _matrices(tensor, sha256)]
                for tensor in sorted(matrices, key=lambda tensor: tensor.offset):
                    whole.update(_exactly(file, memoryview(bytearray(tensor.offset - file.tell()))))
                    _tensor_bytes(file, tensor, sha256.get(tensor.name), whole, buffers)
                while data := file.read(_PIECE):
                    whole.update(data)
                hashes[name] = whole.hexdigest()
    total = sum(tensor.nbytes for tensor in opened.tensors.values())
    return f"{total / 1e6:.0f} MB read back as written, every scale and kept weight finite"


def _matrices(tensor: TensorInfo, sha256: Mapping[str, str]) -> list[TensorInfo]:
    """A tensor, or the matrices of a stack that was written matrix by matrix."""
    if matrix_name(tensor.name, 0) not in sha256:
        return [tensor]
    count = tensor.shape[0]
    size = tensor.nbytes // count
    return [
        replace(
            tensor,
            name=matrix_name(tensor.name, index),
            shape=tensor.shape[1:],
            offset=tensor.offset + index * size,
            nbytes=size,
        )
        for index in range(count)
    ]


class _Hash:
    """The sha256 of a file, computed in another thread while its tensors are checked. At most one piece waits."""

    def __init__(self, pool: Executor) -> None:
        self._pool, self._digest = pool, hashlib.sha256()
        self._pending: Future[None] | None = None

    def update(self, data: bytes | memoryview) -> None:
        self._wait()
        self._pending = self._pool.submit(self._digest.update, data)

    def hexdigest(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()


def _tensor_bytes(
    file: FileIO, tensor: TensorInfo, expected: str | None, whole: _Hash, buffers: Iterator[bytearray]
) -> None:
    digest, remaining = hashlib.sha256(), tensor.nbytes
    while remaining:
        data = _exactly(file, memoryview(next(buffers))[: min(remaining, _PIECE)])
        remaining -= len(data)
        whole.update(data)
        digest.update(data)
        if not all_finite(tensor.dtype, np.frombuffer(data, np.uint8)):
            raise VerificationError(f"tensor {tensor.name} of {tensor.file} contains NaN or infinity")
    if digest.hexdigest() != expected:
        raise VerificationError(
            f"tensor {tensor.name} of {tensor.file} is not what was written; the disk may be failing"
        )


def _exactly(file: FileIO, buffer: memoryview) -> memoryview:
    count = 0
    while count < len(buffer):
        length = file.readinto(buffer[count:])
        if not length:
            raise VerificationError(f"{Path(str(file.name)).name} ends too early")
        count += length
    return buffer
