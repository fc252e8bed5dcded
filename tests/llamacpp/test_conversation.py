"""Talking to real GGUF files of tiny models: the cache, the end, the bytes of a character."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from quantkit.errors import QuantkitError
from quantkit.gguf.reader import read_header
from quantkit.llamacpp.conversation import CONTEXT, Conversation, Loading, converse
from quantkit.llamacpp.evaluation import logits
from quantkit.llamacpp.sampling import Sampling
from quantkit.llamacpp.token_ids import vocab_token_ids
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.conversions import to_gguf
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    tiny_llama(folder / "model", variant="llama3", dtype="f32")
    words = ("gguf", "model", "-t", "f32", "--chat-template", "chatml")
    assert quantkit(*words, cwd=folder).code == 0
    return folder / "model-GGUF" / "model-F32.gguf"


def talking(model: Path, *, n_ctx: int = 256, raw: bool = False, **options) -> Conversation:
    conversation = converse(model, n_ctx=n_ctx, system=None, raw=raw, sampling={"temperature": 0, **options})
    conversation.open(Loading(gpu_layers=0, n_threads=2))
    return conversation


def greedy(model: Path, prompt: list[int], count: int) -> list[int]:
    """The oracle: all logits anew for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_the_answer_is_the_greedy_one_and_later_turns_are_those_of_a_fresh_start(model: Path) -> None:
    with talking(model) as one:
        first = one.say("Hello there", most=6, show=lambda piece: None)
        shown: list[str] = []
        second = one.say("And now?", most=6, show=shown.append)
        assert "".join(shown) == second.text and first.reason == "length"
        prompt, _ = one._prompt(one.messages[:-1])
        assert second.prompt_tokens < len(prompt), "what was said before is in the cache"
    with talking(model) as other:
        other.messages = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": first.text}]
        assert other.say("And now?", most=6, show=lambda piece: None).text == second.text
    tokenizer = Tokenizer.from_file(str(model.parents[1] / "model" / "tokenizer.json"))
    assert second.text == tokenizer.decode(greedy(model, prompt, 6))


def test_the_template_of_the_file_makes_the_prompt(model: Path) -> None:
    with talking(model) as conversation:
        conversation.system = "Be brief."
        tokens, _ = conversation._prompt([{"role": "user", "content": "Hi"}])
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    (expected,) = vocab_token_ids(model, [text])
    assert tokens[-len(expected) :] == expected


