"""`run --prompt-cache`: a later start does not evaluate the prompt again, and a file that does not fit is ignored."""

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from quantkit.llamacpp.conversation import Answer, Loading, converse
from tests.families.expected import write_checkpoint
from tests.helpers.command import command, quantkit
from tests.helpers.conversions import to_gguf
from tests.helpers.forked import run_process
from tests.helpers.tiny import tiny_llama

TEXT = "The quick brown fox jumps over the lazy dog. "
F16, Q8_0 = GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    tiny_llama(folder / "model", variant="llama3", dtype="f32")
    assert quantkit("gguf", "model", "-t", "f32", "-t", "q8_0", cwd=folder).code == 0
    return folder / "model-GGUF" / "model-F32.gguf"


def start(
    model: Path, cache: Path | None, prompt: str, *, n_ctx: int = 1024, kv_type: GGMLQuantizationType = F16
) -> tuple[Answer, str]:
    """The answer of a new process, and its warnings."""
    warnings: list[str] = []
    with converse(model, n_ctx=n_ctx, system=None, raw=True, sampling={"temperature": 0}) as conversation:
        conversation.prompt_cache, conversation.warn = cache, warnings.append
        conversation.open(Loading(gpu_layers=0, n_threads=2, kv_type=kv_type))
        return conversation.say(prompt, most=12, show=lambda piece: None), " ".join(warnings)


def test_the_second_start_evaluates_one_token_and_gives_the_same_answer(model: Path, tmp_path: Path) -> None:
    words = ("-p", TEXT * 9, "--temperature", "0", "--raw", "-n", "12", "--prompt-cache", tmp_path / "prompt.cache")
    first, second = (run_process(command("run", model, *words, "--format", "json")) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
    before, after = (json.loads(done.stdout) for done in (first, second))
    assert before["prompt_tokens"] > 100 and after["prompt_tokens"] == 1
    assert after["answer"] == before["answer"] and b"warning" not in second.stderr
    # a prompt that goes on where the saved one ends evaluates the rest only
    longer, _ = start(model, tmp_path / "prompt.cache", TEXT * 10)
    plain, _ = start(model, None, TEXT * 10)
    assert longer.text == plain.text
    assert 0 < longer.prompt_tokens < plain.prompt_tokens - before["prompt_tokens"] + 5
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.cache"]


def test_a_recurrent_model_starts_from_its_saved_state(tmp_path: Path) -> None:
    model = to_gguf(write_checkpoint("qwen35-bare", tmp_path / "bare"), "f32", tmp_path)
    first, _ = start(model, tmp_path / "cache", TEXT * 3)
    second, _ = start(model, tmp_path / "cache", TEXT * 3)
    assert second.prompt_tokens == 1 and second.text == first.text


def test_a_damaged_cache_is_ignored_in_a_sentence_and_replaced(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "prompt.cache"
    first, _ = start(model, cache, TEXT)
    saved = cache.read_bytes()
    middle = len(saved) // 2
    flipped = saved[:middle] + bytes([saved[middle] ^ 4]) + saved[middle + 1 :]
    for damaged in (saved[:-7], flipped, b""):
        cache.write_bytes(damaged)
        again, warning = start(model, cache, TEXT)
        assert warning == f"the prompt cache {cache} is damaged; the prompt is evaluated and the file is overwritten"
        assert (again.text, again.prompt_tokens) == (first.text, first.prompt_tokens)
        assert cache.read_bytes() == saved


def test_the_cache_of_another_model_or_kv_type_or_of_a_longer_context_is_ignored(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "prompt.cache"
    start(model, cache, TEXT * 15)
    saved = cache.read_bytes()
    others = (
        (start(model.with_name("model-Q8_0.gguf"), cache, TEXT), "is of another model"),
        (start(model, cache, TEXT, kv_type=Q8_0), "is of another model"),
    )
    for (answer, warning), reason in others:
        assert reason in warning and answer.prompt_tokens > 1
    cache.write_bytes(saved)
    answer, warning = start(model, cache, TEXT, kv_type=Q8_0)
    assert "is of another type of KV cache" in warning and answer.prompt_tokens > 1
    cache.write_bytes(saved)
    answer, warning = start(model, cache, TEXT, n_ctx=256)
    assert "more than the context of 256" in warning and answer.prompt_tokens > 1


def test_another_file_is_never_overwritten_and_a_folder_that_is_missing_is_named(model: Path, tmp_path: Path) -> None:
    kept = model.read_bytes()
    answer = quantkit("run", model, "-p", "Hi", "--prompt-cache", model)
    assert answer.code == 2 and f"--prompt-cache {model} is not a prompt cache of quantkit" in answer.sentence
    assert model.read_bytes() == kept
    answer = quantkit("run", model, "-p", "Hi", "--prompt-cache", tmp_path / "none" / "cache")
    assert answer.code == 2 and "cannot be a file; pass the name of a file in an existing folder" in answer.sentence
    head = ("--draft", "mtp", "--prompt-cache", tmp_path / "cache")
    answer = quantkit("run", model, "-p", "Hi", *head)
    assert answer.code == 2 and "has no MTP layer" in answer.sentence


def test_a_cache_that_cannot_be_written_costs_a_warning_and_not_the_answer(model: Path) -> None:
    answer, warning = start(model, Path("/proc/prompt.cache"), TEXT)
    assert warning.startswith("the prompt cache was not saved: cannot write /proc/prompt.cache") and answer.tokens == 12
    assert warning.endswith("; pass another file with --prompt-cache")
