"""The mapping from calibration statistics to an importance matrix: the linear whose input a GGUF tensor multiplies.

llama-imatrix collects squares while llama.cpp runs. Here they come from the streamed forward of the native
architecture. Its linears have other names, and they may be fused or stacked where GGUF tensors are not. Both the
linears and the GGUF tensors consist of rows of checkpoint tensors, so these rows match them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantkit.families import MappedTensor, find_family, map_tensors
from quantkit.families.base.native import Native
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import Linear
from quantkit.imatrix.file import Imatrix

LinearKey = tuple[str, int | None]
"""(name of a native linear, its index in a stacked tensor or None)."""
Squares = Mapping[LinearKey, tuple[NDArray[np.float64], int]]
"""Linear -> sums of squares of its input, float64 (n_in,), and the number of tokens."""
_Sums = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _LinearRows:
    """Rows first..last of a checkpoint tensor that belong to a linear. `turned`: the rows are the linear's inputs."""

    first: int
    last: int
    turned: bool
    key: LinearKey
    n_in: int


def imatrix_sources(native: Native) -> dict[str, tuple[LinearKey, ...]]:
    """GGUF tensor -> the linears whose inputs it multiplies: one for every matrix stacked in the tensor, or joined.

    Only `blk.` tensors are included, as in llama-imatrix without --process-output. A tensor that is transposed in GGUF
    is not included: the native architecture does not compute its input (DeepSeek's attn_k_b). Nor is a second copy of a
    tensor, which llama.cpp loads and does not use (RWKV 7's first layer).
    """
    rows_by_tensor = _linear_rows(native)
    checkpoint = native.checkpoint
    family = find_family(checkpoint.config)
    linears = {}
    copied: set[tuple[str, bytes]] = set()
    for tensor in map_tensors(family, native.sizes, checkpoint.tensors):
        if not tensor.name.startswith("blk.") or not tensor.name.endswith(".weight") or not tensor.parts:
            continue
        cut = _one_cut(tensor)
        if cut in copied:
            continue
        copied |= {cut} if cut else set()
        keys = _grouped(tensor, rows_by_tensor) or [
            _linear_of(tensor, number, rows_by_tensor) for number in range(_n_matrices(tensor))
        ]
        complete = tuple(key for key in keys if key is not None)
        if len(complete) == len(keys):
            linears[tensor.name] = complete
    return linears


def _one_cut(tensor: MappedTensor) -> tuple[str, bytes] | None:
    """The source and its rows in the tensor, if it has one source and all columns."""
    source, take = tensor.parts[0].source, tensor.parts[0].take
    if len(tensor.parts) > 1 or take.columns is not None:
        return None
    return source, b"" if take.rows is None else take.rows[[0, -1]].tobytes()


def imatrix_columns(native: Native) -> dict[str, NDArray[np.int64]]:
    """GGUF tensor -> the input channels that its columns multiply, for tensors whose columns are in another order."""
    family = find_family(native.checkpoint.config)
    orders = {}
    for tensor in map_tensors(family, native.sizes, native.checkpoint.tensors):
        take = tensor.parts[0].take if tensor.parts else None
        if take is not None and take.columns is not None and len(tensor.shape) == 2 and not take.transposed:
            orders[tensor.name] = take.columns
    return orders


def collect_imatrix(
    squares: Squares,
    sources: Mapping[str, Sequence[LinearKey]],
    columns: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
) -> tuple[_Sums, _Sums]:
    """(sums, counts) for `write_imatrix`: float32 (n_matrices, n_in) and (n_matrices,) of the tensors in `sources`.

    `columns`: see `imatrix_columns`.
    An expert that received no token has a count of 0; readers then weight its inputs equally. A tensor with a linear
    that is not in `squares` has no entry.
    """
    sums, counts = {}, {}
    for name, keys in sources.items():
        if all(key in squares for key in keys):
            stacked = np.stack([squares[key][0] for key in keys]).astype(np.float32)
            sums[name] = stacked[:, columns[name]] if name in columns else stacked
            counts[name] = np.array([squares[key][1] for key in keys], np.float32)
    return sums, counts


