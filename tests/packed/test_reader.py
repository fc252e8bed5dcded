"""Quantized folders read back, by a reader that shares nothing with the packing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.forward.weights import f32
from quantkit.outputs.packed_folders import all_layers
from quantkit.packed.layout import plan_folder
from quantkit.packed.packing import Packed, pack_awq, pack_gptq
from quantkit.packed.reader import QuantizedFolder, open_quantized
from quantkit.packed.writer import FolderWriter
from quantkit.quant.grid import Grid, Quantized
from quantkit.quant.rounding import round_to_nearest
from tests.families.expected import write_checkpoint
from tests.helpers.tiny import tiny_llama
from tests.packed.folders import write_folder
from tests.quant.matrices import random_quantized

TOKENS = [1, 5, 9, 200, 33, 7]
NAMES = {"F16": "<f2", "I32": "<i4"}


def folder_of(packed: Packed, quantization: dict[str, Any], folder: Path) -> Path:
    """One linear as a folder."""
    stated = [
        (f"layer.{name}", "F16" if array.dtype == np.float16 else "I32", array.shape) for name, array in packed.items()
    ]
    with FolderWriter(folder, plan_folder(stated)) as writer:
        for name, array in packed.items():
            writer.write(f"layer.{name}", array)
        (folder.parent / "none").mkdir(exist_ok=True)
        writer.finish({"quantization_config": quantization}, folder.parent / "none")
    return folder


def dequantized(folder: Path) -> np.ndarray:
    with open_quantized(folder) as opened:
        whole = opened.dequantized("layer")
        pieces = [opened.dequantized("layer", start, start + 5) for start in range(0, len(whole), 5)]
        assert np.array_equal(np.concatenate(pieces), whole)
        return whole


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_awq_reads_back_as_it_was_meant(bits: int, group: int, tmp_path: Path) -> None:
    quantized = random_quantized(Grid(bits, group), n_out=64, n_in=96)
    config = {"quant_method": "awq", "version": "gemm", "bits": bits, "group_size": group, "zero_point": True}
    assert np.array_equal(dequantized(folder_of(pack_awq(quantized), config, tmp_path / "f")), quantized.dequantized())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_reads_back_with_groups_in_any_order(bits: int, version: int, tmp_path: Path) -> None:
    made = random_quantized(Grid(bits, 32), n_out=64, n_in=96, least_zero=2 - version)
    order = np.random.default_rng(3).permutation(made.groups).astype(np.int32)
    quantized = Quantized(made.grid, made.q, made.scales, made.zeros, order)
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True}
    config |= {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    matrix = dequantized(folder_of(pack_gptq(quantized, version), config, tmp_path / "f"))
    assert np.array_equal(matrix, quantized.dequantized())


def test_a_gptq_folder_without_g_idx_has_its_groups_in_order(tmp_path: Path) -> None:
    quantized = random_quantized(Grid(4, 32), n_out=64, n_in=96, least_zero=1)
    packed = {name: array for name, array in pack_gptq(quantized, 1).items() if name != "g_idx"}
    matrix = dequantized(folder_of(packed, {"quant_method": "gptq", "bits": 4, "group_size": 32}, tmp_path / "f"))
    assert np.array_equal(matrix, quantized.dequantized())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptqmodels_zeros_of_nought_borrow_from_their_neighbours(bits: int, tmp_path: Path) -> None:
    quantized = random_quantized(Grid(bits, 32), n_out=64, n_in=96)
    packed = pack_gptq(quantized, 2)
    ones = np.uint32(sum(1 << at for at in range(0, 32, bits)))
    packed["qzeros"] = (packed["qzeros"].view(np.uint32) - ones).view(np.int32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": "gptq"}
    config["meta"] = {"quantizer": ["gptqmodel:7.6.0"]}
    assert np.array_equal(dequantized(folder_of(packed, config, tmp_path / "f")), quantized.dequantized())


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("model", ["llama", "qwen2moe", "gpt2", "mixtral"])
def test_the_forward_runs_on_a_folder_as_on_the_rounded_weights(model: str, method: str, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m") if model == "llama" else write_checkpoint(model, tmp_path / "m")
    grid = Grid(4, 16, symmetric=method == "gptq")
    write_folder(source, tmp_path / "q", method, grid, max_shard=1_000_000)
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint)
        linears = {
            f"{linear.name}.weight": linear
            for layer in all_layers(native)
            for group in layer.inputs
            for linear in group.linears
            if not linear.kept
        }

        def whole(name: str) -> np.ndarray:
            values = f32(native.whole(name))
            if name not in linears:
                return values.astype(np.float16)
            if linears[name].form.turned:
                return round_to_nearest(values.T, grid).dequantized().T
            return round_to_nearest(values, grid).dequantized()

        expected = reference_logits(whole, native.config, TOKENS, names=native.tensors.keys())
    with open_quantized(tmp_path / "q") as folder:
        assert folder.names == native.tensors.keys()
        result = reference_logits(folder.whole, folder.config, TOKENS, rows=folder.rows, names=folder.names)
    assert np.allclose(result, expected, atol=1e-4 * float(np.abs(expected).max()))


def _config(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    write_folder(tiny_llama(folder / "m"), folder / "q")
    return folder / "q"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda c: c.update(quant_method="aqlm"), UnsupportedError, r"already quantized \('aqlm'\)"),
        (
            lambda c: c.update(version="gemv_fast"),
            UnsupportedError,
            "packed as awq 'gemv_fast'; only gemm and gemv packing",
        ),
        (lambda c: c.update(version="gemv"), CheckpointError, "do not match 4 bits"),
        (lambda c: c.update(bits=5), UnsupportedError, "'5' bits"),
        (lambda c: c.update(group_size=0), UnsupportedError, "groups of '0'"),
        (lambda c: c.update(group_size=64), CheckpointError, "do not match 4 bits and group size 64"),
        (lambda c: c.update(bits=8), CheckpointError, "do not match 8 bits"),
    ],
)
def test_a_config_at_odds_with_the_tensors_is_refused(
    change: Callable[[dict[str, Any]], object],
    kind: type[Exception],
    message: str,
    whole_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(whole_folder, tmp_path / "q")
    _config(change, tmp_path / "q")
    with pytest.raises(kind, match=message):
        QuantizedFolder(tmp_path / "q")


def test_a_group_that_does_not_exist_is_told(tmp_path: Path) -> None:
    packed = pack_gptq(random_quantized(Grid(4, 32), n_out=64, n_in=96))
    packed["g_idx"][5] = 3
    folder = folder_of(packed, {"quant_method": "gptq", "bits": 4, "group_size": 32}, tmp_path / "f")
    with pytest.raises(CheckpointError, match="has group 3 of 3"):
        dequantized(folder)
