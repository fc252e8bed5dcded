"""Reading rows of a mapped tensor from the checkpoint; only this module applies the rules' cuts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.mapped import MXFP4_BLOCK, MappedTensor, Part

ReadRows = Callable[[str, int, int], NDArray[Any]]

# Runs of needed rows with at most this many other rows between them are read together.
_GAP = 8


def read_mapped(read_rows: ReadRows, tensor: MappedTensor, start: int, stop: int) -> NDArray[Any]:
    """Rows start..stop of `tensor`, seen as (prod(shape[:-1]), shape[-1]): an array (stop - start, shape[-1]).

    `read_rows(name, start, stop)` reads rows of a source tensor in its own type. The result has that
    type, or float32 if the values were adjusted or computed. MXFP4 blocks are uint8 (stop - start, bytes of a row).
    Start and stop are multiples of `tensor.row_step`, or the end.
    """
    if tensor.values is not None:
        return tensor.values.reshape(-1, tensor.shape[-1])[start:stop]
    if tensor.cut_shape is not None:
        cut = replace(tensor, shape=tensor.cut_shape, cut_shape=None)
        whole = read_mapped(read_rows, cut, 0, cut.part_rows * len(cut.parts))
        return whole.reshape(-1, tensor.shape[-1])[start:stop]
    rows = tensor.part_rows
    pieces = []
    for index in range(start // rows, -(-stop // rows)):
        part = tensor.parts[index]
        read = _packed(read_rows, part, tensor.shape[-1] // MXFP4_BLOCK) if part.scales else _plain(read_rows, part)
        pieces.append(_cut(read, part, max(start - index * rows, 0), min(stop - index * rows, rows)))
    values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if (times := tensor.parts[0].times) is not None:
        values = values.astype(np.float32) * read_rows(times, 0, 1).astype(np.float32)
    for factor in tensor.factors:
        by_row = factor[start:stop, None] if isinstance(factor, np.ndarray) else np.float32(factor)
        values = values.astype(np.float32) * by_row
    return values if tensor.adjust is None else tensor.adjust(values.astype(np.float32))


def _cut(read: Callable[[int, int], NDArray[Any]], part: Part, start: int, stop: int) -> NDArray[Any]:
    take = part.take
    if take.transposed:
        assert take.rows is not None  # the mapping lists the rows of every transposed cut
        values = read_in_order(read, take.rows)
        return np.ascontiguousarray((values if take.columns is None else values[:, take.columns]).T[start:stop])
    values = read(start, stop) if take.rows is None else read_in_order(read, take.rows[start:stop])
    return values if take.columns is None else values[:, take.columns]


def read_in_order(read: Callable[[int, int], NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The rows in the given order; each run of neighbouring rows is read once."""
    order = np.argsort(rows, kind="stable")
    pieces = []
    for run in _runs(rows[order]):
        first = int(run[0])
        pieces.append(read(first, int(run[-1]) + 1)[run - first])
    values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return values[back]


def _runs(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    yield from np.split(rows, np.flatnonzero(np.diff(rows) > _GAP + 1) + 1)


def _plain(read_rows: ReadRows, part: Part) -> Callable[[int, int], NDArray[Any]]:
    return lambda start, stop: read_rows(part.source, start, stop)


def _packed(read_rows: ReadRows, part: Part, blocks: int) -> Callable[[int, int], NDArray[Any]]:
    """Rows of MXFP4 blocks as ggml has them: a scale byte, then 16 bytes whose halves are values i and i + 16.

    The checkpoint's bytes hold neighbours, 2i in the low half (OCP Microscaling Formats 1.0; ggml's block_mxfp4).
    """
    scales = part.scales
    assert scales is not None

    def read(start: int, stop: int) -> NDArray[Any]:
        pairs = read_rows(part.source, start * blocks, stop * blocks)
        values = np.stack([pairs & 0x0F, pairs >> 4], axis=-1).reshape(len(pairs), MXFP4_BLOCK)
        half = MXFP4_BLOCK // 2
        codes = values[:, :half] | values[:, half:] << 4
        scale = read_rows(scales, start, stop).reshape(-1, 1)
        return np.concatenate([scale, codes], axis=1).reshape(stop - start, -1)

    return read
