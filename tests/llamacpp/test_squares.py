"""Importance matrices by llama.cpp's evaluation callback: llama-imatrix's sums, for GGUFs and bridged models."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.errors import CalibrationError
from quantkit.imatrix.file import load_imatrix
from quantkit.llamacpp.squares import forget_damaged, input_squares
from quantkit.progress import SILENT
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf
from tests.helpers.imatrix_peer import llama_imatrix
from tests.helpers.small_converter import AGAIN, write_converter
from tests.helpers.tiny import tiny_llama

FEW = ("--samples", "8", "--seq-len", "64", "--threads", "1")
TOKENS = np.random.default_rng(5).integers(3, 250, (3, 48)).astype(np.int32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of a tiny model of two layers, bf16."""
    folder = tmp_path_factory.mktemp("whole")
    return to_gguf(tiny_llama(folder / "model", variant="llama3", intermediate=256), "bf16", folder)


@pytest.mark.parametrize("name", ["mixtral", "glm-4.7-flash", "granitehybrid", "gpt-oss", "qwen2"])
def test_the_sums_and_counts_are_llama_imatrixs(name: str, tmp_path: Path) -> None:
    model = to_gguf(write_checkpoint(name, tmp_path / "model"), "f32", tmp_path)
    ours = input_squares(model, TOKENS, tmp_path / "sums.npz", threads=1, progress=SILENT)
    theirs = llama_imatrix(model, TOKENS, tmp_path)
    assert ours.keys() == theirs.keys()
    for tensor, entry in ours.items():
        assert entry.counts.tolist() == theirs[tensor].counts.tolist(), tensor
        assert np.allclose(entry.sums.ravel(), theirs[tensor].sums, rtol=1e-5), tensor


def test_a_gguf_and_its_checkpoint_have_one_importance_matrix(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "model", variant="mixtral", intermediate=256)
    model = to_gguf(checkpoint, "f32", tmp_path)
    for source, file in ((checkpoint, "stream"), (model, "callback")):
        answer = quantkit("imatrix", source, *FEW, "-o", tmp_path / f"{file}.gguf")
        assert answer.code == 0, answer.stderr
    stream, callback = (load_imatrix(tmp_path / f"{file}.gguf") for file in ("stream", "callback"))
    assert (stream.chunks, stream.chunk_size, stream.datasets) == (8, 64, callback.datasets)
    assert stream.values.keys() == callback.values.keys()
    for tensor, values in stream.values.items():
        assert np.allclose(values, callback.values[tensor], rtol=1e-4, atol=1e-6 * values.max()), tensor


def test_a_gguf_is_quantized_by_its_own_importance_matrix(whole: Path, tmp_path: Path) -> None:
    types = ("-t", "q4_k_m", "-t", "q2_k", "-t", "imatrix")
    answer = quantkit("convert", whole, *types, *FEW, "--calibrate", "-o", tmp_path / "one", "--no-logits")
    assert answer.code == 0, answer.stderr
    assert "llama.cpp runs the file" in answer.stderr
    matrix = next((tmp_path / "one").glob("*-imatrix.gguf"))
    again = quantkit(
        "gguf", whole, "-t", "q4_k_m", "-t", "q2_k", "--imatrix", matrix, "-o", tmp_path / "two", "--no-logits"
    )
    assert again.code == 0, again.stderr
    one, two = (sorted((tmp_path / name).rglob("*-GGUF/*.gguf")) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        # the tensors are the same; the headers name another file
        size = json.loads((ours.parent / "quantkit.json").read_text())["outputs"][ours.stem]["files"][ours.name]
        assert size["bytes"] == ours.stat().st_size
        assert ours.read_bytes()[-60_000:] == theirs.read_bytes()[-60_000:]
    assert not list((tmp_path / "one").glob("*.partial"))


def test_a_killed_calibration_goes_on_after_the_kept_windows(whole: Path, tmp_path: Path) -> None:
    tokens, file = np.tile(TOKENS, (4, 1)), tmp_path / "sums.npz"
    undisturbed = input_squares(whole, tokens, tmp_path / "other.npz", threads=1, progress=SILENT)
    input_squares(whole, tokens[:5], file, threads=1, progress=SILENT)
    resumed = input_squares(whole, tokens, file, threads=1, progress=SILENT)
    for tensor, entry in undisturbed.items():
        assert entry.sums.tobytes() == resumed[tensor].sums.tobytes(), tensor
    file.write_bytes(file.read_bytes()[:-30])
    forget_damaged(file)
    assert not file.exists()


def test_a_model_without_a_family_is_calibrated_over_a_temporary_gguf(whole: Path, tmp_path: Path) -> None:
    newest = tmp_path / "newest"
    shutil.copytree(whole.parents[1] / "model", newest)
    config = json.loads((newest / "config.json").read_text())
    (newest / "config.json").write_text(json.dumps({**config, "architectures": ["NewestForCausalLM"]}))
    shutil.copy(whole, newest / "whole.gguf")
    converter = write_converter(tmp_path / "converter", MAIN=AGAIN)
    options = ("-t", "q4_k_m", "--calibrate", *FEW, "--no-logits", "--converter", converter)
    answer = quantkit("gguf", newest, *options, "-o", tmp_path / "bridged")
    assert answer.code == 0, answer.stderr
    assert "llama.cpp runs a temporary bf16 GGUF" in answer.stderr
    direct = quantkit("gguf", whole, *options[:-2], "-o", tmp_path / "direct")
    assert direct.code == 0, direct.stderr
    ours, theirs = (next((tmp_path / name).rglob("*.gguf")) for name in ("bridged", "direct"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert [path.name for path in (tmp_path / "bridged").iterdir()] == ["newest-GGUF"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("awq",), "AWQ or GPTQ needs a checkpoint, but"),
        (("gguf", "--target-bpw", "4"), "--target-size or --target-bpw needs a checkpoint, but"),
        (("gguf", "-t", "iq2_xxs"), "needs an importance matrix; add --calibrate to compute one"),
        (("gguf", "-t", "q4_0", "--calibrate", "--max-ram", "60M"), "--max-ram 60 MB is too small"),
        (("gguf", "-t", "q4_0", "--calibrate", "--device", "cuda"), "--device cuda needs a family"),
        (("gguf", "--preset", "phone"), "add --calibrate, with which llama.cpp runs the model"),
    ],
)
def test_what_needs_a_checkpoint_is_refused_in_a_sentence(
    words: tuple[str, ...], sentence: str, whole: Path, tmp_path: Path
) -> None:
    answer = quantkit(words[0], whole, *words[1:], "-o", tmp_path / "out")
    assert answer.code != 0
    assert sentence in answer.sentence
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_file_whose_inputs_are_not_finite_is_refused(whole: Path, tmp_path: Path) -> None:

    broken = tmp_path / "broken.gguf"
    shutil.copy(whole, broken)
    tensor = next(t for t in gguf.GGUFReader(broken).tensors if t.name == "blk.0.attn_norm.weight")
    with broken.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(np.full(tensor.n_elements, np.inf, np.float32).tobytes())
    with pytest.raises(CalibrationError, match=r"the inputs of blk\.0\.attn_q\.weight in broken\.gguf are not finite"):
        input_squares(broken, TOKENS, tmp_path / "sums.npz", threads=1, progress=SILENT)