def as_imatrix(
    sums: Mapping[str, NDArray[np.float32]],
    counts: Mapping[str, NDArray[np.float32]],
    *,
    datasets: Sequence[str],
    chunks: int,
    chunk_size: int,
) -> Imatrix:
    """The importance matrix that `load_imatrix` reads from the file that `write_imatrix` writes, without the file.

    `sha256` is of the names, sums and counts.
    """
    values, digest = {}, hashlib.sha256()
    for name in sorted(sums):
        per_matrix = counts[name].reshape(-1, 1)
        digest.update(name.encode() + sums[name].tobytes() + counts[name].tobytes())
        reached = per_matrix > 0
        means = np.where(reached, sums[name] / np.where(reached, per_matrix, np.float32(1)), np.float32(1))
        values[name] = means.astype(np.float32).ravel()
    return Imatrix(values, list(datasets), chunks, chunk_size, digest.hexdigest())


def _linear_rows(native: Native) -> dict[str, list[_LinearRows]]:
    """Checkpoint tensor -> the linears that its rows belong to."""
    rows_by_tensor: dict[str, list[_LinearRows]] = {}
    for number in range(native.decoder.n_layers):
        layer = layer_linears(native.architecture, native.config, number, native.tensors)
        for linear in (linear for entry in layer.inputs for linear in entry.linears):
            for source, linear_rows in _rows_of(linear, native.tensors):
                rows_by_tensor.setdefault(source, []).append(linear_rows)
    return rows_by_tensor


def _rows_of(linear: Linear, tensors: Mapping[str, MappedTensor]) -> Iterator[tuple[str, _LinearRows]]:
    packed = linear.name + "_blocks"
    tensor = tensors[packed if packed in tensors else linear.weight]
    turned = linear.form.turned and packed not in tensors
    rows = linear.n_in if turned else linear.n_out
    start = (linear.index or 0) * rows
    key = (linear.name, linear.index)
    if len(tensor.parts) == 1 and packed in tensors:
        yield tensor.parts[0].source, _LinearRows(start, start + rows - 1, turned, key, linear.n_in)
        return
    for number in range(start // tensor.part_rows, (start + rows - 1) // tensor.part_rows + 1):
        part = tensor.parts[number]
        first = max(start - number * tensor.part_rows, 0)
        last = min(start + rows - number * tensor.part_rows, tensor.part_rows)
        taken = part.take.rows
        if part.take.transposed:
            assert taken is not None  # the mapping resolves it
        elif taken is not None:
            taken = taken[first:last]
        span = (first, last - 1) if taken is None else (int(taken.min()), int(taken.max()))
        yield part.source, _LinearRows(*span, turned != part.take.transposed, key, linear.n_in)


def _grouped(tensor: MappedTensor, rows_by_tensor: Mapping[str, list[_LinearRows]]) -> list[LinearKey | None]:
    """The linears of a matrix whose rows read several inputs (DeepSeek-V4's groups of heads); [] if they read one."""
    part = tensor.parts[0]
    if len(tensor.shape) != 2 or len(tensor.parts) > 1 or part.take.rows is not None or part.take.transposed:
        return []
    keys: list[LinearKey | None] = [rows.key for rows in rows_by_tensor.get(part.source, ()) if rows.key[1] is not None]
    return keys if len(keys) > 1 else []


def _n_matrices(tensor: MappedTensor) -> int:
    return int(np.prod(tensor.shape[:-2], dtype=np.int64)) if len(tensor.shape) > 2 else 1


def _linear_of(tensor: MappedTensor, number: int, rows_by_tensor: Mapping[str, list[_LinearRows]]) -> LinearKey | None:
    """The linear of matrix `number` in a GGUF tensor; the first of several linears with the same input."""
    row = number * (tensor.shape[-2] if len(tensor.shape) > 1 else 1)
    part = tensor.parts[row // tensor.part_rows]
    within, taken = row % tensor.part_rows, part.take.rows
    at = within if taken is None else int(taken.min() if part.take.transposed else taken[within])
    for linear_rows in rows_by_tensor.get(part.source, ()):
        is_inside = linear_rows.first <= at <= linear_rows.last
        if is_inside and linear_rows.turned == part.take.transposed and linear_rows.n_in == tensor.shape[-1]:
            return linear_rows.key
    return None
