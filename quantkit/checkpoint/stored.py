"""The tensors of open weight files, read as they are stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.kept_rows import Span
from quantkit.checkpoint.tensor import NUMPY_DTYPES, TensorInfo
from quantkit.errors import CheckpointError, ReadError
from quantkit.system.descriptors import read_into

if TYPE_CHECKING:
    # needs the hub's client, which is slow to import
    from quantkit.checkpoint.streamed import StreamedWeights


@dataclass
class StoredWeights:
    """`tensors` of the files open as `descriptors`, by file name; None: only headers came. `where` names the source.

    `streamed` reads the files without a descriptor. While `recorded` is a list, it gets the spans of all reads, which
    return zeros.
    """

    tensors: Mapping[str, TensorInfo]
    descriptors: Mapping[str, int] | None
    where: str
    streamed: "StreamedWeights | None" = None
    recorded: list[Span] | None = None

    def data(self, tensor: TensorInfo, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` bytes of a tensor's data, from its byte `offset`. Raises CheckpointError, ReadError."""
        if self.descriptors is None:
            raise CheckpointError(
                f"tensor {shown(tensor.name)} cannot be read: the weights of {self.where} were not downloaded, "
                f"only their headers; open it without headers_only"
            )
        if self.recorded is not None:
            self.recorded.append(Span(tensor.file, tensor.offset + offset, nbytes))
            return np.zeros(nbytes, np.uint8)
        descriptor = self.descriptors.get(tensor.file)
        if descriptor is None:
            assert self.streamed is not None  # every file has one or the other
            return self.streamed.read(tensor, offset, nbytes)
        return read_exactly(descriptor, tensor, tensor.offset + offset, nbytes, self.where)

    def stored_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as they are stored, as (prod(shape[:-1]), shape[-1])."""
        tensor = self.tensors[name]
        row = tensor.nbytes // max(tensor.n_rows, 1)
        data = self.data(tensor, start * row, (stop - start) * row)
        return data.view(NUMPY_DTYPES[tensor.dtype]).reshape(stop - start, tensor.row_length)

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored, in its shape."""
        tensor = self.tensors[name]
        return self.stored_rows(name, 0, tensor.n_rows).reshape(tensor.shape)


def read_exactly(descriptor: int, tensor: TensorInfo, position: int, nbytes: int, where: str) -> NDArray[np.uint8]:
    """`nbytes` bytes of a tensor's file from byte `position`; `where` names the checkpoint in messages.

    Raises ReadError: the file ends early now, because it changed, or the disk cannot read it.
    """
    buffer = np.empty(nbytes, np.uint8)
    view, done = buffer.data, 0
    while done < nbytes:
        try:
            got = read_into(descriptor, view[done:], position + done)
        except OSError as error:
            raise ReadError(
                f"{tensor.file} of {where} cannot be read at tensor {shown(tensor.name)} ({error.strerror}); "
                f"check the disk"
            ) from error
        if got == 0:
            raise ReadError(
                f"{tensor.file} of {where} ended in the middle of tensor {shown(tensor.name)}; "
                f"it changed since it was opened, download it again"
            )
        done += got
    return buffer
