"""XLM-RoBERTa with sentencepiece.bpe.model alone: ids by sentencepiece and fairseq's rule, and by llama.cpp."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from quantkit.errors import TokenizerError
from quantkit.llamacpp.token_ids import ids_with_special_tokens
from quantkit.tokenizer import hf_token_ids
from tests.families.expected import read_header, write_checkpoint
from tests.helpers.command import quantkit

TEXTS = ["the quick brown fox", "  two  spaces ", "Größe und Ärger", "x<mask>y", "a"]
TRAINING = [
    "the quick brown fox jumps over the lazy dog",
    "zwei alte Bären, Größe und Ärger",
    "a b c x y z",
    *"abcdefgh",
]


def trained(kind: str) -> bytes:
    """A model with nmt_nfkc's character map and no bytes, as XLM-RoBERTa's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING * 20),
        model_writer=model,
        vocab_size=48,
        model_type=kind,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def with_bpe_model(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Replace the tokenizer of a checkpoint by a trained unigram model."""
    model = trained("unigram")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def fairseq_ids(model: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """transformers' rule: a piece's id plus one; 3 for an unknown one."""
    return [number + 1 if number else 3 for number in model.encode(text)]


def test_ids_are_those_of_sentencepiece_by_fairseqs_rule(tmp_path: Path) -> None:
    folder = write_checkpoint("xlm-roberta", tmp_path / "model")
    model = with_bpe_model(folder)
    plain = [text for text in TEXTS if "<" not in text]
    expected = [fairseq_ids(model, text) for text in plain]
    assert hf_token_ids(folder, plain) == expected
    done = quantkit("gguf", folder, "-t", "f32", "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    path = next((tmp_path / "out").rglob("*.gguf"))
    assert ids_with_special_tokens(path, plain) == [[0, *ids, 2] for ids in expected]
    keys = {key: value for key, _, value in read_header(path)}
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.mask_token_id"]) == ("t5", model.get_piece_size() + 1)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("xlm-roberta", tmp_path / "model")
    with_bpe_model(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(trained("bpe"))
    with pytest.raises(TokenizerError, match=r"is not XLM-RoBERTa's.*add the checkpoint's tokenizer\.json"):
        hf_token_ids(folder, ["a"])
