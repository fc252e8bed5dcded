"""Scaled f8 becomes float32 by the published formula: value times the scale of its block."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from tests.checkpoint.files import refusal, single

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
BLOCK = {**FP8, "weight_block_size": [128, 128]}


def _weight(shape: tuple[int, ...], dtype: Any = ml_dtypes.float8_e4m3fn, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 20).astype(np.float32).astype(dtype)


def _scales(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1e-4, 1e-2, shape).astype(dtype)


def _blockwise(weight: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The formula, element by element block, in numpy and ml_dtypes alone."""
    out = np.empty(weight.shape, np.float32)
    for row in range(0, weight.shape[0], block[0]):
        for column in range(0, weight.shape[1], block[1]):
            part = weight[row : row + block[0], column : column + block[1]].astype(np.float32)
            scale = np.float32(scales[row // block[0], column // block[1]])
            out[row : row + block[0], column : column + block[1]] = part * scale
    return out


def _read(folder: Path, name: str, start: int, stop: int) -> np.ndarray:
    with open_checkpoint(str(folder)) as checkpoint:
        return checkpoint.read_rows(name, start, stop)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_blocks_of_128_with_partial_blocks_at_both_edges(tmp_path: Path, dtype: Any, scale_dtype: Any) -> None:
    weight, scales = _weight((300, 200), dtype), _scales((3, 2), scale_dtype)
    single(tmp_path, {"w.weight": weight, "w.weight_scale_inv": scales}, quantization_config=BLOCK)
    expected = _blockwise(weight, scales, (128, 128))
    for start, stop in ((0, 300), (0, 1), (127, 129), (256, 300), (5, 5)):
        got = _read(tmp_path, "w.weight", start, stop)
        np.testing.assert_array_equal(got, expected[start:stop], strict=True)


def test_the_block_size_is_the_configs_and_128_where_it_says_nothing(tmp_path: Path) -> None:
    weight, scales = _weight((70, 96)), _scales((3, 2))
    single(
        tmp_path / "small",
        {"w.weight": weight, "w.weight_scale_inv": scales},
        quantization_config={**FP8, "weight_block_size": [32, 64]},
    )
    np.testing.assert_array_equal(_read(tmp_path / "small", "w.weight", 0, 70), _blockwise(weight, scales, (32, 64)))
    weight, scales = _weight((130, 256)), _scales((2, 2))
    single(tmp_path / "default", {"w.weight": weight, "w.weight_scale_inv": scales}, quantization_config=FP8)
    np.testing.assert_array_equal(
        _read(tmp_path / "default", "w.weight", 0, 130), _blockwise(weight, scales, (128, 128))
    )


def test_every_f8_bit_pattern_keeps_its_value(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(2, 128)
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        single(tmp_path / dtype.__name__, {"w": every.view(dtype)})
        np.testing.assert_array_equal(_read(tmp_path / dtype.__name__, "w", 0, 2), every.view(dtype).astype(np.float32))


def test_a_stack_of_experts_has_a_grid_of_scales_for_each(tmp_path: Path) -> None:
    weight, scales = _weight((3, 150, 130)), _scales((3, 2, 2))
    single(tmp_path, {"experts.up_proj": weight, "experts.up_proj_scale_inv": scales}, quantization_config=BLOCK)
    expected = np.concatenate([_blockwise(weight[n], scales[n], (128, 128)) for n in range(3)])
    for start, stop in ((0, 450), (149, 151), (140, 310)):
        np.testing.assert_array_equal(_read(tmp_path, "experts.up_proj", start, stop), expected[start:stop])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_the_tensor(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight, scale = _weight((200, 160)), _scales(shape)
    config = {**FP8, "activation_scheme": "static", "weight_block_size": None}
    arrays = {"w.weight": weight, "w.weight_scale_inv": scale, "w.activation_scale": _scales(())}
    single(tmp_path, arrays, quantization_config=config)
    expected = weight.astype(np.float32) * scale.reshape(())
    np.testing.assert_array_equal(_read(tmp_path, "w.weight", 10, 190), expected[10:190])


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_one_scale_for_each_row_as_compressed_tensors_stores_them(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight, scales = _weight((20, 300)), _scales(shape, ml_dtypes.bfloat16)
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    single(tmp_path, {"w.weight": weight, "w.weight_scale": scales}, quantization_config=config)
    expected = weight.astype(np.float32) * scales.astype(np.float32).reshape(20, 1)
    np.testing.assert_array_equal(_read(tmp_path, "w.weight", 3, 17), expected[3:17])


def test_one_scale_for_each_expert_of_a_stack(tmp_path: Path) -> None:
    weight, scales = _weight((4, 10, 300)), _scales((4, 1, 1))
    single(tmp_path, {"e": weight, "e_scale_inv": scales}, quantization_config={**FP8, "weight_block_size": None})
    expected = (weight.astype(np.float32) * scales).reshape(40, 300)
    np.testing.assert_array_equal(_read(tmp_path, "e", 5, 38), expected[5:38])


def test_scales_are_powers_of_two_where_they_are_stored_as_exponents(tmp_path: Path) -> None:
    weight, exponents = _weight((128, 256)), np.array([[120, 131]], np.uint8)
    arrays = {"w.weight": weight, "w.weight_scale_inv": exponents.view(ml_dtypes.float8_e8m0fnu)}
    single(tmp_path, arrays, quantization_config=BLOCK)
    expected = weight.astype(np.float32) * np.repeat(np.float32([2.0**-7, 2.0**4]), 128)
    np.testing.assert_array_equal(_read(tmp_path, "w.weight", 0, 128), expected)


def test_the_scales_are_hidden_and_the_tensor_says_where_they_are(tmp_path: Path) -> None:
    arrays = {
        "a.weight": _weight((128, 128)),
        "a.weight_scale_inv": _scales((1, 1)),
        "a.input_scale": _scales(()),
        "norm.weight": np.ones(128, np.float32),
        "router_scale": np.ones(4, np.float32),
    }
    single(tmp_path, arrays, quantization_config=BLOCK)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight", "norm.weight", "router_scale"]
        assert checkpoint.tensors["a.weight"].scale == "a.weight_scale_inv"
        assert checkpoint.tensors["a.weight"].read_dtype == np.float32
        assert checkpoint.tensors["norm.weight"].scale is None
        with pytest.raises(CheckpointError, match="no tensor"):
            checkpoint.read_rows("a.weight_scale_inv", 0, 1)


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    single(tmp_path, {"w.weight": _weight((128, 128))}, quantization_config=BLOCK)
    assert "'w.weight_scale_inv' is missing" in refusal(tmp_path, CheckpointError)


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (2, 3), (2, 2, 1), (4,)])
def test_scales_of_the_wrong_shape_are_refused_with_both_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = {"w.weight": _weight((200, 200)), "w.weight_scale_inv": _scales(shape)}
    single(tmp_path, arrays, quantization_config=BLOCK)
    message = refusal(tmp_path, CheckpointError)
    assert str(list(shape)) in message and "[200, 200]" in message and "128 x 128" in message


@pytest.mark.parametrize("size", [[128], [128, 0], [128, -1], "128", [128.0, 128], [True, 128], 128])
def test_a_block_size_that_makes_no_sense_is_refused(tmp_path: Path, size: object) -> None:
    arrays = {"w.weight": _weight((128, 128)), "w.weight_scale_inv": _scales((1, 1))}
    single(tmp_path, arrays, quantization_config={**FP8, "weight_block_size": size})
    assert "weight_block_size" in refusal(tmp_path, CheckpointError)


def test_scales_of_an_integer_type_are_refused(tmp_path: Path) -> None:
    arrays = {"w.weight": _weight((128, 128)), "w.weight_scale_inv": np.ones((1, 1), np.int32)}
    single(tmp_path, arrays, quantization_config=BLOCK)
    assert "I32" in refusal(tmp_path, UnsupportedError)


def test_compressed_tensors_of_packed_integers_are_refused(tmp_path: Path) -> None:
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    single(tmp_path, {"w.weight": np.zeros((4, 4), np.float32)}, quantization_config=config)
    assert "already quantized" in refusal(tmp_path, UnsupportedError)
