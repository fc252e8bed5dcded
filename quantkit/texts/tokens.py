"""Tokenization of text with the checkpoint's tokenizer, and conversations rendered with its chat template."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.chat import TemplateRefusal, render_all_contained
from quantkit.errors import CalibrationError, TemplateError
from quantkit.texts.documents import Document, characters, plain_text
from quantkit.tokenizer import plamo, ranks, rwkv_world, special
from quantkit.tokenizer.files import TokenizerFiles, token_text
from quantkit.tokenizer.huggingface import SPECIAL_ROLES, build_tokenizer, failures_refused, sentencepiece_ids

_PIECE = 1 << 16
_PIECES_AT_ONCE = 16
_CONVERSATIONS_AT_ONCE = 128
# A fixed date keeps the text of templates that print today's date the same. Llama 3's template falls back on this one.
_ONE_DATE = "{% macro strftime_now(pattern) %}26 Jul 2024{% endmacro %}"


Encoder = Callable[[Sequence[str]], Iterable[Sequence[int]]]
"""Texts -> the token ids of each, without BOS or EOS; special tokens in a text are parsed."""


@dataclass(frozen=True)
class ChatFormat:
    """The default chat template and the texts of the special tokens that it may use, by role ("bos_token").

    `template`: None without one. `owner`: the file or folder that it comes from, for messages.
    """

    template: str | None
    special_tokens: Mapping[str, str | None]
    owner: str


@dataclass(frozen=True)
class Rendered:
    """Texts in the order of the documents. `rendered`: how many of them the chat template rendered."""

    texts: list[str]
    rendered: int
    warnings: tuple[str, ...]


def token_ids(files: TokenizerFiles, texts: Iterable[str]) -> NDArray[np.int32]:
    """The ids of all `texts` in order, int32 (n_tokens,), without BOS or EOS; see `ids_of_pieces`.

    Raises TokenizerError or UnsupportedError when the tokenizer cannot be built.
    """
    return ids_of_pieces(encoder(files), texts)


def ids_of_pieces(encode: Encoder, texts: Iterable[str], at_once: int = _PIECES_AT_ONCE) -> NDArray[np.int32]:
    """The ids of all `texts` in order, int32 (n_tokens,).

    A text of more than 65,536 characters is tokenized in pieces. A piece ends at a newline, because no tokenizer merges
    across it. `at_once`: pieces in one call of `encode`.
    """
    arrays: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    waiting: list[str] = []
    for text in texts:
        for piece in pieces(text):
            waiting.append(piece)
            if len(waiting) == at_once:
                arrays += [np.array(ids, np.int32) for ids in encode(waiting)]
                waiting = []
    arrays += [np.array(ids, np.int32) for ids in encode(waiting)]
    return np.concatenate(arrays)


def encoder(files: TokenizerFiles) -> Encoder:
    """The tokenizer of a checkpoint. Raises TokenizerError or UnsupportedError when it cannot be built."""
    table = files.ranks
    if table is not None:
        return lambda texts: ranks.token_ids(table, texts)
    if files.pieces is not None:
        return plamo.encoder(plamo.read_pieces(files.pieces, files.config))
    if files.world is not None:
        return rwkv_world.encoder(rwkv_world.read_words(files.world))
    if files.tokenizer is None and files.model is not None:
        return lambda texts: sentencepiece_ids(files, texts) if texts else []
    tokenizer = build_tokenizer(files)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        with failures_refused(files.folder):
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


def pieces(text: str, longest: int = _PIECE) -> Iterator[str]:
    """Split `text` into pieces of at most `longest` characters, before lines that do not begin with a space."""
    start = 0
    while len(text) - start > longest:
        end = text.rfind("\n", start + 1, start + longest)
        while end > start and text[end + 1].isspace():
            end = text.rfind("\n", start + 1, end)
        end = end + 1 if end > start else start + longest
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def first_token(files: TokenizerFiles, config: dict[str, Any], n_tokens: int) -> int | None:
    """The BOS that this tokenizer adds before a text by default; None if it adds none.

    The rule is that of runtimes: the post-processor of tokenizer.json decides, then add_bos_token. Without either, a
    tokenizer.model without tokenizer.json adds BOS (the default of LlamaTokenizer and llama.cpp).
    """
    specials = special.read(files, config, n_tokens)
    alone = files.tokenizer is None and files.model is not None
    return specials.ids.get("bos") if specials.adds.get("bos", alone) else None


def chat_format(files: TokenizerFiles) -> ChatFormat:
    """The checkpoint's default chat template and its special tokens."""
    tokens = {role: token_text(files.config.get(role) or files.special.get(role)) for role in SPECIAL_ROLES}
    return ChatFormat(special.default_template(files.template), tokens, str(files.folder))