def chain(folder: Path, tokens: list[str]) -> Path:
    """A model of Kimi K3's control tokens and template that gives each of `tokens` after the one before it.

    Its layer adds nothing, so a row of the output matrix that is the embedding of a token comes after that token.
    """
    tiny_llama(folder, variant="llama3", dtype="f32", layers=1, tied=False)
    path = folder / "tokenizer.json"
    text = path.read_text("utf-8")
    for name, control in (
        ("<|reserved_special_token_0|>", "<|open|>"),
        ("<|reserved_special_token_1|>", "<|close|>"),
        ("<|python_tag|>", "<|sep|>"),
        ("<|eom_id|>", "<|end_of_msg|>"),
    ):
        assert name in text
        text = text.replace(name, control)
    path.write_text(text, "utf-8")
    ids = [Tokenizer.from_file(str(path)).token_to_id(token) for token in tokens]
    weights = load_file(folder / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{name}.weight"][...] = 0
    weights["lm_head.weight"][...] = 0
    weights["lm_head.weight"][ids[1:]] = weights["model.embed_tokens.weight"][ids[:-1]]
    weights["model.norm.weight"][...] = 1
    save_file(weights, folder / "model.safetensors")
    words = ("gguf", folder, "-t", "f32", "--chat-template", "kimi-k3", "-o", folder.parent, "--no-logits")
    assert quantkit(*words).code == 0
    return folder.parent / f"{folder.name}-GGUF" / f"{folder.name}-F32.gguf"


def test_an_answer_in_channels_is_told_by_its_control_tokens(tmp_path: Path) -> None:
    model = chain(tmp_path / "chain", ["<|sep|>", "A", "B", "<|close|>", "C", "<|end_of_text|>"])
    with talking(model) as conversation:
        shown: list[str] = []
        answer = conversation.say("Hi", most=9, show=shown.append)
        assert (answer.text, answer.reason, answer.tokens) == ("<think>\nAB", "end", 4)
        assert "".join(shown) == answer.text
        assert conversation.messages[-1] == {"role": "assistant", "content": "", "reasoning_content": "AB"}
    answer_document = json.loads(quantkit("run", model, "-p", "Hi", "--temperature", "0", "--format", "json").stdout)
    assert answer_document["answer"] == answer.text


def test_raw_text_is_continued_without_a_template(model: Path) -> None:
    with talking(model, raw=True) as conversation:
        tokens, _ = conversation._prompt([{"role": "user", "content": "Once upon"}])
        answer = conversation.say("Once upon", most=1, show=lambda piece: None)
    (plain,) = vocab_token_ids(model, ["Once upon"])
    assert tokens[-len(plain) :] == plain
    assert answer.tokens == 1 and int(logits(model, tokens)[-1].argmax()) == greedy(model, tokens, 1)[0]


def test_a_seed_gives_the_same_answer_and_another_one_another(model: Path) -> None:
    answers = []
    for seed in (1, 1, 2):
        with talking(model, temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed) as conversation:
            answers.append(conversation.say("Hello", most=12, show=lambda piece: None).text)
    assert answers[0] == answers[1] != answers[2]


def test_an_answer_ends_where_the_context_does_and_too_long_a_question_is_refused(model: Path) -> None:
    with talking(model, n_ctx=64) as conversation:
        n_ctx = conversation.n_ctx
        answer = conversation.say("Hello", most=10_000, show=lambda piece: None)
        assert answer.reason == "context" and answer.tokens < n_ctx
        before = list(conversation.messages)
        with pytest.raises(QuantkitError, match="larger --ctx"):
            conversation.say("word " * n_ctx, most=1, show=lambda piece: None)
        assert conversation.messages == before and conversation.alive


def test_a_stopped_answer_is_kept_and_the_conversation_goes_on(model: Path) -> None:
    with talking(model, n_ctx=4096) as conversation:
        began = threading.Event()
        stopper = threading.Thread(target=lambda: (began.wait(), conversation.stop()))
        stopper.start()
        answer = conversation.say("Hello", most=3000, show=lambda piece: began.set())
        stopper.join()
        assert answer.reason == "asked" and 0 < answer.tokens < 3000
        assert conversation.say("Again", most=2, show=lambda piece: None).tokens == 2


def test_characters_are_whole_though_tokens_are_bytes(model: Path) -> None:
    """At a high temperature byte tokens come in any order: what is shown is valid text all the same."""
    shown: list[str] = []
    with talking(model, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=3) as conversation:
        answer = conversation.say("你好", most=200, show=shown.append)
    assert "".join(shown) == answer.text
    assert answer.text.encode("utf-8").decode("utf-8") == answer.text


def test_what_was_asked_goes_before_what_the_file_recommends(model: Path, tmp_path: Path) -> None:
    header = read_header(model)
    assert Sampling.of(header, {}) == Sampling()
    assert Sampling.of(header, {"temperature": 0.3, "top_k": None}) == Sampling(temperature=0.3)
    trained = header.value("llama.context_length")
    assert converse(model, n_ctx=None, system=None, raw=False, sampling={}).n_ctx == min(CONTEXT, trained)
    assert np.isfinite(Sampling().document()["seed"])


def test_a_repeat_penalty_is_applied_by_llama_cpps_own_sampler(model: Path) -> None:
    with talking(model, raw=True) as plain:
        usual = plain.say("Hello there", most=24, show=lambda piece: None)
    with talking(model, raw=True, repeat_penalty=100.0) as strict:
        penalized = strict.say("Hello there", most=24, show=lambda piece: None)
    assert penalized.text and penalized.text != usual.text


def test_a_prefix_older_than_the_window_of_sliding_layers_is_evaluated_again(tmp_path: Path) -> None:
    model = to_gguf(write_checkpoint("gemma3", tmp_path / "gemma3"), "f32", tmp_path)
    text = " ".join(str(number) for number in range(900))
    with talking(model, n_ctx=4096, raw=True) as conversation:
        first = conversation.say(text, most=1, show=lambda piece: None)
        early = conversation.say(text[: len(text) // 4] + " end", most=8, show=lambda piece: None)
        late = conversation.say(text[: len(text) // 4] + " end of it", most=8, show=lambda piece: None)
    with talking(model, n_ctx=4096, raw=True) as fresh:
        assert early.text == fresh.say(text[: len(text) // 4] + " end", most=8, show=lambda piece: None).text
    assert first.prompt_tokens > 1500
    # the window has moved on, so nothing is kept; what is still in it is
    assert early.prompt_tokens > first.prompt_tokens // 5 and late.prompt_tokens < 12
