import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import UnsupportedError
from quantkit.families import reference_logits
from quantkit.forward.rope import rope_frequencies
from tests.forward.cases import CASES, FILE, KEPT, TOKENS
from tests.helpers.tiny import tiny_llama

EXPECTED = json.loads(FILE.read_text(encoding="utf-8"))
_STORED = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        start, stop = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[start:stop], _STORED[entry["dtype"]]).reshape(entry["shape"])
    return tensors, json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    tensors, config = load(tiny_llama(tmp_path, dtype="f32", **CASES[case]))
    logits = reference_logits(tensors.__getitem__, config, TOKENS)
    assert logits.shape == (len(TOKENS), config["vocab_size"])
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == EXPECTED[case]["argmax"]
    np.testing.assert_allclose(logits[0, :KEPT], EXPECTED[case]["first"], atol=1e-3)
    np.testing.assert_allclose(logits[-1, :KEPT], EXPECTED[case]["last"], atol=1e-3)


@pytest.mark.parametrize("case", ["llama3", "linear rope", "dynamic rope", "yarn rope", "yarn rope with mscale"])
def test_the_stored_numbers_notice_a_rope_scaling_that_is_ignored(case: str, tmp_path: Path) -> None:
    tensors, config = load(tiny_llama(tmp_path, dtype="f32", **CASES[case]))
    logits = reference_logits(tensors.__getitem__, {**config, "rope_scaling": None}, TOKENS)
    assert np.abs(logits[-1, :KEPT] - EXPECTED[case]["last"]).max() > 0.01


def test_reading_by_rows_gives_the_same_logits_and_never_reads_the_embedding_whole(tmp_path: Path) -> None:
    tensors, config = load(tiny_llama(tmp_path, variant="smollm2"))
    whole: list[str] = []

    def read(name: str) -> np.ndarray:
        whole.append(name)
        return tensors[name]

    by_rows = reference_logits(read, config, TOKENS, rows=lambda name, start, stop: tensors[name][start:stop])
    assert "model.embed_tokens.weight" not in whole
    np.testing.assert_array_equal(by_rows, reference_logits(tensors.__getitem__, config, TOKENS))


def test_a_later_token_does_not_change_earlier_logits(tmp_path: Path) -> None:
    tensors, config = load(tiny_llama(tmp_path, variant="mistral"))
    full = reference_logits(tensors.__getitem__, config, TOKENS)
    shorter = reference_logits(tensors.__getitem__, config, TOKENS[:17])
    np.testing.assert_allclose(full[:17], shorter, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ({"architectures": ["ArcticForCausalLM"]}, "ArcticForCausalLM"),
        ({"hidden_act": "mish"}, "mish"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(override: dict, quoted: str, tmp_path: Path) -> None:
    tensors, config = load(tiny_llama(tmp_path, layers=1))
    with pytest.raises(UnsupportedError, match=quoted):
        reference_logits(tensors.__getitem__, {**config, **override}, TOKENS)


def test_llama3_keeps_fast_pairs_and_slows_the_slowest_by_the_factor() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled, magnitude = rope_frequencies({"rope_theta": 500000.0, "rope_scaling": scaling}, 128, 10)
    plain, _ = rope_frequencies({"rope_theta": 500000.0}, 128, 10)
    assert magnitude == 1.0
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 32.0)
