"""Rounding to 8-bit floats against the casts of ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from quantkit.quant.float8 import (
    BLOCK,
    LARGEST,
    bfloat16_to_float8,
    block_maxima,
    in_numpy,
    nearest_float8,
    row_maxima,
    scales_of,
    to_float8,
)
from quantkit.quant.float8_kernel import bfloat16_kernel, rounding_kernel, same_bytes


def test_every_half_and_bfloat16_and_its_neighbours_round_as_ml_dtypes_rounds() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = np.concatenate(
        [halves.view(np.float16).astype(np.float32), halves.view(ml_dtypes.bfloat16).astype(np.float32)]
    )
    values = values[np.abs(values) <= LARGEST]
    # ties lie on halves; their neighbours in float32 are just beside
    for x in (values, np.nextafter(values, np.float32(0)), np.nextafter(values, np.float32(LARGEST))):
        assert (nearest_float8(x) == x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()


def test_larger_magnitudes_than_the_largest_float_become_it() -> None:
    w = np.array([[1000.0, -1000.0, 448.0, 464.1]], np.float32)
    assert to_float8(w, np.ones((1, 1), np.float32)).view(ml_dtypes.float8_e4m3fn).astype(float).tolist() == [
        [448.0, -448.0, 448.0, 448.0]
    ]


@pytest.mark.parametrize("block", [0, BLOCK])
def test_bfloat16_rounds_without_float32_to_the_same_bytes_and_scales(block: int) -> None:
    if bfloat16_kernel(in_numpy) is None:
        pytest.skip("no C compiler")
    rng = np.random.default_rng(2)
    for rows, columns in ((1, 1), (3, 17), (128, 256), (200, 130)):
        w = (rng.standard_normal((rows, columns)) * np.exp2(rng.integers(-30, 30, (rows, 1)))).astype(
            ml_dtypes.bfloat16
        )
        wide = w.astype(np.float32)
        scales = scales_of(block_maxima(wide) if block else row_maxima(wide))
        made = bfloat16_to_float8(w, block, lambda own: own)
        assert made is not None
        assert np.array_equal(made[1], scales) and np.array_equal(made[0], in_numpy(wide, scales, block))
        for bad in (np.nan, np.inf, -np.inf):
            w[-1, -1] = bad
            assert bfloat16_to_float8(w, block, lambda own: own) is None


def test_the_c_kernel_has_the_bytes_of_numpy_and_one_that_differs_is_not_used() -> None:
    kernel = rounding_kernel(in_numpy)
    if kernel is None:
        pytest.skip("no C compiler")
    rng = np.random.default_rng(1)
    for rows, columns in ((1, 1), (3, 17), (128, 256), (200, 130)):
        w = (rng.standard_normal((rows, columns)) * np.exp2(rng.integers(-30, 30, (rows, 1)))).astype(np.float32)
        for maxima, block in ((row_maxima(w), 0), (block_maxima(w), BLOCK)):
            scales = scales_of(maxima)
            assert np.array_equal(kernel(w, scales, block), in_numpy(w, scales, block))
            expected = w / (np.kron(scales, np.ones((BLOCK, BLOCK)))[:rows, :columns] if block else scales)
            cast = np.clip(expected, -LARGEST, LARGEST).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
            assert np.array_equal(kernel(w, scales, block), cast.view(np.uint8))
    assert not same_bytes(lambda w, scales, block: kernel(w, scales, block) ^ 1, in_numpy)
