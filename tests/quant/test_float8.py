"""Rounding to 8-bit floats against the casts of ml_dtypes."""

import ml_dtypes
import numpy as np

from quantkit.quant.float8 import LARGEST, nearest_float8, to_float8


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
