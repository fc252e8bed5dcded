"""Token ids by the vocabulary that is embedded in a GGUF; llama.cpp tokenizes."""

from collections.abc import Sequence
from pathlib import Path

from quantkit.llamacpp import session


def vocab_token_ids(model: Path, texts: Sequence[str], *, timeout: float = 120.0) -> list[list[int]]:
    """Token ids of each text by the vocabulary embedded in `model`; the weights are not read.

    As a Hugging Face tokenizer with add_special_tokens=False: nothing is added, special tokens in the text are parsed.
    Source: llama_tokenize. Raises QuantkitError when llama.cpp refuses the file or takes over `timeout` seconds.
    """
    result = session.run_child(
        {"task": "vocab_tokens", "model": str(model.absolute()), "texts": list(texts)}, model, timeout=timeout
    )
    return [[int(token) for token in ids] for ids in result]


def text_tokens(model: Path, text: str, *, timeout: float = 600.0) -> tuple[list[int], int | None]:
    """Token ids of a text (less one trailing newline) to measure on, and the BOS this vocabulary adds, or None.

    As llama-perplexity reads a file: BOS before it where the vocabulary adds one, special tokens in it taken as text.
    Raises QuantkitError as vocab_token_ids does.
    """
    request = {"task": "text_tokens", "model": str(model.absolute()), "text": text.removesuffix("\n")}
    result = session.run_child(request, model, timeout=timeout)
    return [int(token) for token in result["tokens"]], result["bos"]


def ids_with_special_tokens(model: Path, texts: Sequence[str], *, timeout: float = 600.0) -> list[list[int]]:
    """Token ids of each text with the special tokens that the vocabulary of `model` puts around it.

    Raises QuantkitError as vocab_token_ids does.
    """
    request = {"task": "special_tokens", "model": str(model.absolute()), "texts": list(texts)}
    return [[int(token) for token in ids] for ids in session.run_child(request, model, timeout=timeout)]