def render_documents(documents: Sequence[Document], style: ChatFormat, *, chat: bool | None, name: str) -> Rendered:
    """Render documents as texts. The chat template runs in a child process (see quantkit.chat).

    `name`: that of the text, for messages. `chat`: None uses the template if the checkpoint has one. True requires a
    template and a conversation. False uses the plain contents of the messages. A conversation that the template refuses
    is rendered again without its system message. A conversation that still fails is skipped with a warning.

    Raises:
        CalibrationError: `chat` is True without a template or conversation, or all conversations fail.
        TemplateError: the template exceeds its time or memory.
    """
    conversations = [document for document in documents if not isinstance(document, str)]
    template = None if chat is False else style.template
    if chat and template is None:
        raise CalibrationError(
            f"{style.owner} has no chat template to render conversations with; calibrate without --chat"
        )
    if chat and not conversations:
        raise CalibrationError("the calibration text has no conversations ('messages'); calibrate without --chat")
    if template is None or not conversations:
        return Rendered([plain_text(document) for document in documents if characters(document)], 0, ())
    answers = iter(_render(template, conversations, style.special_tokens))
    refused: list[TemplateError] = []
    texts = []
    for document in documents:
        answer = plain_text(document) if isinstance(document, str) else next(answers)
        if isinstance(answer, TemplateError):
            refused.append(answer)
        elif answer:
            texts.append(answer)
    if len(refused) == len(conversations):
        raise CalibrationError(
            f"the chat template fails on all {len(refused)} conversations of {name} ({refused[0]});"
            " calibrate on another text"
        )
    skipped = f"skipped {len(refused)} of {len(conversations)} conversations of {name}"
    warnings = (f"{skipped}: {refused[0]}",) if refused else ()
    return Rendered(texts, len(conversations) - len(refused), warnings)


def _render(
    template: str, conversations: Sequence[list[dict[str, str]]], special_tokens: Mapping[str, str | None]
) -> list[str | TemplateError]:
    fixed = _ONE_DATE + template if "strftime_now" in template else template
    tokens = dict(special_tokens)
    options = {
        "bos_token": tokens.pop("bos_token", None),
        "eos_token": tokens.pop("eos_token", None),
        "special_tokens": {role: text for role, text in tokens.items() if text is not None},
        "add_generation_prompt": False,
    }

    def render_batches(batch: Sequence[list[dict[str, str]]]) -> list[str | TemplateError]:
        answers: list[str | TemplateError] = []
        for start in range(0, len(batch), _CONVERSATIONS_AT_ONCE):
            some = batch[start : start + _CONVERSATIONS_AT_ONCE]
            answers += render_all_contained(fixed, [{**options, "messages": messages} for messages in some])
        return answers

    answers = render_batches(conversations)
    again = [
        number
        for number, answer in enumerate(answers)
        if isinstance(answer, TemplateRefusal) and any(message["role"] == "system" for message in conversations[number])
    ]
    without = [[message for message in conversations[number] if message["role"] != "system"] for number in again]
    for number, answer in zip(again, render_batches(without), strict=True):
        answers[number] = answer
    return answers
