"""Fallback kernels when no ggml library can be loaded: the numpy code of the gguf package."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

_T = GGMLQuantizationType

# the types whose bytes equal ggml's, and those of them that ggml quantizes differently with importances
EXACT = frozenset({_T.F32, _T.F16, _T.BF16, _T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0, _T.TQ1_0, _T.TQ2_0, _T.MXFP4})
CHANGED_BY_WEIGHTS = frozenset({_T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1})


def quantize(kind: GGMLQuantizationType, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantize float32 (n_rows, n_cols) to uint8 (n_rows, row_bytes), for the types in EXACT."""
    with np.errstate(all="ignore"):  # ggml does not report overflow either, and the result is validated
        return np.ascontiguousarray(gguf.quantize(rows, kind)).view(np.uint8).reshape(len(rows), -1)


def dequantize(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Dequantize uint8 (n_rows, row_bytes) to float32 (n_rows, n_cols), for every type."""
    floats = {_T.F32: np.float32, _T.F16: np.float16}.get(kind)
    if floats is not None:
        return data.view(floats).astype(np.float32)
    result: NDArray[np.float32] = gguf.dequantize(data, kind)
    return result
