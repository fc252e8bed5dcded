"""Validation that all floats in quantized data are finite, as llama.cpp's ggml_validate_row_data.

It is written in numpy, because ggml's function prints to stderr.
"""

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.gguf.types import Q2_0, block_size

_T = GGMLQuantizationType

# byte offsets of the half-precision scales and minimums in a block (block_* in ggml-common.h)
_HALVES: dict[GGMLQuantizationType, tuple[int, ...]] = {
    **dict.fromkeys((_T.Q4_0, _T.Q5_0, _T.Q8_0, _T.IQ4_NL, _T.IQ4_XS), (0,)),
    **dict.fromkeys((_T.IQ1_S, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S), (0,)),
    **dict.fromkeys((_T.Q4_1, _T.Q5_1, _T.Q4_K, _T.Q5_K), (0, 2)),
    _T.Q2_K: (80, 82),
    _T.Q3_K: (108,),
    _T.Q6_K: (208,),
    _T.TQ1_0: (52,),
    _T.TQ2_0: (64,),
    **dict.fromkeys((_T.Q1_0, Q2_0), (0,)),
    # a scale of 8 bits is always finite
    _T.NVFP4: (),
    _T.F16: (0,),
}
_IQ1_M_SCALES = 48


def all_finite(kind: GGMLQuantizationType, data: NDArray[np.uint8]) -> bool:
    """Whether every float in `data` is finite. `data`: contiguous uint8 of whole blocks, of any shape.

    Raises ValueError when the bytes are not whole blocks, KeyError for a type without floats.
    """
    flat = data.reshape(-1)
    if flat.size % block_size(kind)[1]:
        raise ValueError(f"{flat.size} bytes are not whole blocks of {kind.name}")
    if kind == _T.I32:
        return True
    if kind == _T.F32:
        return bool(np.isfinite(flat.view("<f4")).all())
    if kind == _T.BF16:
        return not bool(((flat.view("<u2") & 0x7F80) == 0x7F80).any())
    blocks = flat.reshape(-1, block_size(kind)[1])
    if kind == _T.MXFP4:
        return not bool((blocks[:, 0] == 0xFF).any())
    if kind == _T.IQ1_M:
        # the scale consists of the high nibbles of four 16-bit words; its exponent is in the last two
        words = np.ascontiguousarray(blocks[:, _IQ1_M_SCALES:]).view("<u2")
        return not bool((((words[:, 3] & 0x7000) == 0x7000) & ((words[:, 2] & 0xC000) == 0xC000)).any())
    return not any(bool(((_half(blocks, at) & 0x7C00) == 0x7C00).any()) for at in _HALVES[kind])


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.uint16]:
    """The 16 bits at a byte offset of each block, in place."""
    return np.ndarray((len(blocks),), "<u2", blocks, at, blocks.strides[:1])
