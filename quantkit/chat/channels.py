"""Answers in channels: what a model thinks and what it responds, between control tokens, made into plain text.

Formats: harmony of gpt-oss (openai/harmony, docs/format.md) and XTML of Kimi K3 (encoding_k3.py of moonshotai/Kimi-K3).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.chat.recognise import template_name


@dataclass(frozen=True)
class ChannelFormat:
    """The control tokens of a format.

    Attributes:
        turn: begins a message; a prompt ends with one that the model completes.
        opens: begin a header, whose first word names a channel.
        closes: end a channel; a header may follow.
        text: ends a header; the text of the channel follows.
        thinking: the channels that are not the response.
    """

    turn: str
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    text: str
    thinking: tuple[str, ...]

    @property
    def marks(self) -> tuple[str, ...]:
        """All control tokens."""
        return (*self.opens, *self.closes, self.text)


FORMATS: Mapping[str, ChannelFormat] = {
    "harmony": ChannelFormat(
        turn="<|start|>",
        opens=("<|start|>", "<|channel|>"),
        closes=("<|end|>", "<|return|>", "<|call|>"),
        text="<|message|>",
        thinking=("analysis",),
    ),
    "kimi-k3": ChannelFormat(
        turn="<|open|>message",
        opens=("<|open|>",),
        closes=("<|close|>", "<|end_of_msg|>"),
        text="<|sep|>",
        thinking=("think",),
    ),
}
"""By the name of the chat template's format."""

_BEGIN, _END = "<think>\n", "\n</think>\n\n"


class AnswerReader:
    """Reads an answer piece by piece; `response`: what the model has said so far."""

    reads_control = False
    """Whether the pieces have to include the text of control tokens."""

    def __init__(self) -> None:
        self.response = ""

    @property
    def message(self) -> dict[str, str]:
        """The answer as a message of a conversation, for a chat template."""
        return {"role": "assistant", "content": self.response}

    def feed(self, piece: str) -> str:
        """Read the next piece; the text to show."""
        self.response += piece
        return piece

    def finish(self) -> str:
        """End the answer; the text to show that is left."""
        return ""


def answer_reader(template: str | None, prompt: str) -> AnswerReader:
    """What reads an answer to `prompt`, which a chat template has made: into channels if its format has them."""
    name = template_name(template) if template else None
    form = FORMATS.get(name) if name else None
    return ChannelReader(form, prompt) if form else AnswerReader()


class ChannelReader(AnswerReader):
    """Sorts an answer into `reasoning` and `response`, by the channels that it names.

    The text to show has the reasoning between <think> and </think>, as other models write it.
    """

    reads_control = True

    def __init__(self, form: ChannelFormat, prompt: str) -> None:
        """`prompt`: the text that the answer continues, with the header that it ends in."""
        super().__init__()
        self._form = form
        self._mark = re.compile("|".join(map(re.escape, form.marks)))
        self._buffer = ""
        # the text of a header so far; None in a channel. Text between channels counts as a header of none.
        self._header: str | None = None
        self._names_channel = self._thinks = self._shows_thoughts = False
        self._from_prompt = 0
        self.reasoning = ""
        start = prompt.rfind(form.turn)
        if start >= 0:
            self.feed(prompt[start:])
            self.reasoning = self.response = ""
            self._shows_thoughts = False
            self._from_prompt = len(self._header or "")

    @property
    def message(self) -> dict[str, str]:
        return {**super().message, "reasoning_content": self.reasoning}

    def feed(self, piece: str) -> str:
        self._buffer += piece
        shown = []
        while mark := self._mark.search(self._buffer):
            shown.append(self._text(self._buffer[: mark.start()]))
            self._buffer = self._buffer[mark.end() :]
            self._control(mark[0])
        kept = max(n for mark in self._form.marks for n in range(len(mark)) if self._buffer.endswith(mark[:n]))
        text, self._buffer = self._buffer[: len(self._buffer) - kept], self._buffer[len(self._buffer) - kept :]
        return "".join([*shown, self._text(text)])

    def finish(self) -> str:
        """End the answer; the text to show that is left: all of an answer that names no channel."""
        shown = self._text(self._buffer)
        self._buffer = ""
        if self._header and not self.reasoning and not self.response:
            text, self._header, self._thinks = self._header[self._from_prompt :], None, False
            shown += self._text(text)
        return shown

    def _control(self, mark: str) -> None:
        form, self._from_prompt = self._form, 0
        if mark in form.opens or mark in form.closes:
            self._header, self._names_channel = "", mark in form.opens
        elif self._names_channel:
            words = (self._header or "").split(maxsplit=1)
            self._header, self._thinks = None, bool(words) and words[0] in form.thinking
        else:
            self._header = ""

    def _text(self, text: str) -> str:
        """The text to show of a text without a mark."""
        if not text:
            return ""
        if self._header is not None:
            self._header += text
            return ""
        if self._thinks:
            begins, self._shows_thoughts = not self._shows_thoughts, True
            self.reasoning += text
            return _BEGIN + text if begins else text
        ends, self._shows_thoughts = self._shows_thoughts, False
        self.response += text
        return _END + text if ends else text
