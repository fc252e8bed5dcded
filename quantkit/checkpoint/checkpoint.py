"""An open checkpoint: its config, the description of its tensors, and a function that reads rows of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint.float4_blocks import as_blocks
from quantkit.checkpoint.float8 import SCALE_DTYPES, apply_scales, block_of, block_size, pair_scales, to_float32
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.kept_rows import Span
from quantkit.checkpoint.quantized.source import open_quantized_weights, settings_of, turned
from quantkit.checkpoint.repair import drop_kv_scales, drop_stale_quantization, refuse_packed, unwrap_names
from quantkit.checkpoint.stored import StoredWeights
from quantkit.checkpoint.tensor import FLOAT8, NUMPY_DTYPES, TensorInfo
from quantkit.errors import CheckpointError, ReadError, UnsupportedError

if TYPE_CHECKING:
    # needs the hub's client, which is slow to import
    from quantkit.checkpoint.streamed import StreamedWeights


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from."""

    name: str
    source: str
    folder: Path
    repo_id: str | None = None
    revision: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class WeightFiles:
    """The weight files as read and checked: every tensor of every file, and the open files unless only headers came."""

    tensors: Mapping[str, TensorInfo]
    header_sha256: Mapping[str, str]
    descriptors: Mapping[str, int] | None = field(default=None)
    streamed: "StreamedWeights | None" = None
    """The files that are read by ranges; they have no descriptor."""

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self.descriptors or {}).values():
            os.close(descriptor)
        if self.streamed is not None:
            self.streamed.close()


class Adapted(Protocol):
    """An adapter that the rows of a checkpoint are merged with."""

    @property
    def record(self) -> dict[str, Any]: ...
    @property
    def weights(self) -> Path: ...
    def close(self) -> None: ...


StoredRows = Callable[[str, int, int], npt.NDArray[Any]]
ReadOver = Callable[[str, int, int, StoredRows], npt.NDArray[Any]]
"""Rows start..stop of a tensor, given the reader of its stored rows."""


