import importlib.util
import io
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import sentencepiece
from tokenizers import Tokenizer

from quantkit.errors import MissingExtraError, QuantkitError
from quantkit.families import reference_logits
from quantkit.llamacpp import session
from quantkit.llamacpp.evaluation import logits
from quantkit.llamacpp.reasons import explain
from quantkit.llamacpp.token_ids import vocab_token_ids
from tests.forward.cases import TOKENS
from tests.forward.test_forward import load
from tests.helpers.llama_child import start_child, start_children
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf

TEXTS = ["The lazy dog sleeps.", "où êtes-vous?  3 runs\n\tof 1234", "日本語 🦙 한국어", ""]


@pytest.fixture(autouse=True)
def a_child_for_each_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "run_child", start_child)
    monkeypatch.setattr(session, "subprocess", subprocess)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("model"), dtype="f32", variant="mistral")
    return write_tiny_gguf(folder, folder / "tiny.gguf")


@pytest.mark.parametrize("variant", ["llama2", "mistral", "smollm2", "attention-bias"])
def test_logits_agree_with_the_independent_numpy_forward(variant: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, dtype="f32", variant=variant)
    result = logits(write_tiny_gguf(folder, tmp_path / "tiny.gguf"), TOKENS)
    tensors, config = load(folder)
    expected = reference_logits(tensors.__getitem__, config, TOKENS)
    assert result.shape == expected.shape and result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_logits_are_the_same_without_the_vocabulary(tiny: Path) -> None:
    np.testing.assert_array_equal(logits(tiny, TOKENS, vocabulary=False), logits(tiny, TOKENS))


def test_without_the_vocabulary_a_file_that_does_not_state_its_size_is_refused(tiny: Path, tmp_path: Path) -> None:
    data, unstated = tiny.read_bytes(), tmp_path / "unstated.gguf"
    assert data.count(b"llama.vocab_size") == 1
    unstated.write_bytes(data.replace(b"llama.vocab_size", b"llama.vocab_many"))
    with pytest.raises(QuantkitError, match="could not load"):
        logits(unstated, TOKENS, vocabulary=False)
    assert logits(unstated, TOKENS).shape[0] == len(TOKENS)


def test_token_ids_are_sentencepieces(tiny: Path) -> None:
    truth = sentencepiece.SentencePieceProcessor(model_file=str(tiny.with_name("tokenizer.model")))
    assert vocab_token_ids(tiny, TEXTS) == [truth.encode(text) for text in TEXTS]


def test_token_ids_of_a_byte_level_vocabulary_are_the_tokenizers_and_special_tokens_are_parsed(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, dtype="f32", variant="smollm2")
    texts = [*TEXTS, "<|im_start|>user\nhi<|im_end|>"]
    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = vocab_token_ids(write_tiny_gguf(folder, tmp_path / "tiny.gguf"), texts)
    assert ids == [truth.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids[-1][0] == 1 and ids[-1][-1] == 2


def broken(data: bytes, how: str) -> bytes:
    match how:
        case "empty":
            return b""
        case "not a GGUF":
            return b"PK\x03\x04" * 500
        case "cut in the data":
            return data[: len(data) * 2 // 3]
        case "a key missing":
            return data.replace(b"llama.block_count", b"llama.block_coun_")
        case _:
            return data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_Q.weight")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "failed to load"),
        ("not a GGUF", "magic"),
        ("cut in the data", "not within the file bounds"),
        ("a key missing", "llama.block_count"),
        ("a tensor missing", "blk.1.attn_q.weight"),
    ],
)
def test_a_broken_file_is_one_sentence_with_llama_cpps_reason(
    how: str, reason: str, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(broken(tiny.read_bytes(), how))
    with pytest.raises(QuantkitError, match=reason) as caught:
        logits(bad, TOKENS)
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_data_that_is_not_finite_is_noticed_by_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    data[-400:-396] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(QuantkitError, match="invalid data"):
        logits(tmp_path / "nan.gguf", TOKENS)


def test_a_token_beyond_the_vocabulary_is_refused(tiny: Path) -> None:
    with pytest.raises(QuantkitError, match="cannot evaluate token 768"):
        logits(tiny, [1, 768])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match=r"gone\.gguf is not a file"):
        vocab_token_ids(tmp_path / "gone.gguf", ["x"])


def test_a_call_that_takes_too_long_is_stopped_and_leaves_no_process(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.llamacpp.evaluation.LOGITS_SECONDS", 0.05)
    before = psutil.Process().children()
    with pytest.raises(QuantkitError, match=r"0\.05 seconds"):
        logits(tiny, TOKENS)
    assert psutil.Process().children() == before


def test_without_llama_cpp_python_the_message_names_the_pip_command(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quantkit\[run\]'"):
        logits(tiny, TOKENS)


def test_a_folder_of_the_callers_that_shadows_a_package_is_not_imported(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert len(vocab_token_ids(tiny, ["The lazy dog"])[0]) > 0


def test_within_a_block_one_child_answers_about_several_files_and_a_failed_one_is_replaced(
    tiny: Path, tmp_path: Path
) -> None:
    def running() -> set[int]:
        return {child.pid for child in psutil.Process().children() if "quantkit" in " ".join(child.cmdline())}

    children: set[int] = set()
    earlier = running()  # the child that tests share

    def ids(model: Path) -> list[list[int]]:
        try:
            return vocab_token_ids(model, TEXTS)
        finally:
            children.update(running() - earlier)

    other = write_tiny_gguf(tiny_llama(tmp_path, dtype="f32", variant="smollm2"), tmp_path / "other.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 64)
    expected = vocab_token_ids(tiny, TEXTS), vocab_token_ids(other, TEXTS)
    with session.children_reused():
        assert (ids(tiny), ids(other)) == expected and len(children) == 1
        with pytest.raises(QuantkitError, match=r"bad\.gguf: llama.cpp"):
            ids(bad)
        with pytest.raises(QuantkitError, match=r"gone\.gguf is not a file"):
            ids(tmp_path / "gone.gguf")
        assert ids(tiny) == expected[0] and len(children) == 2
    assert not any(psutil.pid_exists(pid) for pid in children)


def test_children_that_start_with_a_block_answer_its_questions_and_end_with_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = vocab_token_ids(tiny, TEXTS)
    started: list[session.LlamaSession] = []

    class Noted(session.LlamaSession):
        def __init__(self, model: Path | None) -> None:
            super().__init__(model)
            started.append(self)

    monkeypatch.setattr(session, "LlamaSession", Noted)
    with start_children(2):
        assert vocab_token_ids(tiny, TEXTS) == expected
        assert len(started) == 2 and all(child.alive for child in started)
    assert not any(child.alive for child in started)
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: None)
    with start_children(2):  # without llama.cpp
        assert len(started) == 2


def test_a_missing_library_of_the_system_is_named_and_is_no_fault_of_the_file() -> None:
    log = io.BytesIO(b"Traceback\nOSError: libgomp.so.1: cannot open shared object file: No such file or directory\n")
    with pytest.raises(MissingExtraError, match=r"llama\.cpp needs libgomp\.so\.1.*libgomp1 on Debian"):
        explain(Path("a.gguf"), None, log)
    assert "a.gguf: llama.cpp could not load" in explain(Path("a.gguf"), {"error": "could not load"}, log)
