"""Packed blocks against ggml's own dequantization, and against gguf-py's."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from quantkit.gguf.blocks import FORMATS, Blocks, pack_blocks
from quantkit.gguf.kernels import dequantize_rows


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_packed_blocks_decode_to_their_scales_and_points(kind: GGMLQuantizationType) -> None:
    rng, format_ = np.random.default_rng(7), FORMATS[kind]
    n_rows, n_blocks = 5, 3
    n_cols, n_groups = n_blocks * format_.block, n_blocks * format_.groups
    points = (
        rng.choice(format_.table, (n_rows, n_cols))
        if format_.table
        else rng.integers(format_.low, format_.high, (n_rows, n_cols), endpoint=True)
    ).astype(np.float32)
    d = rng.normal(0, 0.01, (n_rows, n_blocks)).astype(np.float16).astype(np.float32)
    dmin = rng.normal(0, 0.01, (n_rows, n_blocks)).astype(np.float16).astype(np.float32)
    scales = rng.integers(format_.least_scale, format_.greatest_scale, (n_rows, n_groups), endpoint=True)
    minima = rng.integers(min(1, format_.greatest_minimum), format_.greatest_minimum, (n_rows, n_groups), endpoint=True)
    with_minima = format_.greatest_minimum > 0
    blocks = Blocks(
        points,
        d,
        dmin if with_minima else None,
        scales.astype(np.int16),
        minima.astype(np.int16) if with_minima else None,
    )
    packed = pack_blocks(kind, blocks)
    step = np.repeat(np.repeat(d, format_.groups, 1) * scales, format_.group, 1)
    base = np.repeat(np.repeat(dmin, format_.groups, 1) * minima, format_.group, 1)
    expected = step * points - (base if with_minima else 0)
    np.testing.assert_allclose(dequantize_rows(kind, packed, n_cols), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gguf.dequantize(packed, kind), expected, rtol=1e-6, atol=1e-7)
