"""Rows come back as the reference library reads them, from any thread, without the file ever being read whole."""

import math
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import psutil
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError
from tests.checkpoint.files import SHARDS, sharded, single, write_config


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1]) if array.ndim else array.reshape(1, 1)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint16, np.uint32, np.bool_]
)
def test_values_equal_the_reference_librarys_for_every_shape(tmp_path: Path, dtype: type) -> None:
    rng = np.random.default_rng(1)
    shapes = [(), (7,), (5, 3), (2, 3, 4), (0, 4), (4, 0), (1, 1)]
    single(tmp_path, {f"t{n}": rng.integers(0, 2, shape).astype(dtype) for n, shape in enumerate(shapes)})
    with open_checkpoint(str(tmp_path)) as ours, safe_open(tmp_path / "model.safetensors", "np") as reference:
        for name, info in ours.tensors.items():
            expected = _rows(reference.get_tensor(name))
            assert info.read_dtype == np.dtype(dtype)
            assert info.n_params == expected.size
            for start, stop in ((0, len(expected)), (0, 0), (len(expected) // 2, len(expected))):
                got = ours.read_rows(name, start, stop)
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected[start:stop], strict=True)


def test_bf16_keeps_every_bit_even_of_nan_and_subnormals(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    single(tmp_path, {"w": every.view(ml_dtypes.bfloat16)})
    with open_checkpoint(str(tmp_path)) as checkpoint:
        got = checkpoint.read_rows("w", 3, 250)
    assert got.dtype == np.dtype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.view(np.uint16), every[3:250])


def test_f64_comes_as_f32_rounded_to_nearest(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((4, 5))
    single(tmp_path, {"w": values})
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.tensors["w"].read_dtype == np.float32
        got = checkpoint.read_rows("w", 0, 4)
    np.testing.assert_array_equal(got, values.astype(np.float32), strict=True)


def test_a_buffer_belongs_to_its_caller(tmp_path: Path) -> None:
    single(tmp_path, {"w": np.ones((2, 2), np.float32)})
    with open_checkpoint(str(tmp_path)) as checkpoint:
        first = checkpoint.read_rows("w", 0, 2)
        first[:] = 7
        assert (checkpoint.read_rows("w", 0, 2) == 1).all()


def test_many_threads_read_the_same_shards_without_mixing_them_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {f"layer.{n}.weight": rng.standard_normal((64, 48)).astype(np.float32) for n in range(16)}
    single(tmp_path, arrays)
    jobs = [(name, start) for name in arrays for start in range(0, 64, 8)] * 8
    random.Random(4).shuffle(jobs)
    gate = threading.Barrier(8)
    with open_checkpoint(str(tmp_path)) as checkpoint, ThreadPoolExecutor(8, initializer=gate.wait) as pool:
        for (name, start), got in zip(
            jobs, pool.map(lambda job: checkpoint.read_rows(job[0], job[1], job[1] + 8), jobs), strict=True
        ):
            np.testing.assert_array_equal(got, arrays[name][start : start + 8])


def test_reading_one_row_of_a_large_tensor_costs_no_memory_to_speak_of(tmp_path: Path) -> None:
    size = 1 << 30
    folder = write_config(tmp_path)
    header = f'{{"w":{{"dtype":"F32","shape":[{size // 4096},1024],"data_offsets":[0,{size}]}}}}'.encode()
    with (folder / "model.safetensors").open("wb") as file:  # sparse: a gigabyte of zeros that takes no disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    process = psutil.Process()
    with open_checkpoint(str(folder)) as checkpoint:
        before = process.memory_info().rss
        for start in range(0, size // 4096, 1 << 12):
            checkpoint.read_rows("w", start, start + 1)
        assert process.memory_info().rss - before < 4 << 20


def test_a_file_that_shrinks_while_open_is_reported_with_file_and_tensor(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    with open_checkpoint(str(folder)) as checkpoint:
        os.truncate(folder / SHARDS[1], (folder / SHARDS[1]).stat().st_size - 1)
        checkpoint.read_rows("c.weight", 0, 4)
        with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors.*'d\.weight'"):
            checkpoint.read_rows("d.weight", 0, 4)


def test_a_file_replaced_while_open_does_not_change_what_is_read(tmp_path: Path) -> None:
    single(tmp_path, {"w": np.ones((2, 2), np.float32)})
    with open_checkpoint(str(tmp_path)) as checkpoint:
        save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / "new")
        (tmp_path / "new").replace(tmp_path / "model.safetensors")
        assert (checkpoint.read_rows("w", 0, 2) == 1).all()


def test_a_tensor_that_is_not_there_and_rows_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with open_checkpoint(str(single(tmp_path))) as checkpoint:
        with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.weight'"):
            checkpoint.read_rows("lm_head.weight", 0, 1)
        for start, stop in ((0, 7), (-1, 2), (3, 2)):
            with pytest.raises(ValueError, match="which has 6"):
                checkpoint.read_rows("model.embed_tokens.weight", start, stop)


def test_after_close_reading_is_refused_and_closing_again_does_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(single(tmp_path)))
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.read_rows("model.norm.weight", 0, 1)