class Checkpoint:
    """A checkpoint. No weights are in memory; many threads can call `read_rows` at once.

    Attributes:
        name: last component of the folder or of the hub id.
        source: the name that the user gave.
        repo_id: the hub repository; None for a folder.
        revision: the hub commit hash; None for a folder.
        folder: local folder with config.json and the tokenizer files.
        base: of a GGUF as a checkpoint, the folder or hub id that gives these files; None otherwise.
        config: the parsed config.json.
        tensors: every tensor by name, in order of names, without the scales of f8 weights.
        adapters: the adapters that are merged into the rows, in order.
        notes: a sentence for the user on each undone or omitted thing.
        quantized: the linears that are dequantized as they are read; None without any. 8-bit floats are not among them.
        header_sha256: sha256 of each weight file's header, for the record of origin; of a torch file, the pickle's.
    """

    def __init__(
        self, origin: Origin, config: dict[str, Any], weights: WeightFiles, notes: tuple[str, ...] = ()
    ) -> None:
        """Raises CheckpointError or UnsupportedError if a tensor is not readable; the caller then closes `weights`."""
        self.name = origin.name
        self.source = origin.source
        self.repo_id = origin.repo_id
        self.revision = origin.revision
        self.folder = origin.folder
        self.base = origin.base
        tensors, renamed = unwrap_names(weights.tensors)
        config, stale = drop_stale_quantization(settings_of(config, tensors, origin.folder), tensors.values())
        self._stored = StoredWeights(tensors, weights.descriptors, origin.source, weights.streamed)
        self.quantized = open_quantized_weights(config, self._stored)
        if self.quantized is not None:
            tensors = self.quantized.tensors
        tensors = as_blocks(tensors, config, origin.source)
        refuse_packed(tensors, origin.source)
        tensors, dropped = drop_kv_scales(tensors)
        self.config = config
        quantization = () if self.quantized is None else (self.quantized.note,)
        self.notes = (*notes, *renamed, *stale, *quantization, *dropped)
        tensors, self._scales = pair_scales(tensors, config, origin.source)
        for tensor in tensors.values():
            _check_readable(tensor, origin.source)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sorted(tensors.items())))
        self.header_sha256: Mapping[str, str] = MappingProxyType(dict(sorted(weights.header_sha256.items())))
        self._block = block_size(config, origin.source)
        self._weights = weights
        self._overlay: ReadOver | None = None
        self.adapters: tuple[Adapted, ...] = ()
        self._closed = False

    @property
    def has_weights(self) -> bool:
        """Whether rows can be read; not if only the headers of the weights were opened."""
        return self._weights.descriptors is not None

    @property
    def streamed(self) -> "StreamedWeights | None":
        """The weight files that are read by ranges; None if all are on the disk."""
        return self._weights.streamed

    def spans_of(self, read: Callable[[], object]) -> list[Span]:
        """The bytes of weight files that `read` reads through this checkpoint; it gets zeros in their place."""
        spans: list[Span] = []
        self._stored.recorded = spans
        try:
            with np.errstate(all="ignore"):
                read()
        finally:
            self._stored.recorded = None
        return spans

    def amend(self, config: dict[str, Any], tensors: Mapping[str, TensorInfo], note: str) -> None:
        """Replace the config and the tensors by what the weights show; `note` tells the user."""
        self.config = config
        self.tensors = MappingProxyType(dict(sorted(tensors.items())))
        self.notes = (*self.notes, note)

    @property
    def stored_tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors as they are stored, the parts of quantized linears too."""
        return self._stored.tensors

    @property
    def tensors_in_files(self) -> Mapping[str, TensorInfo]:
        """The tensors under their names in the weight files, with the prefixes of wrappers."""
        return self._weights.tensors

    def require_shapes(self) -> None:
        """Raise UnsupportedError if only headers came, and the shapes of quantized weights are in the data."""
        if self.quantized is not None and not self.quantized.has_shapes:
            raise UnsupportedError(
                f"{self.source} is quantized by bitsandbytes in 4 bit, and its weight files contain the shapes of the"
                " weights; leave --dry-run out, or download it first"
            )

    def turn_quantized(self) -> None:
        """From now on, quantized linears are read as (inputs, outputs): the model stores its linears so."""
        if self.quantized is not None:
            self.quantized.turned = True
            tensors = {name: turned(tensor) if tensor.linear else tensor for name, tensor in self.tensors.items()}
            self.tensors = MappingProxyType(tensors)

    def overlay(self, read: ReadOver, adapters: Sequence[Adapted], name: str) -> None:
        """Read rows through `read` from now on; the checkpoint is called `name`, and closes `adapters`."""
        below = self._overlay
        if below is None:
            self._overlay = read
        else:
            self._overlay = lambda n, a, b, stored: read(n, a, b, lambda m, c, d: below(m, c, d, stored))
        self.adapters = (*self.adapters, *adapters)
        self.name = name

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start..stop of a tensor seen as (prod(shape[:-1]), shape[-1]), shape (stop - start, shape[-1]).

        A vector is one row. The dtype is the tensor's `read_dtype`: as stored, with f64 and f8 (times its scales) as
        float32. The bytes are read with pread into a fresh buffer. Raises CheckpointError, naming file and tensor, when
        the file ends early, cannot be read, or was not downloaded; ValueError for rows that do not exist.
        """
        if self._overlay is not None:
            return self._overlay(name, start, stop, self._stored_rows)
        return self._stored_rows(name, start, stop)

    def _stored_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """The rows in the weight files."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.source} has no tensor {shown(name)}")
        if not 0 <= start <= stop <= tensor.n_rows:
            raise ValueError(f"rows {start}..{stop} of {name}, which has {tensor.n_rows}")
        row_bytes = tensor.nbytes // tensor.n_rows if tensor.n_rows else 0
        if tensor.linear is not None:
            assert self.quantized is not None
            self._require_open(tensor)
            return self.quantized.rows(tensor.linear, start, stop)
        raw = self._read(tensor, start * row_bytes, (stop - start) * row_bytes)
        if tensor.dtype in FLOAT8:
            return self._dequantized(tensor, raw.reshape(stop - start, tensor.row_length), start)
        values = raw.view(NUMPY_DTYPES[tensor.dtype]).reshape(stop - start, tensor.row_length)
        return values.astype(np.float32) if tensor.dtype == "F64" else values

    def _dequantized(self, tensor: TensorInfo, raw: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.float32]:
        values = to_float32(raw, tensor.dtype)
        if tensor.scale is None or not values.size:
            return values
        scale = self._scales[tensor.scale]
        block = block_of(tensor, scale, self._block)
        assert block is not None  # pair_scales checked it
        columns = -(-tensor.row_length // block[1])
        scales = self._read(scale, 0, scale.nbytes).view(SCALE_DTYPES[scale.dtype]).astype(np.float32)
        rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        apply_scales(values, scales.reshape(-1, columns), start, rows, block)
        return values

    def _read(self, tensor: TensorInfo, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """`nbytes` bytes of a tensor's data, from its byte `offset`."""
        self._require_open(tensor)
        return self._stored.data(tensor, offset, nbytes)

    def _require_open(self, tensor: TensorInfo) -> None:
        if self._closed:
            raise CheckpointError(f"{self.source} was closed before tensor {shown(tensor.name)} was read")

    def require_complete(self) -> None:
        """Raise ReadError if a weight file is shorter than its header says: it changed since it was opened."""
        ends: dict[str, int] = {}
        for tensor in self._weights.tensors.values():
            ends[tensor.file] = max(ends.get(tensor.file, 0), tensor.offset + tensor.nbytes)
        for file, descriptor in (self._weights.descriptors or {}).items():
            if os.fstat(descriptor).st_size < ends.get(file, 0):
                raise ReadError(f"{file} of {self.source} was cut since it was opened; restore it, then rerun")

    def close(self) -> None:
        """Close the weight files; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._weights.close()
            for adapter in self.adapters:
                adapter.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.tensors)} tensors)"


def _check_readable(tensor: TensorInfo, where: str) -> None:
    if tensor.dtype not in NUMPY_DTYPES:
        raise UnsupportedError(
            f"tensor {shown(tensor.name)} of {where} is stored as {tensor.dtype}, which quantkit does not read; "
            f"take the checkpoint in f32, f16 or bf16"
        )
