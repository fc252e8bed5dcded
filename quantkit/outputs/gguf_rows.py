"""Where the rows of a checkpoint's tensors are in its GGUF: the cuts of the family's rules, read backwards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import TensorInfo
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.adjust import Reversible
from quantkit.families.base.family import Factor, Take
from quantkit.families.base.mapped import MappedTensor
from quantkit.families.base.reading import read_in_order
from quantkit.outputs.model import Model, ModelTensor, widen

_Rows = NDArray[np.float32]


@dataclass(frozen=True)
class StoredRows:
    """Rows of a source tensor in the GGUF. `rows[i]`: the row of `tensor` that is row `sources[i]` of the source.

    `columns`: where in a row of the source the elements belong; None if they are the whole row in order. `undo`: the
    inverse of what the GGUF's values were computed by; `factors`: what its rows were multiplied by (`MappedTensor`).
    `width`: the length of a row where the GGUF divides the elements otherwise. `turned`: the rows first..last of
    `tensor` that are transposed; `rows` then counts in the transposed matrix.
    """

    tensor: ModelTensor
    sources: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64] | None = None
    undo: Callable[[_Rows], _Rows] | None = None
    width: int | None = None
    turned: tuple[int, int] | None = None
    factors: tuple[Factor, ...] = ()

    def values(self, model: Model, start: int, stop: int) -> _Rows:
        """Rows start..stop as they are in the checkpoint, but for their order; float32."""
        tensor = self.tensor

        def read(first: int, last: int) -> _Rows:
            return widen(model.read_rows(tensor.name, first, last), tensor)

        if self.turned is not None:
            rows = read(*self.turned).T[start:stop]
        elif self.width is not None:
            rows = read(0, prod(tensor.shape[:-1])).reshape(-1, self.width)[start:stop]
        else:
            rows = read(start, stop)
            for factor in reversed(self.factors):
                rows = rows / (factor[start:stop, None] if isinstance(factor, np.ndarray) else np.float32(factor))
        return rows if self.undo is None else self.undo(rows)


def stored_rows(
    mapped: list[MappedTensor],
    infos: Mapping[str, TensorInfo],
    stored: Mapping[str, ModelTensor],
    where: str,
    base: str,
) -> dict[str, list[StoredRows]]:
    """Where the rows of each source tensor are in the GGUF.

    Raises:
        CheckpointError: a tensor of the GGUF has another shape than config.json of `base` states.
        UnsupportedError: a tensor was computed in a way that has no inverse, or rows of a source tensor are not there.
    """
    places: dict[str, list[StoredRows]] = {name: [] for name in infos}
    for tensor in mapped:
        if tensor.values is not None:
            continue
        undo = tensor.adjust.undo if isinstance(tensor.adjust, Reversible) else None
        has_zero = any(not np.all(factor) for factor in tensor.factors)
        computed = (tensor.adjust and not undo) or has_zero or tensor.is_product
        if computed or tensor.is_mxfp4:
            raise not_undone(tensor.name, where)
        stored_tensor = stored[tensor.name]
        if _without_ones(stored_tensor.shape) != _without_ones(tensor.shape):
            raise CheckpointError(
                f"tensor {tensor.name} of {where} is {list(stored_tensor.shape)}, but config.json of {base} makes it"
                f" {list(tensor.shape)}; pass the model's own base"
            )
        cut = tensor if tensor.cut_shape is None else replace(tensor, shape=tensor.cut_shape, cut_shape=None)
        for number, part in enumerate(tensor.parts):
            place = StoredRows(stored_tensor, *_rows_of(cut, number), undo=undo, factors=tensor.factors)
            if tensor.cut_shape is not None:
                place = replace(place, width=cut.shape[-1])
            if part.take.transposed:
                place = _turned(place, part.take, cut, number)
            if ((place.turned or place.factors) and place.width) or (place.turned and place.factors):
                raise not_undone(tensor.name, where)
            places[part.source].append(place)
    unmapped = stored.keys() - {tensor.name for tensor in mapped}
    if unmapped:
        raise UnsupportedError(f"{where} has tensor {min(unmapped)}, which config.json of {base} does not state")
    for name, pieces in places.items():
        width = infos[name].shape[-1]
        covered = sum(len(piece.rows) * (width if piece.columns is None else len(piece.columns)) for piece in pieces)
        if covered != infos[name].n_rows * width:
            raise UnsupportedError(f"{where} does not have all of {name}; convert the original checkpoint")
    return places


def _rows_of(cut: MappedTensor, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Source rows, rows of the GGUF, and the source's columns, of one part of a tensor."""
    take = cut.parts[number].take
    rows = np.arange(number * cut.part_rows, (number + 1) * cut.part_rows, dtype=np.int64)
    columns, sources = take.columns, take.rows
    if len(cut.shape) == 1 and sources is not None:
        columns, sources = sources, None
    return (rows - rows[0] if sources is None else sources), rows, columns


def _turned(place: StoredRows, take: Take, cut: MappedTensor, number: int) -> StoredRows:
    """The place of a transposed part: a row of the source is a column of the GGUF."""
    assert take.rows is not None  # the mapping lists the rows of every transposed cut
    first, last = number * cut.part_rows, (number + 1) * cut.part_rows
    return replace(place, sources=take.rows, rows=np.arange(len(take.rows), dtype=np.int64), turned=(first, last))


def not_undone(name: str, where: str) -> UnsupportedError:
    """The error for the tensor `name` of a GGUF that its checkpoint's tensors cannot be read from."""
    return UnsupportedError(
        f"tensor {name} of {where} was computed from the checkpoint's, which cannot be undone; convert the original"
        " checkpoint"
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones, which a GGUF may leave out."""
    first = next((n for n, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])


def read_source_rows(model: Model, places: list[StoredRows], width: int, start: int, stop: int) -> _Rows:
    """Rows start..stop of a source tensor whose rows have `width` elements, float32."""
    result = np.empty((stop - start, width), np.float32)
    for place in places:
        chosen = np.flatnonzero((place.sources >= start) & (place.sources < stop))
        if not len(chosen):
            continue
        values = read_in_order(partial(place.values, model), place.rows[chosen])
        rows = place.sources[chosen] - start
        if place.columns is None:
            result[rows] = values
        else:
            result[rows[:, None], place.columns] = values
    return result
