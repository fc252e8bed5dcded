"""Encoders: pooled embeddings and scores by llama.cpp against transformers' states, and what is stated or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import check_config
from quantkit.families.base.pooling import pooling_of
from quantkit.llamacpp.evaluation import embeddings
from tests.families.expected import expected, read_gguf, write_checkpoint
from tests.families.models import TOKENS, all_cases
from tests.families.models.bert import BERT
from tests.families.models.bert_relatives import DISTILBERT, ROBERTA
from tests.families.test_pooling import with_pooling
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf

SCORED = sorted(name for name, (_, case) in all_cases().items() if case.encoder and expected(name).native.get("scores"))


@pytest.mark.parametrize("name", SCORED)
def test_scores_of_a_classifier_are_transformers(name: str, tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    scores = np.array(expected(name).native["scores"])
    keys, _ = read_gguf(path)
    arch = keys["general.architecture"]
    assert keys[f"{arch}.pooling_type"] == 4
    assert len(keys[f"{arch}.classifier.output_labels"]) == len(scores)
    (ours,) = embeddings(path, [TOKENS])
    assert np.abs(ours[0] - scores).max() < 0.01


@pytest.mark.parametrize(("mode", "pool"), [("mean", np.mean), ("cls", lambda states, axis: states[0])])
def test_an_embedding_is_pooled_as_the_checkpoint_states(mode: str, pool: Any, tmp_path: Path) -> None:
    folder = with_pooling(write_checkpoint("bert", tmp_path / "bert"), {f"pooling_mode_{mode}_tokens": True})
    if mode == "cls":
        with_pooling(folder, {"pooling_mode_cls_token": True})
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    first, second = embeddings(next((tmp_path / "out").rglob("*.gguf")), [TOKENS, TOKENS[:5]])
    states = pool(expected("bert").logits, axis=0)
    assert np.abs(first[0] - states).max() < 0.01 * states.std()
    assert np.abs(first - second).max() > 0.1


def test_a_pooling_that_is_not_stated_is_one_sentence(tmp_path: Path) -> None:
    done = quantkit("gguf", write_checkpoint("bert", tmp_path / "bert"), "-t", "q8_0", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    assert "does not state how token vectors become one embedding" in done.stderr
    assert "--pooling mean or --pooling cls" in done.stderr


def test_the_length_at_which_the_checkpoint_cuts_texts_is_told(tmp_path: Path) -> None:
    folder = with_pooling(write_checkpoint("bert", tmp_path / "bert"), {"pooling_mode_cls_token": True})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    done = quantkit("gguf", folder, "-t", "q8_0", "-o", tmp_path / "out")
    assert "cuts texts to 32 tokens (sentence_bert_config.json), and llama.cpp takes 64" in done.stderr
    assert "does not state" not in done.stderr


def test_a_module_that_llama_cpp_does_not_run_is_refused(tmp_path: Path) -> None:
    folder = with_pooling(tmp_path, {"pooling_mode_cls_token": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match=r"has a Dense module, which llama\.cpp does not run"):
        pooling_of(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"id2label": {"1": "a", "7": "b"}}, r"id2label has the numbers \[1, 7\]"),
    ],
)
def test_a_setting_that_llama_cpp_does_not_run_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        check_config({**BERT, "architectures": ["BertModel"], **change})


def test_awq_and_gptq_of_an_encoder_are_refused(tmp_path: Path) -> None:
    for method in ("awq", "gptq"):
        done = quantkit(method, write_checkpoint("bert", tmp_path / "bert"), "-o", tmp_path / "out")
        assert done.code == 1
        assert "run decoders, and this model is an encoder" in done.stderr
        assert "convert it to GGUF" in done.stderr


def test_a_classifier_whose_activation_llama_cpp_does_not_have_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has a ReLU in its classifier"):
        check_config({**DISTILBERT, "architectures": ["DistilBertForSequenceClassification"]})


def test_positions_that_end_before_the_first_token_are_refused() -> None:
    with pytest.raises(CheckpointError, match="leaves no position"):
        check_config({**ROBERTA, "architectures": ["RobertaModel"], "max_position_embeddings": 2})


def test_a_config_without_the_number_of_positions_is_one_sentence(tmp_path: Path) -> None:
    """Without model_type the defaults of transformers' class are not known."""
    folder = write_checkpoint("bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    changed = {key: value for key, value in config.items() if key not in ("max_position_embeddings", "model_type")}
    (folder / "config.json").write_text(json.dumps(changed))
    done = quantkit("gguf", folder, "-t", "q8_0", "--dry-run")
    assert done.code == 1
    assert "config.json has no max_position_embeddings; add it" in done.stderr
