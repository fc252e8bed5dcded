"""The tokenizer that is embedded in a GGUF, for calibration texts."""

from pathlib import Path

from quantkit.errors import UnsupportedError
from quantkit.gguf.reader import read_header
from quantkit.gguf.vocabulary import TEMPLATE_KEY, special_tokens, token_texts
from quantkit.llamacpp.token_ids import text_tokens, vocab_token_ids
from quantkit.texts.samples import TextTokenizer
from quantkit.texts.tokens import ChatFormat

# each call loads the vocabulary in a new process
_PIECES_AT_ONCE = 4096


def gguf_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer of a GGUF, run by llama.cpp, and its chat template.

    Raises:
        CheckpointError: the file is not a valid GGUF.
        MissingExtraError: llama-cpp-python is not installed.
        UnsupportedError: the file has no vocabulary.
        QuantkitError: llama.cpp cannot read it.
    """
    header = read_header(path)
    size = len(token_texts(header.keys))
    if not size:
        raise UnsupportedError(f"{path.name} has no vocabulary, so no text can be tokenized; pass --imatrix FILE")
    template = header.value(TEMPLATE_KEY)
    special = {f"{role}_token": text for role, _, text in special_tokens(header.keys)}
    return TextTokenizer(
        name=path.name,
        encode=lambda texts: vocab_token_ids(path, texts, timeout=600.0) if texts else [],
        chat=ChatFormat(template if isinstance(template, str) else None, special, path.name),
        vocab=size,
        first=text_tokens(path, "")[1],
        at_once=_PIECES_AT_ONCE,
    )
