"""The keys at which llama.cpp stops, from every end of a text or a turn in any file of the checkpoint.

llama.cpp stops at the EOS, EOT and EOM of the file, and at tokens of some well-known texts (llama-vocab.cpp,
special_eog_ids). A checkpoint can list more ends in generation_config.json and config.json. transformers stops at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.checkpoint.jsonfile import read_hints

from .files import TokenizerFiles, token_text

# tokens that end generation by their text alone (src/llama-vocab.cpp, llama_vocab::impl::load)
_STOPS_BY_TEXT = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
    ]
)


def add_ends(
    ids: dict[str, int], files: TokenizerFiles, config: Mapping[str, Any], texts: Sequence[bytes]
) -> list[str]:
    """Complete `ids` (role -> token id) with the EOS, EOT and EOM of the files; returns warnings.

    `texts` are the vocabulary's tokens by id. Where `ids` has no EOS, special_tokens_map.json decides, then the first
    end of generation_config.json, then that of config.json.
    """
    sources = {name: ends for name, ends in _sources(files, config, texts).items() if ends}
    for name in ("special_tokens_map.json", "generation_config.json", "config.json"):
        if "eos" not in ids and name in sources:
            ids["eos"] = sources[name][0]
    if "eos" not in ids:
        return ["no file of the checkpoint names an end of text (EOS); llama.cpp chooses a token for it"]
    known = {ids["eos"], ids.get("eot"), ids.get("eom")}
    # a bare number of config.json that a token's name overrules is a conflict, as for llama.cpp's converter, not an end
    bare = {"config.json"} if len(sources.get("config.json", ())) == 1 else set()
    ends = dict.fromkeys(number for name, numbers in sources.items() if name not in bare for number in numbers)
    more = [number for number in ends if number not in known and _text(texts, number) not in _STOPS_BY_TEXT]
    for role in ("eot", "eom"):
        if role not in ids and more:
            ids[role] = more.pop(0)
    warnings = [f"llama.cpp does not stop at {_named(texts, more)}: a GGUF has room for three ends"] if more else []
    others = [
        f"{name} names {_named(texts, numbers)}" for name, numbers in sources.items() if ids["eos"] not in numbers
    ]
    if others:
        eos = _named(texts, [ids["eos"]])
        warnings.append(f"the files disagree on the end of text: {'; '.join(others)}; the GGUF's EOS is {eos}")
    return warnings


def _sources(files: TokenizerFiles, config: Mapping[str, Any], texts: Sequence[bytes]) -> dict[str, list[int]]:
    positions = {text: number for number, text in enumerate(texts)}
    result = {}
    for name, source in (("tokenizer_config.json", files.config), ("special_tokens_map.json", files.special)):
        number = positions.get((token_text(source.get("eos_token")) or "").encode())
        result[name] = [] if number is None else [number]
    nested = config.get("text_config")
    config_ids = config.get("eos_token_id")
    if config_ids is None and isinstance(nested, Mapping):
        config_ids = nested.get("eos_token_id")
    for name, value in (("generation_config.json", _generation_ends(files)), ("config.json", config_ids)):
        values = value if isinstance(value, list) else [value]
        result[name] = [
            number
            for number in values
            if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(texts)
        ]
    return result


def _generation_ends(files: TokenizerFiles) -> Any:
    """eos_token_id of generation_config.json; None where the file is missing or malformed, as it has only hints."""
    return read_hints(files.folder / "generation_config.json").get("eos_token_id")


def _text(texts: Sequence[bytes], number: int) -> str:
    return texts[number].decode(errors="replace")


def _named(texts: Sequence[bytes], numbers: Sequence[int]) -> str:
    return ", ".join(f"{number} ({_text(texts, number)!r})" for number in numbers)
