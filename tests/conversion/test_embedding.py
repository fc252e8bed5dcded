"""The embedding rounded with error feedback: real weights and their logits, and files of a model with its own head."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.numpy import load_file, save_file

from quantkit.checkpoint import open_checkpoint
from quantkit.conversion.embedding_trial import EmbeddingTrial
from quantkit.families.base.native import Native
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.quant.feedback import quantize_with_feedback
from quantkit.stream.rounded import with_embedding
from quantkit.stream.stream import Stream
from quantkit.texts.samples import SampleRequest, load_samples
from quantkit.verify import files
from quantkit.workers import SERIAL
from tests.helpers.command import quantkit
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama

Q4_0 = GGMLQuantizationType.Q4_0
CUT = ("--samples", "4", "--seq-len", "32", "--no-logits")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def by_attention(folder: Path, *, tied: bool = False) -> Path:
    """A model whose first layer writes more than the embedding has, as those of some large models do."""
    tiny_llama(folder, variant="llama3", hidden=128, intermediate=256, tied=tied, dtype="f32")
    values = load_file(folder / "model.safetensors")
    values["model.layers.0.self_attn.v_proj.weight"] *= 30
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_what_it_is_rounded_by_lowers_the_divergence_of_other_tokens(tmp_path: Path) -> None:
    with open_checkpoint(str(by_attention(tmp_path / "model"))) as checkpoint:
        native = Native(checkpoint)
        samples = load_samples(checkpoint, SampleRequest(None, 4, 64, None, offline=True)).tokens
        with Stream(native, samples[:2], tmp_path, threads=1) as stream:
            by = EmbeddingTrial(stream, [Q4_0], SERIAL).best()[Q4_0]
        tokens = samples[2:].reshape(-1).tolist()
        whole = native.whole(native.decoder.embedding + ".weight")
        plain = dequantize_rows(Q4_0, quantize_rows(Q4_0, whole), whole.shape[1])
        ours = dequantize_rows(Q4_0, quantize_with_feedback(Q4_0, whole, by), whole.shape[1])

        def log_p(values: np.ndarray) -> np.ndarray:
            decoder = with_embedding(native.decoder, lambda start, stop: values[start:stop])
            return log_softmax(decoder.run(tokens).astype(np.float64))

        source = log_p(whole)
        of_plain, of_ours = ((np.exp(source) * (source - log_p(of))).sum(1).mean() for of in (plain, ours))
    assert 0 < of_ours < 0.8 * of_plain


def test_real_weights_that_gain_little_are_rounded_alone(tmp_path: Path) -> None:
    with open_checkpoint(str(smollm2_or_skip())) as checkpoint:
        native = Native(checkpoint)
        tokens = load_samples(checkpoint, SampleRequest(None, 2, 32, None, offline=True)).tokens
        with Stream(native, tokens, tmp_path, threads=1) as stream:
            assert EmbeddingTrial(stream, [Q4_0], SERIAL).best() == {}


@pytest.mark.parametrize("quality", ["high", "best"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_is_the_head_keeps_llama_cpps_bytes(tied: bool, quality: str, tmp_path: Path) -> None:
    source = by_attention(tmp_path / "model", tied=tied)
    made = {}
    for out, words in (("plain", ()), ("ours", ("--quality", quality, *CUT))):
        answer = quantkit("gguf", source, "-t", "q4_0", "-t", "f16", *words, "-o", tmp_path / out)
        assert answer.code == 0, answer.stderr
        made[out] = {path.stem[-4:]: path for path in (tmp_path / out).rglob("*.gguf")}
    for kind in ("Q4_0", "-F16"):
        ours, plain = (
            {tensor.name: tensor for tensor in GGUFReader(of[kind]).tensors}["token_embd.weight"]
            for of in (made["ours"], made["plain"])
        )
        assert ours.tensor_type == plain.tensor_type
        assert np.array_equal(ours.data, plain.data) == (tied or kind == "-F16")
    record = json.loads(next((tmp_path / "ours").rglob("quantkit.json")).read_text())["outputs"]
    of_q4_0 = record[made["ours"]["Q4_0"].stem]["feedback"]["without_feedback"]
    assert ("token_embd.weight" in of_q4_0) == tied


def test_its_own_error_may_be_twice_that_of_the_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("gguf", by_attention(tmp_path / "model"), "-t", "q4_0", "--quality", "best", *CUT)
    assert quantkit(*words, "-o", tmp_path / "out").code == 0
    record = json.loads(next((tmp_path / "out").rglob("quantkit.json")).read_text())["outputs"]["model-Q4_0"]
    error = record["relative_error"]["token_embd.weight"]
    monkeypatch.setitem(files.ERROR_BOUND, Q4_0, 0.7 * error)
    assert quantkit(*words, "-o", tmp_path / "allowed").code == 0
    monkeypatch.setattr(files, "EMBEDDING_FACTOR", 1.0)
    answer = quantkit(*words, "-o", tmp_path / "refused")
    assert answer.code != 0 and "token_embd.weight" in answer.stderr
