"""A checkpoint whose config.json ties the head to an embedding that differs: every command keeps both, and says so.

transformers 5 does the same (`PreTrainedModel.tie_weights`): its logits of such a folder are those of the folder whose
config.json has tie_word_embeddings false. So that folder is the oracle here.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.errors import UnsupportedError
from quantkit.families import open_model
from quantkit.packed.reader import open_quantized
from tests.families.expected import expected, write_checkpoint
from tests.helpers.checkpoints import copy_tensors, edit_config
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SMALL = ("--samples", "2", "--seq-len", "16", "--group-size", "32")
WORDS = f"{HEAD} differs from {EMBEDDING}; both are kept"


def small_llama(folder: Path) -> Path:
    return tiny_llama(folder, variant="llama3", hidden=64, intermediate=128)


@pytest.fixture
def contradicting(tmp_path: Path) -> Path:
    return edit_config(small_llama(tmp_path / "tied" / "model"), tie_word_embeddings=True)


def test_every_format_has_the_bytes_of_the_untied_checkpoint_and_one_warning(
    contradicting: Path, tmp_path: Path
) -> None:
    untied = edit_config(small_llama(tmp_path / "untied" / "model"), tie_word_embeddings=False)
    types = [word for kind in ("q8_0", "awq", "gptq") for word in ("-t", kind)]
    for source in (contradicting, untied):
        answer = quantkit("convert", source, *types, *SMALL, "-o", source.parent / "out")
        assert answer.code == 0, answer.stderr
        assert answer.stderr.count(WORDS) == (source == contradicting)
    ours, oracle = contradicting.parent / "out", untied.parent / "out"
    for name in ("model-GGUF/model-Q8_0.gguf", "model-AWQ/model.safetensors", "model-GPTQ/model.safetensors"):
        assert (ours / name).read_bytes() == (oracle / name).read_bytes(), name
    for name in ("model-AWQ", "model-GPTQ"):
        config = (ours / name / "config.json").read_bytes()
        assert config == (oracle / name / "config.json").read_bytes()
        assert json.loads(config)["tie_word_embeddings"] is False


def test_plan_inspect_and_measure_warn_too(contradicting: Path, tmp_path: Path) -> None:
    planned = json.loads(quantkit("plan", contradicting, "--ram", "1G", "--format", "json").stdout)
    assert sum(WORDS in note for note in planned["notes"]) == 1
    inspected = json.loads(quantkit("inspect", contradicting, "--format", "json").stdout)
    assert sum(WORDS in note for note in inspected["notes"]) == 1
    assert inspected["weights"]["parameters"] == sum(
        tensor.n_params for tensor in open_model(str(contradicting)).tensors.values()
    )
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    words = ("--text", text, "--ctx", "64", "--chunks", "1", "-o", tmp_path / "report")
    measured = quantkit("measure", contradicting, *words)
    assert measured.code == 0, measured.stderr
    assert measured.stderr.count(WORDS) == 1


def test_a_stored_head_that_equals_the_embedding_stays_tied(tmp_path: Path) -> None:
    folder = copy_tensors(tiny_llama(tmp_path / "model", variant="smollm2"), {HEAD: EMBEDDING})
    with open_model(str(folder)) as opened:
        assert HEAD in opened.tensors
        assert opened.config["tie_word_embeddings"] is True and opened.notes == ()


def test_one_differing_value_in_the_last_row_is_enough(tmp_path: Path) -> None:
    folder = copy_tensors(tiny_llama(tmp_path / "model", variant="smollm2"), {HEAD: EMBEDDING})
    with open_model(str(folder)) as opened:
        head = opened.tensors[HEAD]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(head.offset + head.nbytes - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    with open_model(str(folder)) as opened:
        assert opened.config["tie_word_embeddings"] is False and WORDS in opened.notes[0]


def test_a_head_without_an_embedding_serves_as_both(tmp_path: Path) -> None:
    whole = tiny_llama(tmp_path / "whole" / "model", variant="smollm2")
    lacking = tiny_llama(tmp_path / "lacking" / "model", variant="smollm2")
    weights = lacking / "model.safetensors"
    raw = weights.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].replace(f'"{EMBEDDING}"'.encode(), f'"{HEAD}"'.encode())
    weights.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    with open_model(str(lacking)) as opened, open_model(str(whole)) as oracle:
        assert opened.tensors.keys() == oracle.tensors.keys()
        assert "serves as the embedding" in opened.notes[0]
        assert (opened.read_rows(EMBEDDING, 0, 9) == oracle.read_rows(EMBEDDING, 0, 9)).all()
    for source in (whole, lacking):
        assert quantkit("gguf", source, "-t", "q8_0", "-o", source.parent).code == 0
    written = "model-GGUF/model-Q8_0.gguf"
    assert (lacking.parent / written).read_bytes() == (whole.parent / written).read_bytes()


def test_a_family_that_llama_cpp_runs_tied_only_is_refused_with_the_two_names(tmp_path: Path) -> None:
    folder = copy_tensors(write_checkpoint("gemma", tmp_path / "gemma"), {HEAD: EMBEDDING})
    with open_model(str(folder)) as opened:
        assert opened.notes == ()
        embedding = opened.tensors[EMBEDDING]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(embedding.offset)
        file.write(np.float32(3).tobytes())
    with pytest.raises(UnsupportedError, match=f"{HEAD} differs from {EMBEDDING}, but llama.cpp runs Gemma only"):
        open_model(str(folder))


def test_a_nested_text_config_is_untied_too(tmp_path: Path) -> None:
    folder = write_checkpoint("gemma3", tmp_path / "gemma3")
    text = expected("gemma3").config
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text})
    )
    copy_tensors(folder, {HEAD: "model.layers.0.mlp.gate_proj.weight"})
    with open_model(str(folder)) as opened:
        assert opened.config["text_config"]["tie_word_embeddings"] is False


def test_a_quantized_folder_that_states_tied_over_two_heads_is_read_untied(contradicting: Path, tmp_path: Path) -> None:
    assert quantkit("awq", contradicting, *SMALL, "-o", tmp_path).code == 0
    folder = edit_config(tmp_path / "model-AWQ", tie_word_embeddings=True)
    with open_quantized(folder) as opened:
        assert opened.config["tie_word_embeddings"] is False and WORDS in opened.notes[0]
