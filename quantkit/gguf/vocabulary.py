"""The vocabulary in the key-values of a GGUF: token texts, special tokens, chat template."""

from collections.abc import Sequence

from quantkit.gguf.keyvalues import KeyValue

# No published vocabulary is near this. A table of so many tokens takes about 0.7 GB.
MAX_TOKENS = 1 << 22
TEMPLATE_KEY = "tokenizer.chat_template"
# "seperator" is the spelling in the format.
_ROLES = {"unknown": "unk", "seperator": "sep", "padding": "pad"}


def token_texts(keys: Sequence[KeyValue]) -> list[str]:
    """The token texts by id; [] without a vocabulary."""
    tokens = next((key.value for key in keys if key.key == "tokenizer.ggml.tokens"), ())
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in tokens]


def special_tokens(keys: Sequence[KeyValue]) -> list[tuple[str, int, str]]:
    """(role, token id, text) of every `tokenizer.ggml.*_token_id` key, in the order of the keys."""
    texts = token_texts(keys)
    special = []
    for key in keys:
        if key.key.startswith("tokenizer.ggml.") and key.key.endswith("_token_id") and isinstance(key.value, int):
            role = key.key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
            text = texts[key.value] if 0 <= key.value < len(texts) else "(no such token)"
            special.append((_ROLES.get(role, role), key.value, text))
    return special
