"""The order of rows that turn in pairs."""

import numpy as np
from numpy.typing import NDArray


def interleave_rotary_rows(n_head: int, n_rows: int) -> NDArray[np.int64]:
    """Row order from half-split rotary pairs (i, i + d/2) to neighbours (2i, 2i + 1), head by head.

    Returns int64 (n_rows,): row r of the result is row `order[r]` of the source. llama.cpp's converter calls this
    `permute`; its "norm" rope rotates neighbouring values, transformers rotates halves.
    """
    return np.arange(n_rows, dtype=np.int64).reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)
