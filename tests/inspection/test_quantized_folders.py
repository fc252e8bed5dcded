"""AWQ and GPTQ folders as `inspect` describes them."""

import json
from pathlib import Path

import pytest

from quantkit.inspection import inspect_source
from quantkit.quant.grid import Grid
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama
from tests.packed.folders import write_folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "M"
    tiny_llama(folder, variant="mixtral")
    write_folder(folder, folder.with_name("M-AWQ"), "awq", Grid(4, 64))
    return folder


def test_a_folder_says_how_it_is_quantized_and_what_is_kept(mixture: Path) -> None:
    description = inspect_source(str(mixture.with_name("M-AWQ")))
    assert (description.kind, description.type) == ("quantized checkpoint", "awq 4 bit, group 64")
    quantization = description.quantization
    assert quantization is not None
    assert (quantization.method, quantization.bits, quantization.group, quantization.packing) == ("awq", 4, 64, "gemm")
    assert (quantization.symmetric, quantization.act_order) == (False, None)
    assert quantization.kept == ("block_sparse_moe.gate", "lm_head", "model.embed_tokens")
    shape = inspect_source(str(mixture)).shape
    assert shape.layers and shape.experts
    assert quantization.linears == shape.layers * (4 + 3 * shape.experts)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_packed_weights_are_counted_as_their_sources(method: str, bits: int, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m")
    write_folder(source, tmp_path / "q", method, Grid(bits, 32, method == "gptq"))
    actual, expected = inspect_source(str(tmp_path / "q")).weights, inspect_source(str(source)).weights
    assert actual is not None and expected is not None
    assert (actual.parameters, actual.active_parameters) == (expected.parameters, expected.active_parameters)


def test_the_page_says_it_once(mixture: Path) -> None:
    page = quantkit("inspect", mixture.with_name("M-AWQ")).stdout
    assert page.startswith("M-AWQ: awq 4 bit, group 64 quantized checkpoint")
    assert page.count("dequantizes each as it reads it") == 1 and "converts    yes" in page
    flat = " ".join(page.split())
    assert "asymmetric, packed as gemm; kept as they were: block_sparse_moe.gate, lm_head, model.embed_tokens" in flat


def test_the_page_says_what_it_was_made_from_and_calibrated_on(mixture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "M-AWQ"
    write_folder(mixture, folder, "awq", Grid(4, 64))
    entry = {
        "tool": {"name": "quantkit", "version": "1"},
        "origin": {"source": "ORG/M", "revision": "abc"},
        "files": {"model.safetensors": {"bytes": (folder / "model.safetensors").stat().st_size}},
        "options": {"bits": 4, "act_order": True},
        "calibration": {"text": "wiki.txt", "samples": 128, "tokens_per_sample": 512},
        "checks": [{"name": "bytes", "status": "passed", "detail": ""}],
    }
    record = {"format": "quantkit-origin", "version": 1, "outputs": {"M-AWQ": entry}}
    (folder / "quantkit.json").write_text(json.dumps(record))
    flat = " ".join(quantkit("inspect", folder).stdout.split())
    assert "made from ORG/M@abc by quantkit 1, calibrated on wiki.txt (128 samples of 512 tokens)" in flat
    assert "checks bytes passed" in flat


def test_json_has_the_quantization(mixture: Path) -> None:
    document = json.loads(quantkit("inspect", mixture.with_name("M-AWQ"), "--format", "json").stdout)
    assert document["quantization"]["group"] == 64
    assert json.loads(quantkit("inspect", mixture, "--format", "json").stdout)["quantization"] is None
