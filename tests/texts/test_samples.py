"""Calibration samples: ids against the tokenizer libraries themselves, BOS, the chat template, where samples lie."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CalibrationError
from quantkit.texts.documents import read_documents
from quantkit.texts.samples import DEFAULT_NAME, DEFAULT_TEXT, SampledText, SampleRequest, cut_samples, load_samples
from quantkit.texts.tokens import pieces
from tests.helpers.real import smollm2_or_skip
from tests.helpers.tiny import tiny_llama
from tools import default_text

TEXT = "".join(f"Line {n} of a text: größer, 夜の散歩, x = {n * n};\n" + "\n" * (n % 3) for n in range(400))
CHATS = [
    [{"role": "user", "content": f"What is {n} + {n}?"}, {"role": "assistant", "content": f"{2 * n}"}]
    for n in range(90)
]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("smollm"), variant="smollm2")


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama2"), variant="llama2")


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def test_the_samples_are_the_tokenizers_own_ids_in_order(smollm: Path, tmp_path: Path) -> None:
    expected = Tokenizer.from_file(str(smollm / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    with open_checkpoint(str(smollm)) as checkpoint:
        samples = load_samples(
            checkpoint, SampleRequest(source=write(tmp_path, "a.txt", TEXT), n_samples=12, seq_len=64, spread=False)
        )
    assert samples.tokens.dtype == np.int32 and samples.tokens.shape == (12, 64)
    assert samples.tokens.ravel().tolist() == expected[: 12 * 64]
    assert samples.texts == (SampledText("a.txt", hashlib.sha256(TEXT.encode()).hexdigest(), len(expected), 12),)
    assert (samples.name, samples.chat, samples.warnings) == ("a.txt", False, ())


def test_each_sample_begins_with_bos_where_the_tokenizer_adds_one(llama2: Path, tmp_path: Path) -> None:
    source = write(tmp_path, "a.txt", TEXT)
    with open_checkpoint(str(llama2)) as checkpoint:
        samples = load_samples(checkpoint, SampleRequest(source=source, n_samples=4, seq_len=32, spread=False))
    whole = Tokenizer.from_file(str(llama2 / "tokenizer.json")).encode(TEXT).ids
    assert whole[0] == 1
    assert samples.tokens[:, 0].tolist() == [1] * 4
    assert samples.tokens[:, 1:].ravel().tolist() == whole[1 : 1 + 4 * 31]


def test_add_bos_token_false_wins_over_a_tokenizer_model_that_would(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", variant="llama2", tokenizer_json=False)
    ids = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).EncodeAsIds(TEXT)
    source = write(tmp_path, "a.txt", TEXT)
    with open_checkpoint(str(folder)) as checkpoint:
        request = SampleRequest(source, n_samples=1, seq_len=64)
        assert load_samples(checkpoint, request).tokens[0].tolist() == [1, *ids[:63]]
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": False}))
        assert load_samples(checkpoint, request).tokens[0].tolist() == ids[:64]


def test_conversations_go_through_the_checkpoints_template_unless_taken_raw(smollm: Path, tmp_path: Path) -> None:
    source = write(tmp_path, "chats.jsonl", "\n".join(json.dumps({"messages": chat}) for chat in CHATS))
    tokenizer = Tokenizer.from_file(str(smollm / "tokenizer.json"))
    rendered = "".join(
        f"<|im_start|>user\n{q['content']}<|im_end|>\n<|im_start|>assistant\n{a['content']}<|im_end|>\n"
        for q, a in CHATS
    )
    raw = "".join(f"{q['content']}\n{a['content']}\n\n" for q, a in CHATS)
    with open_checkpoint(str(smollm)) as checkpoint:
        for chat, text in ((None, rendered), (True, rendered), (False, raw)):
            samples = load_samples(
                checkpoint,
                SampleRequest(source=source, n_samples=8, seq_len=64, chat=chat, spread=False),
            )
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert samples.tokens.ravel().tolist() == ids[: 8 * 64]
            assert (samples.chat, samples.texts[0].tokens) == (chat is not False, len(ids))
            assert samples.texts[0].sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_conversation_that_the_template_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", variant="smollm2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}"
        "{% elif m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m.content + ' on ' + strftime_now('%d %b %Y') }}\n{% endfor %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": refusing}))
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello " * 300}],
        [{"role": "tool", "content": "17"}],
        [{"role": "user", "content": "Goodbye"}],
    ]
    hello = json.dumps({"messages": chats[0]})
    source = write(tmp_path, "chats.jsonl", "\n".join(json.dumps({"messages": chat}) for chat in chats))
    with open_checkpoint(str(folder)) as checkpoint:
        samples = load_samples(checkpoint, SampleRequest(source=source, n_samples=1, seq_len=8))
        refused = "the chat template refuses the conversation: no tools"
        assert samples.warnings == (f"skipped 1 of 3 conversations of chats.jsonl: {refused}",)
        both = [source, write(tmp_path, "more.jsonl", "\n".join([json.dumps({"messages": chats[1]})] * 2 + [hello]))]
        assert load_samples(checkpoint, SampleRequest(source=both, n_samples=2, seq_len=8)).warnings == (
            f"skipped 1 of 3 conversations of chats.jsonl: {refused}",
            f"skipped 2 of 3 conversations of more.jsonl: {refused}",
        )
        # one date whatever the day, so that the same text comes tomorrow
        text = "Hello " * 300 + " on 26 Jul 2024\nGoodbye on 26 Jul 2024\n"
        assert samples.texts[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
        only_tools = write(tmp_path, "tools.jsonl", json.dumps({"messages": chats[1]}))
        with pytest.raises(CalibrationError, match=r"fails on all 1 conversations of tools.jsonl .* no tools"):
            load_samples(checkpoint, SampleRequest(source=only_tools, n_samples=1, seq_len=8))


def test_asking_for_chat_where_there_is_none_is_refused(smollm: Path, tmp_path: Path) -> None:
    with open_checkpoint(str(smollm)) as checkpoint, pytest.raises(CalibrationError, match="has no conversations"):
        load_samples(
            checkpoint,
            SampleRequest(source=write(tmp_path, "a.txt", TEXT), n_samples=1, seq_len=8, chat=True),
        )


def test_spread_samples_reach_from_the_texts_start_to_its_end_at_even_distances() -> None:
    ids = np.arange(1000, dtype=np.int32)
    spread, _ = cut_samples(ids, 5, 100, None, spread=True, name="t")
    assert spread[:, 0].tolist() == [0, 225, 450, 675, 900]
    assert (np.diff(spread, axis=1) == 1).all()
    first, _ = cut_samples(ids, 5, 100, None, spread=False, name="t")
    assert first.ravel().tolist() == list(range(500))
    exact = [cut_samples(ids, 10, 100, None, spread=spread, name="t")[0].tolist() for spread in (True, False)]
    assert exact[0] == exact[1] == ids.reshape(10, 100).tolist()
    assert cut_samples(ids, 1, 1000, None, spread=True, name="t")[0].tolist() == [ids.tolist()]


def test_a_sample_that_begins_with_bos_already_gets_no_second_one() -> None:
    ids = np.array([1, 10, 11, 12, 13, 14, 1, 15, 16, 17, 18, 19], np.int32)
    samples, _ = cut_samples(ids, 3, 4, 1, spread=False, name="t")
    assert samples.tolist() == [[1, 10, 11, 12], [1, 12, 13, 14], [1, 15, 16, 17]]


def test_a_short_text_gives_fewer_samples_or_is_refused_with_both_numbers() -> None:
    ids = np.arange(2, 1002, dtype=np.int32)
    samples, warnings = cut_samples(ids, 20, 100, 1, spread=True, name="a.txt")
    assert samples.shape == (10, 100)
    assert warnings == ("a.txt has 1000 tokens, but 20 samples of 100 tokens need 1980; 10 samples are used",)
    with pytest.raises(
        CalibrationError, match=r"a\.txt has 1000 tokens, but 20 samples of 200 tokens need 4000; pass a longer"
    ):
        cut_samples(ids, 20, 200, None, spread=True, name="a.txt")
    with pytest.raises(CalibrationError, match="2 samples of 600 tokens need 1200"):
        cut_samples(ids, 2, 600, None, spread=True, name="a.txt")


def test_an_empty_text_and_ids_beyond_the_embedding_are_refused(smollm: Path, tmp_path: Path) -> None:
    with open_checkpoint(str(smollm)) as checkpoint:
        with pytest.raises(CalibrationError, match=r"empty\.txt is empty"):
            load_samples(
                checkpoint,
                SampleRequest(source=write(tmp_path, "empty.txt", ""), n_samples=1, seq_len=8),
            )
        source = write(tmp_path, "a.txt", TEXT)
        checkpoint.config["vocab_size"] = 300
        with pytest.raises(CalibrationError, match=r"but the embedding of .* has only 300 rows"):
            load_samples(checkpoint, SampleRequest(source=source, n_samples=1, seq_len=8))


def test_pieces_of_a_long_text_are_its_own_characters_and_do_not_change_its_tokens(smollm: Path) -> None:
    text = TEXT + "x" * 500 + " y" * 300
    cut = list(pieces(text, 200))
    assert "".join(cut) == text and max(map(len, cut)) <= 200 and len(cut) > 100
    by_line = list(pieces(TEXT, 200))
    tokenizer = Tokenizer.from_file(str(smollm / "tokenizer.json"))
    ids = [id for piece in by_line for id in tokenizer.encode(piece, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(TEXT, add_special_tokens=False).ids


def test_the_default_text_is_enough_for_128_long_samples_of_a_real_model() -> None:
    with open_checkpoint(str(smollm2_or_skip())) as checkpoint:
        samples = load_samples(checkpoint, SampleRequest(source=None, n_samples=128, seq_len=2048))
    assert samples.tokens.shape == (128, 2048) and samples.warnings == () and samples.chat
    assert samples.name == DEFAULT_NAME and samples.texts[0].tokens > 300_000
    assert DEFAULT_TEXT.stat().st_size <= 420_000


def test_any_sixteenth_of_the_default_text_has_every_kind_in_it() -> None:
    documents, _ = read_documents(DEFAULT_TEXT)
    part = len(documents) // 16
    for start in range(0, part * 16, part):
        some = documents[start : start + part]
        texts = [document for document in some if isinstance(document, str)]
        assert sum(isinstance(document, list) for document in some) >= 3
        assert any("def " in text and "return" in text for text in texts), start
        assert any('"orders"' in text for text in texts), start
        assert any(sum("\u4e00" <= c <= "\u9fff" for c in text) > len(text) / 2 for text in texts), start
        assert any(text.isascii() and "{" not in text and " the " in text for text in texts), start


@pytest.mark.full
def test_the_default_text_is_what_its_sources_make() -> None:
    made = [entry.get("text", entry.get("messages")) for entry in default_text.entries()]
    assert made == read_documents(DEFAULT_TEXT)[0]
