"""Values of packed weights: streams of bits in words, 4-bit floats, scales that are powers of two.

Pure functions on arrays, for every room that reads a quantized format.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([_E2M1, -_E2M1])
"""The values of 4-bit floats (e2m1), by their 16 codes; the highest bit is the sign."""


def unpack_stream(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` integers of each row of 32-bit words (n, m): uint8 (n, count).

    Value k is at bit k * bits of the row; bit 0 is the lowest bit of the first word. A value may cross words.
    """
    rows = np.ascontiguousarray(words).view("<u4")
    per_word = 32 // bits
    if 32 % bits == 0:
        values = np.empty((*rows.shape, per_word), np.uint8)
        for index in range(per_word):
            values[:, :, index] = (rows >> np.uint32(index * bits)) & np.uint32((1 << bits) - 1)
        return values.reshape(len(rows), -1)[:, :count]
    bytes_ = rows.view(np.uint8)
    padded = np.concatenate([bytes_, np.zeros((len(rows), 1), np.uint8)], axis=1).astype(np.uint16)
    at = np.arange(count) * bits
    pairs = padded[:, at // 8] | padded[:, at // 8 + 1] << 8
    return ((pairs >> (at % 8).astype(np.uint16)) & ((1 << bits) - 1)).astype(np.uint8)


def float4_values(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The values of 4-bit floats (e2m1), two to a byte, the first in the low bits: float32 (n, 2 m) of uint8 (n, m)."""
    values = np.empty((*packed.shape, 2), np.float32)
    values[..., 0] = E2M1[packed & 15]
    values[..., 1] = E2M1[packed >> 4]
    return values.reshape(*packed.shape[:-1], -1)


def power_scales(exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scales of 8 bits of exponent (e8m0): 2^(e - 127), float32."""
    scales: NDArray[np.float32] = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    return scales
