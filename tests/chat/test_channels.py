"""Answers in channels become plain text: harmony's and Kimi K3's, in pieces of any size."""

import random

import pytest

from quantkit.chat import BUILT_IN, render
from quantkit.chat.channels import AnswerReader, ChannelReader, answer_reader

# The marks by which the format is recognised, as in the template of openai/gpt-oss-20b.
HARMONY = "{{ '<|start|>assistant<|channel|>final<|message|>' }}"
KIMI = BUILT_IN["kimi-k3"].text
SHOWN = "<think>\nThe user greets.\n</think>\n\nHello!"
# The example of openai/harmony, docs/format.md.
OF_HARMONY = (
    "<|channel|>analysis<|message|>The user greets.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>"
)
OF_KIMI = (
    "The user greets.<|close|>think<|sep|><|open|>response<|sep|>Hello!<|close|>response<|sep|>"
    "<|close|>message<|sep|><|end_of_msg|>"
)
KIMI_PROMPT = render(KIMI, [{"role": "user", "content": "Hi"}])
HARMONY_PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"


def read(reader: AnswerReader, answer: str, sizes: random.Random | None = None) -> str:
    """What is shown of an answer in pieces of up to eight characters, or in one."""
    shown = ""
    while answer:
        size = sizes.randint(1, 8) if sizes else len(answer)
        piece, answer = answer[:size], answer[size:]
        shown += reader.feed(piece)
    return shown + reader.finish()


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [(HARMONY, HARMONY_PROMPT, OF_HARMONY), (KIMI, KIMI_PROMPT, OF_KIMI)],
    ids=["harmony", "kimi-k3"],
)
@pytest.mark.parametrize("seed", [None, *range(8)])
def test_an_answer_is_its_reasoning_and_its_response(template: str, prompt: str, answer: str, seed: int | None) -> None:
    reader = answer_reader(template, prompt)
    assert read(reader, answer, None if seed is None else random.Random(seed)) == SHOWN
    assert reader.message == {"role": "assistant", "content": "Hello!", "reasoning_content": "The user greets."}


def test_the_next_prompt_of_kimi_k3_has_the_answer_as_the_model_wrote_it() -> None:
    """The history is a prefix of what was generated, so that the KV cache keeps it."""
    reader = answer_reader(KIMI, KIMI_PROMPT)
    read(reader, OF_KIMI)
    turns = [{"role": "user", "content": "Hi"}, reader.message, {"role": "user", "content": "Bye"}]
    assert render(KIMI, turns).startswith(KIMI_PROMPT + OF_KIMI)


def test_kimi_k3_without_thinking_begins_with_its_response() -> None:
    prompt = KIMI_PROMPT.removesuffix("<|open|>think<|sep|>") + "<|open|>response<|sep|>"
    assert prompt != KIMI_PROMPT
    assert read(answer_reader(KIMI, prompt), "Hello!<|close|>response<|sep|>") == "Hello!"


def test_a_preamble_of_harmony_is_shown_as_a_response() -> None:
    answer = "<|channel|>commentary<|message|>First this.<|end|><|start|>assistant" + OF_HARMONY
    assert read(answer_reader(HARMONY, HARMONY_PROMPT), answer) == (
        "First this.<think>\nThe user greets.\n</think>\n\nHello!"
    )


@pytest.mark.parametrize(
    ("cut", "shown"),
    [
        ("<|channel|>analysis<|message|>The user", "<think>\nThe user"),
        ("<|channel|>analysis<|message|>The user greets.<|end|><|start|>assist", "<think>\nThe user greets."),
        (OF_HARMONY.removesuffix("lo!<|return|>"), SHOWN.removesuffix("lo!")),
    ],
)
def test_a_cut_answer_shows_what_its_channels_have_said(cut: str, shown: str) -> None:
    assert read(answer_reader(HARMONY, HARMONY_PROMPT), cut) == shown


def test_an_answer_that_names_no_channel_is_shown_whole() -> None:
    assert read(answer_reader(HARMONY, HARMONY_PROMPT), "plain < text") == "plain < text"
    assert read(answer_reader(HARMONY, "a prompt without a turn"), "plain < text <|") == "plain < text <|"


def test_other_templates_leave_an_answer_as_it_is() -> None:
    for template in (None, BUILT_IN["chatml"].text):
        reader = answer_reader(template, "<|im_start|>assistant\n")
        assert not isinstance(reader, ChannelReader)
        assert read(reader, OF_HARMONY) == OF_HARMONY == reader.message["content"]
