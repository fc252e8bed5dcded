"""Computations on values of a tensor that have an inverse, so that a GGUF can be read as the checkpoint again."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Reversible:
    """An adjustment of float32 rows; `undo` computes the checkpoint's rows from those of the GGUF."""

    compute: Callable[[_Rows], _Rows]
    undo: Callable[[_Rows], _Rows]

    def __call__(self, rows: _Rows) -> _Rows:
        return self.compute(rows)


def plus(constant: float) -> Reversible:
    """A norm as llama.cpp multiplies by it; the model multiplies by `constant` + weight.

    The sum is rounded to float32. So `undo` is exact to half a unit in the last place of the sum: 6e-8 at 1.
    """
    added = np.float32(constant)
    return Reversible(lambda rows: rows + added, lambda rows: rows - added)


plus_one = plus(1.0)


def _negative_exp(rows: _Rows) -> _Rows:
    return (-np.exp(rows.astype(np.float64))).astype(np.float32)


def _log_of_negative(rows: _Rows) -> _Rows:
    return np.log(-rows.astype(np.float64)).astype(np.float32)


negative_exp = Reversible(_negative_exp, _log_of_negative)
"""-exp of the logarithm of the decay, rounded once from float64; the converter's torch may be one ulp off."""
