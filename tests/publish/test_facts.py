"""What is read out of a GGUF's header, from files the gguf package wrote."""

from pathlib import Path

import pytest

from quantkit.chat import BUILT_IN
from quantkit.errors import CheckpointError
from quantkit.publish.ollama.facts import facts_of_folder, facts_of_gguf
from tests.publish.gguf_files import CHATML, write_gguf


def test_every_fact_of_a_header(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        type="q4_k_m",
        eot=2,
        license="apache-2.0",
        sampling={"temp": 0.7, "top_p": 0.85, "top_k": 20, "penalty_repeat": 1.05, "min_p": 0.05, "mirostat": 1},
    )
    facts = facts_of_gguf(path)
    assert (facts.name, facts.files, facts.type, facts.size_label) == ("Small Model", (path,), "q4_k_m", "3.9B")
    assert (facts.context_length, facts.chat_template, facts.license) == (32768, CHATML, "apache-2.0")
    assert (facts.bos_token, facts.eos_token, facts.end_tokens) == ("<s>", "<|im_end|>", ("<|im_end|>", "</s>"))
    # float32 in the file, the publisher's own decimals here; mirostat is not one of Ollama's any more
    assert dict(facts.sampling) == {
        "top_k": 20,
        "top_p": 0.85,
        "min_p": 0.05,
        "temperature": 0.7,
        "repeat_penalty": 1.05,
    }


@pytest.mark.parametrize(
    ("add_bos_token", "model", "pre", "adds"),
    [
        (True, "gpt2", "qwen2", True),
        (False, "llama", "default", False),
        (None, "llama", "default", True),
        (None, "gpt2", "qwen2", False),
        (None, "gpt2", "llama-bpe", True),
        (None, "gpt2", "tekken", True),
        (None, "t5", "default", False),
    ],
)
def test_a_bos_is_added_where_llama_cpp_adds_it(
    tmp_path: Path, add_bos_token: bool | None, model: str, pre: str, adds: bool
) -> None:
    path = write_gguf(tmp_path / "m.gguf", add_bos=add_bos_token, model=model, pre=pre)
    assert facts_of_gguf(path).adds_bos is adds


def test_a_file_without_a_size_is_counted(tmp_path: Path) -> None:
    assert facts_of_gguf(write_gguf(tmp_path / "m.gguf", size_label=None)).size_label == "0.26K"


def test_a_template_is_suggested_from_the_vocabulary_only_if_the_file_has_none(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "<|beginofutterance|>", "<|endofutterance|>"]
    without = facts_of_gguf(write_gguf(tmp_path / "a.gguf", template=None, tokens=tokens))
    assert without.chat_template is None and without.suggested is not None and without.suggested.name == "huozi"
    assert facts_of_gguf(write_gguf(tmp_path / "b.gguf", tokens=tokens)).suggested is None
    assert facts_of_gguf(write_gguf(tmp_path / "c.gguf", template=None)).suggested is None


def test_a_template_is_suggested_from_the_architecture(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *BUILT_IN["deepseek-v4"].marks]
    file = write_gguf(tmp_path / "a.gguf", template=None, tokens=tokens, eos=2, architecture="deepseek4")
    assert facts_of_gguf(file).suggested == BUILT_IN["deepseek-v4"]
    other = write_gguf(tmp_path / "b.gguf", template=None, tokens=tokens, eos=2, architecture="deepseek2")
    assert facts_of_gguf(other).suggested is None


def test_a_folder_gives_its_models_and_a_note_for_other_files(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-Q4_0.gguf")
    write_gguf(tmp_path / "m-Q8_0.gguf", type="q8_0")
    write_gguf(tmp_path / "mmproj.gguf", kind="mmproj")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    models, notes = facts_of_folder(tmp_path)
    assert [model.type for model in models] == ["q4_0", "q8_0"]
    # a projector is not left out: it belongs to the models (tests/vision/test_ollama.py)
    assert len(notes) == 1
    assert "broken.gguf is not a sound GGUF file" in notes[0]


def test_a_shard_stands_for_all(tmp_path: Path) -> None:
    for i in (1, 2):
        write_gguf(tmp_path / f"m-0000{i}-of-00002.gguf")
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    assert facts_of_gguf(second).files == (first, second)
    (only,), notes = facts_of_folder(tmp_path)
    assert only.files == (first, second) and notes == []


def test_a_file_that_is_not_a_gguf_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("not one")
    with pytest.raises(CheckpointError, match=r"m\.gguf is not a sound GGUF file: the magic is missing"):
        facts_of_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"file .*gone\.gguf not found; check the path"):
        facts_of_gguf(tmp_path / "gone.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no GGUF file; make them with `quantkit gguf`"):
        facts_of_folder(tmp_path / "empty")
