"""Values in MXFP4, as models are published."""

import numpy as np

# OCP Microscaling Formats 1.0, 5.3.3: E2M1, a sign and these eight magnitudes.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])


def to_mxfp4(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in blocks of 32: (values as MXFP4 has them, blocks (..., n, 16) uint8, scales (..., n) uint8).

    A block is 32 codes of E2M1, the first of a pair in the low half of a byte, times two to the (scale - 127).
    """
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.abs(blocks).max(axis=-1, keepdims=True))) - 2
    codes = np.abs(blocks[..., None] / np.exp2(exponent)[..., None] - E2M1).argmin(axis=-1).astype(np.uint8)
    near = (E2M1[codes] * np.exp2(exponent)).astype(np.float32)
    scales = (exponent[..., 0] + 127).astype(np.uint8)
    return near.reshape(values.shape), codes[..., 0::2] | codes[..., 1::2] << 4, scales
