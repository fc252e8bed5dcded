"""Several calibration texts: their shares, the order of their samples, and one text alone."""

import hashlib
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CalibrationError
from quantkit.stream.statistics import Statistics
from quantkit.texts.mixed import equal_shares, interleaved, text_sources
from quantkit.texts.samples import DEFAULT_NAME, SampleRequest, Samples, load_samples
from tests.helpers.tiny import tiny_llama

LENGTH = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("mixed") / "model", variant="smollm2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text, conversations, and a text for 10 samples."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "plain.txt").write_text("".join(f"Line {n}: {n * n} stones lie in the river.\n" for n in range(400)))
    chats = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(200)]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    (folder / "short.txt").write_text("a b c d e f g h " * 41)
    return folder


def samples(model: Path, source: str | list[str] | None, n_samples: int, chat: bool | None = None) -> Samples:
    with open_checkpoint(str(model)) as checkpoint:
        return load_samples(checkpoint, SampleRequest(source, n_samples, LENGTH, chat))


def held_out(n_samples: int) -> list[int]:
    """The samples that the sums of inputs hold out: sample n has the input n, so its square tells it."""
    statistics, held = Statistics.of(1, gram=True), []
    for number in range(n_samples):
        before = statistics.held_out_tokens
        statistics.add([np.full((1, 1), number, np.float32)])
        held += [number] * (statistics.held_out_tokens - before)
    return held


@pytest.mark.parametrize("n_texts", range(1, 8))
def test_held_out_samples_and_the_others_hold_every_text_equally(n_texts: int) -> None:
    for n_samples in (*range(n_texts, 40), 96, 128, 250):
        shares = equal_shares(n_samples, n_texts)
        assert sum(shares) == n_samples and max(shares) - min(shares) <= 1
        assert shares == sorted(shares, reverse=True)
        order = interleaved(shares)
        assert [order.count(text) for text in range(n_texts)] == shares
        held = [order[index] for index in held_out(n_samples)]
        of_texts = [held.count(text) for text in range(n_texts)]
        assert max(of_texts) - min(of_texts) <= 1
        # and no text waits: of the first samples each has as many as another, but for two
        for end in range(n_samples):
            begun = [order[:end].count(text) for text in range(n_texts)]
            assert max(begun) - min(begun) <= 2


def test_texts_of_unequal_counts_are_held_out_in_proportion() -> None:
    random = Random(0)
    for _ in range(300):
        counts = [random.randint(1, 40) for _ in range(random.randint(1, 6))]
        order = interleaved(counts)
        held = order[3::4]
        assert [order.count(text) for text in range(len(counts))] == counts
        for text, count in enumerate(counts):
            assert abs(held.count(text) - count * len(held) / len(order)) < 1


def test_one_text_has_the_samples_and_the_record_that_it_always_had(model: Path, files: Path) -> None:
    text = (files / "plain.txt").read_text()
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    last = len(ids) - LENGTH
    expected = [ids[number * last // 11 :][:LENGTH] for number in range(12)]
    alone = samples(model, str(files / "plain.txt"), 12)
    assert alone.tokens.tolist() == expected and alone.tokens.dtype == np.int32
    assert alone.record() == {
        "text": "plain.txt",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "samples": 12,
        "tokens_per_sample": LENGTH,
        "chat_template": False,
    }
    listed = samples(model, [str(files / "plain.txt")], 12)
    assert np.array_equal(listed.tokens, alone.tokens) and listed.record() == alone.record()


def test_the_word_default_is_quantkits_own_text_and_a_file_of_that_name_is_a_path(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("default").write_text("Words of a file. " * 200)
    for text in (None, "default", [], ["default"]):
        assert text_sources(text) == (None,)
    assert samples(model, ["default", "./default"], 16).names == [DEFAULT_NAME, "default"]


def test_each_text_gives_its_share_as_it_would_alone(model: Path, files: Path) -> None:
    sources = ["default", str(files / "plain.txt"), str(files / "chats.jsonl")]
    mixed = samples(model, sources, 26)
    alone = [samples(model, source, share) for source, share in zip(sources, (9, 9, 8), strict=True)]
    where = rows_of(mixed, alone)
    assert [len(rows) for rows in where] == [9, 9, 8]
    held = [sum(index % 4 == 3 for index in rows) for rows in where]
    assert held == [2, 2, 2]
    assert mixed.record() == {
        "text": [DEFAULT_NAME, "plain.txt", "chats.jsonl"],
        "sha256": [text.texts[0].sha256 for text in alone],
        "samples": 26,
        "samples_per_text": [9, 9, 8],
        "tokens_per_sample": LENGTH,
        "chat_template": True,
    }


def rows_of(mixed: Samples, parts: list[Samples]) -> list[list[int]]:
    """Where the samples of each part are in the mix; every sample in its text's order, and no other sample."""

    def found(row: NDArray[np.int32]) -> int:
        (at,) = np.flatnonzero((mixed.tokens == row).all(axis=1))
        return int(at)

    where = [[found(row) for row in part.tokens] for part in parts]
    assert all(rows == sorted(rows) for rows in where)
    assert sorted(index for rows in where for index in rows) == list(range(len(mixed.tokens)))
    return where


def test_a_text_too_short_for_its_share_gives_fewer_and_the_others_not_more(model: Path, files: Path) -> None:
    mixed = samples(model, [str(files / "plain.txt"), str(files / "short.txt")], 64)
    few = mixed.texts[1].n_samples
    assert mixed.texts[0].n_samples == 32 and 8 <= few < 32 and len(mixed.tokens) == 32 + few
    assert mixed.warnings == (
        f"short.txt has {mixed.texts[1].tokens} tokens, but 32 samples of 32 tokens need 1024; {few} samples are used",
    )
    assert mixed.record()["samples_per_text"] == [32, few]
    (files / "tiny.txt").write_text("a b c")
    with pytest.raises(CalibrationError, match=r"^tiny\.txt has .* tokens, but 32 samples of 32 tokens need 1024"):
        samples(model, ["default", str(files / "tiny.txt")], 64)


def test_chat_needs_conversations_in_one_of_the_texts(model: Path, files: Path) -> None:
    plain, chats = str(files / "plain.txt"), str(files / "chats.jsonl")
    asked, usual, raw = (samples(model, [plain, chats], 16, chat) for chat in (True, None, False))
    assert np.array_equal(asked.tokens, usual.tokens) and asked.chat
    assert not raw.chat and raw.texts[0] == asked.texts[0] and raw.texts[1] != asked.texts[1]
    with pytest.raises(CalibrationError, match="has no conversations"):
        samples(model, [plain, str(files / "short.txt")], 16, True)


def test_a_text_listed_twice_and_more_texts_than_samples_are_one_sentence_each(model: Path, files: Path) -> None:
    with pytest.raises(CalibrationError, match=r"^calibration text 'default' is listed twice; every text must be uni"):
        samples(model, ["default", str(files / "plain.txt"), "default"], 8)
    path = str(files / "plain.txt")
    with pytest.raises(CalibrationError, match=r"plain\.txt' is listed twice"):
        samples(model, [path, str(files / ".." / files.name / "plain.txt")], 8)
    with pytest.raises(CalibrationError, match=r"^cannot share 1 calibration samples among 2 texts; use at least 2 sa"):
        samples(model, ["default", path], 1)
