"""Tables of the types whose values are points of a lattice: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.

A place is any combination of levels: of 8 values with 3 levels, or of 4 values with 8 levels. ggml rounds values to a
place. If the place is not a point of the type's grid, ggml compares the grid points around it (iq2xs_init_impl and
iq3xs_init_impl of ggml-quants.c). The grids are the gguf package's.
"""

import functools
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

_T = GGMLQuantizationType
# the grid points around a place: those at as many different distances, the least first
_SHELLS = {_T.IQ2_XXS: 2, _T.IQ2_XS: 2, _T.IQ2_S: 1, _T.IQ3_XXS: 2, _T.IQ3_S: 3}
LATTICE_KINDS = tuple(_SHELLS)
"""In the order of c/iq_grids.c."""
_STEP = 16


@dataclass(frozen=True)
class GridTables:
    """`Grid` of c/iq_grids.c. A place's number has its first value's level as the lowest digit."""

    start: NDArray[np.int32]
    """(places + 1,): the first neighbour of each place, in steps of 16."""
    neighbour: NDArray[np.uint16]
    """(steps * 16,): levels of 2 or 3 bits; the last neighbour of a place is repeated to a full step."""
    index: NDArray[np.uint16]
    """(places,): the number of the grid point; 0 elsewhere."""


def grid_levels(kind: GGMLQuantizationType) -> NDArray[np.int64]:
    """The grid points of a type, (n_points, n_values): levels from 0."""
    rounding = getattr(quants, kind.name)
    rounding.init_grid()
    values = rounding.grid.reshape(-1, rounding.grid.shape[-1])
    points: NDArray[np.int64] = np.searchsorted(np.asarray(rounding.grid_map, dtype=values.dtype), values)
    return points


@functools.cache
def grid_tables(kind: GGMLQuantizationType) -> GridTables:
    """The tables of a type. They are kept, because the compiled library refers to them."""
    grid = grid_levels(kind)
    n_values = grid.shape[1]
    levels, bits = (3, 2) if n_values == 8 else (8, 3)
    digits = levels ** np.arange(n_values)
    places = np.arange(levels**n_values)[:, None] // digits % levels
    distance = np.zeros((len(places), len(grid)), dtype=np.uint8)
    for i in range(n_values):
        distance += ((places[:, i, None] - grid[:, i]) ** 2).astype(np.uint8)
    furthest = distance.min(axis=1)
    on_grid = furthest == 0
    for _ in range(_SHELLS[kind] - 1):
        furthest = np.where(distance > furthest[:, None], distance, 255).min(axis=1)
    around = (distance <= furthest[:, None]) & ~on_grid[:, None]
    off_grid, point = np.nonzero(around)
    order = np.lexsort((point, distance[off_grid, point], off_grid))
    off_grid, point = off_grid[order], point[order]

    counts = around.sum(axis=1)
    steps = -(-counts // _STEP)
    start = np.concatenate([[0], np.cumsum(steps)])
    rank = np.arange(len(off_grid)) - np.repeat(np.cumsum(counts) - counts, counts)
    codes = (grid << bits * np.arange(n_values)).sum(axis=1)
    last = codes[point[np.cumsum(counts) - 1]]
    neighbour = np.repeat(last, steps * _STEP)
    neighbour[_STEP * start[off_grid] + rank] = codes[point]
    index = np.zeros(len(places), dtype=np.uint16)
    index[grid @ digits] = np.arange(len(grid))
    return GridTables(start.astype(np.int32), neighbour.astype(np.uint16), index)
