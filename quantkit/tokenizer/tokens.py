"""The tokens of a vocabulary on their way into GGUF: texts, scores, types, and warnings."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from gguf import GGUFValueType

from quantkit.errors import TokenizerError
from quantkit.gguf import keyvalues
from quantkit.gguf.keyvalues import KeyValue

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"  # U+2581, how SentencePiece writes a space

ADDED_SCORE = -1000.0  # what llama.cpp's converter gives added tokens
_LOOKS_SPECIAL = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}


@dataclass
class Tokens:
    """One vocabulary: `texts[i]`, `types[i]` and, except for byte-level BPE, `scores[i]` describe token i.

    `pre` is tokenizer.ggml.pre, None where `model` implies the split.
    `first` are the keys that precede tokenizer.ggml.model, `last` those that follow the token types, `end` those that
    follow all others. `ids`: special token ids by role, for roles that the checkpoint's files leave open. `adds`:
    whether these tokens are added. `probe_ids`: the ids of PROBE by the checkpoint's tokenizer, where it was loaded.
    """

    model: str
    pre: str | None
    texts: list[bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    first: list[KeyValue] = field(default_factory=list)
    last: list[KeyValue] = field(default_factory=list)
    end: list[KeyValue] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    probe_ids: list[list[int]] | None = None

    def keys(self) -> list[KeyValue]:
        """The keys of the token table, in the order llama.cpp's converter writes them."""
        keys = [
            *self.first,
            keyvalues.string("tokenizer.ggml.model", self.model),
            *([] if self.pre is None else [keyvalues.string("tokenizer.ggml.pre", self.pre)]),
            keyvalues.array("tokenizer.ggml.tokens", GGUFValueType.STRING, self.texts),
        ]
        if self.scores is not None:
            keys.append(keyvalues.array("tokenizer.ggml.scores", GGUFValueType.FLOAT32, self.scores))
        keys.append(keyvalues.array("tokenizer.ggml.token_type", GGUFValueType.INT32, self.types))
        return keys + self.last

    def add_type_count(self, count: int) -> None:
        """Add the number of token types where llama.cpp's converter writes it: it depends on the kind of vocabulary."""
        key = keyvalues.uint32("tokenizer.ggml.token_type_count", count)
        if self.model == "bert":
            self.first.append(key)
        elif self.model == "t5":
            self.last.insert(1, key)  # after the space prefix
        else:
            self.end.append(key)

    def place(self, number: int, text: str, special: bool) -> None:
        """Put an added token at its id: CONTROL when special, else USER_DEFINED with its spaces spelled out.

        llama.cpp matches both kinds in the raw text, before spaces are escaped (conversion/base.py, get_vocab_base).
        """
        if special or looks_special(text):
            self.types[number] = CONTROL
        else:
            text = text.replace(SPACE, " ")
            self.types[number] = USER_DEFINED
        self.texts[number] = text.encode()
        if self.scores is not None:
            self.scores[number] = ADDED_SCORE


def looks_special(text: str) -> bool:
    """Whether an added token not marked special is a control token all the same (does_token_look_special there)."""
    return (
        text in _LOOKS_SPECIAL
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def padding(numbers: Iterable[int]) -> list[bytes]:
    """Texts of embedding rows that no token uses."""
    return [f"[PAD{number}]".encode() for number in numbers]


def padded(rows: int, used: Iterable[int]) -> list[bytes]:
    """A text for each row of an embedding: that of padding, or an empty one where a token will be placed."""
    texts = [b""] * rows
    unused = sorted(set(range(rows)).difference(used))
    for number, text in zip(unused, padding(unused), strict=True):
        texts[number] = text
    return texts


def say_padded(tokens: Tokens, used: int) -> None:
    """Warn when the embedding has more rows than the tokenizer has tokens; `used` counts the tokens."""
    if used < len(tokens.texts):
        tokens.warnings.append(f"padded the vocabulary from {used} to {len(tokens.texts)} tokens with unused [PADn]")


def fit(vocab: Mapping[str, int], added: Container[int], rows: int | None) -> tuple[dict[str, int], int, list[str]]:
    """The ids by text of tokens with a row of the embedding, the number of rows, a warning for other tokens.

    `rows` is config.json's vocab_size; None takes what the tokenizer needs. Only added tokens may be left out: Gemma
    3's 1B has one for images, which it cannot see.

    Raises:
        TokenizerError: other tokens have no row.
    """
    count = 1 + max(vocab.values(), default=-1)
    rows = rows or count
    if count <= rows:
        return dict(vocab), rows, []
    beyond = {number: text for text, number in vocab.items() if number >= rows}
    if not all(number in added for number in beyond):
        raise too_large(count, rows)
    return {text: number for text, number in vocab.items() if number < rows}, rows, [left_out(beyond, rows)]


def left_out(beyond: Mapping[int, str], rows: int) -> str:
    """The warning that added tokens (id -> text) have no row of the embedding."""
    first = min(beyond)
    return (
        f"left out {len(beyond)} added tokens with ids from {first} ({beyond[first]!r}) on: "
        f"the embedding has {rows} rows"
    )


def too_large(count: int, vocab_size: int) -> TokenizerError:
    """The refusal of a tokenizer whose ids run past the embedding."""
    return TokenizerError(
        f"the tokenizer has {count} tokens but config.json's vocab_size, the rows of the embedding, is {vocab_size}; "
        f"use the tokenizer the weights were trained with, or resize the embedding to {count} rows"
    )


def refuse_duplicates(tokens: Tokens) -> None:
    """Raise TokenizerError when two ids share one text: llama.cpp aborts on loading such a file."""
    if len(set(tokens.texts)) == len(tokens.texts):
        return
    ids: dict[bytes, int] = {}
    for number, text in enumerate(tokens.texts):
        other = ids.setdefault(text, number)
        if other != number:
            raise TokenizerError(
                f"tokens {other} and {number} have the same text {text.decode(errors='replace')!r}, which llama.cpp "
                "cannot load; give one of them another text in the tokenizer files"
            )
