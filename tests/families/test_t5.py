"""T5: its tokens and embeddings are those of the checkpoint, and what llama.cpp or quantkit does not run is told."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.families import cautions, find_family
from quantkit.llamacpp.evaluation import embeddings
from quantkit.llamacpp.token_ids import ids_with_special_tokens
from quantkit.tokenizer import hf_token_ids
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS
from tests.families.test_pooling import with_pooling
from tests.helpers.command import quantkit

TEXTS = ["The quick brown fox jumps over the lazy dog.", "In 1969 two people  walked on the Moon;"]


def converted(folder: Path, out: Path) -> Path:
    done = quantkit("gguf", folder, "-t", "f32", "-o", out)
    assert done.code == 0, done.stderr
    return next(out.rglob("*.gguf"))


def test_an_encoder_pools_and_tokenizes_as_the_checkpoint_states(tmp_path: Path) -> None:
    folder = with_pooling(write_checkpoint("t5-encoder", tmp_path / "t5"), {"pooling_mode_mean_tokens": True})
    path = converted(folder, tmp_path / "out")
    (ours,) = embeddings(path, [TOKENS])
    states = expected("t5-encoder").logits.mean(axis=0)
    assert np.abs(ours[0] - states).max() < 0.01 * states.std()
    # the tokenizer ends each text with </s>
    assert ids_with_special_tokens(path, TEXTS) == [[*ids, 1] for ids in hf_token_ids(folder, TEXTS)]


def test_measure_compares_the_embeddings_of_an_encoder(tmp_path: Path) -> None:
    folder = with_pooling(write_checkpoint("flan-t5-encoder", tmp_path / "t5"), {"pooling_mode_mean_tokens": True})
    done = quantkit("gguf", folder, "-t", "f32", "-t", "q8_0", "-o", tmp_path)
    assert done.code == 0, done.stderr
    files = sorted((tmp_path / "t5-GGUF").glob("*.gguf"))
    measured = quantkit("measure", *files, "--format", "json", "-o", tmp_path / "report")
    assert measured.code == 0, measured.stderr
    _, candidate = json.loads(measured.stdout)["models"]
    assert 0.9 < candidate["embeddings"]["cosine_mean"] < 1


def test_tokens_that_other_files_add_have_their_rows(tmp_path: Path) -> None:
    """T5's <extra_id_0> is beyond the SentencePiece file; the converter leaves its row unused."""
    folder = write_checkpoint("t5-encoder", tmp_path / "t5")
    path = folder / "tokenizer.json"
    text = json.loads(path.read_text())
    number = json.loads((folder / "config.json").read_text())["vocab_size"] - 1
    text["added_tokens"].append({**text["added_tokens"][0], "id": number, "content": "<extra_id_0>"})
    text["model"]["vocab"] += [[f"unused {n}", -99.0] for n in range(len(text["model"]["vocab"]), number)]
    path.write_text(json.dumps(text))
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    assert "1 added tokens have their rows of the embedding" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"feed_forward_proj": "gated-silu"},
            "feed_forward_proj is 'gated-silu', but llama.cpp runs T5 only with",
        ),
        ({"dense_act_fn": "silu"}, "dense_act_fn is 'silu', but llama.cpp runs T5 with feed_forward_proj 'relu' only"),
        ({"is_gated_act": True}, "is_gated_act is True, but llama.cpp runs T5 with feed_forward_proj 'relu' only"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance is 64, but llama.cpp runs T5 only"),
        ({"num_decoder_layers": 4}, "num_decoder_layers is 4, more than num_layers (3)"),
    ],
)
def test_what_is_not_run_is_one_sentence(settings: dict[str, object], sentence: str, tmp_path: Path) -> None:
    folder = write_checkpoint("t5", tmp_path / "t5")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert done.code == 1 and sentence in done.sentence


@pytest.mark.parametrize(
    ("kind", "settings", "scaled"),
    [
        ("t5", {}, True),
        ("t5", {"tie_word_embeddings": False}, False),
        # as transformers 5 saves T5 1.1, and the first T5
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
        ("mt5", {"tie_word_embeddings": True}, False),
        ("umt5", {}, False),
        ("umt5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
    ],
)
def test_a_scaled_output_of_the_decoder_is_told(kind: str, settings: dict[str, object], scaled: bool) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": kind, **settings}
    family = find_family(config)
    assert any("scales the decoder's output" in text for text in cautions(family, family.sizes(config))) == scaled


def test_a_plan_of_t5_names_the_program_that_runs_it(tmp_path: Path) -> None:
    done = quantkit("plan", write_checkpoint("t5", tmp_path / "t5"), "--format", "json")
    assert done.code == 0, done.stderr
    assert "llama-completion -m " in done.stdout and "quantkit run" not in done.stdout
    refused = {row["type"]: row["why_not"] for row in json.loads(done.stdout)["types"] if row.get("why_not")}
    assert set(refused) == {"awq", "gptq"}
    assert all("T5ForConditionalGeneration" in why and "convert it to GGUF" in why for why in refused.values())


def test_run_and_measure_refuse_a_model_of_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    path = converted(write_checkpoint("t5", tmp_path / "t5"), tmp_path / "out")
    done = quantkit("run", path, "-p", "hello")
    assert done.code == 1 and "has an encoder and a decoder, and quantkit runs decoders only" in done.sentence
    (tmp_path / "text.txt").write_text("hello world " * 400)
    measured = quantkit("measure", path, "--text", tmp_path / "text.txt", "-o", tmp_path / "report")
    assert measured.code == 1 and "has an encoder and a decoder; measure compares" in measured.sentence
    embedded = quantkit("run", converted(write_checkpoint("t5-encoder", tmp_path / "e"), tmp_path / "e"), "-p", "hello")
    assert embedded.code == 1 and "is an encoder, which gives embeddings and no text" in embedded.sentence
