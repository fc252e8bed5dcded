"""Which of llama.cpp's pre-tokenizers splits text as a byte-level BPE tokenizer does.

The sources, in order: the user's option; the hash of the ids of a fixed text; the structure of the pre-tokenizer.
llama.cpp's converter knows some ninety tokenizers by that hash. The structure is reduced to a list of splits and
compared with the split behind each name. The hash can miss ignore_merges or a rule of the split, because one text may
not need it. If it contradicts the file, the structure decides. Other tokenizers are refused, with the nearest name as
a hint: a wrong split gives a model that runs and is worse.

Facts are in pretokenizers.json.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib.resources import files as resources
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from quantkit.errors import UnsupportedError, UsageError
from quantkit.units import listed

from .files import token_text
from .huggingface import load_pipeline
from .probe import PROBE
from .ranks import alphabet


@dataclass(frozen=True)
class Recognised:
    """`name` for tokenizer.ggml.pre, `how` it was found: "given", "hash" or "structure".

    `by_hash` is the name the hash alone would give, where the structure overrules it, and `why` it does.
    """

    name: str
    how: str
    by_hash: str | None = None
    why: str = "as tokenizer.json's ignore_merges asks"


@cache
def _facts() -> dict[str, Any]:
    text = (resources(__package__) / "pretokenizers.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def pretokenizer_names() -> list[str]:
    """The names llama.cpp accepts in tokenizer.ggml.pre (src/llama-vocab.cpp, llama_vocab::impl::load)."""
    return sorted(_facts()["names"])


def adds_bos(name: str) -> bool:
    """Whether llama.cpp puts BOS in front for this name when the file does not say."""
    return bool(_facts()["names"].get(name, {}).get("add_bos", False))


def known_since(name: str) -> str | None:
    """The build of llama.cpp from which on this name is known; None for names that the oldest supported one knows."""
    since = _facts()["names"].get(name, {}).get("newer")
    return None if since is None else str(since)


def _ignores_merges(name: str) -> bool:
    """Whether llama.cpp takes a whole word that is a token as it is, without merging, for this name."""
    return bool(_facts()["names"][name].get("ignore_merges", False))


def check_name(name: str) -> None:
    """Raise UsageError unless llama.cpp knows this pre-tokenizer, naming the nearest one."""
    names = pretokenizer_names()
    if name not in names:
        near = get_close_matches(name, names, 1, 0.0)[0]
        raise UsageError(f"--pre {name}: llama.cpp knows no such pre-tokenizer; the nearest name is {near}")


def recognise(tokenizer: Tokenizer, source: dict[str, Any], config: dict[str, Any], where: str) -> Recognised:
    """The pre-tokenizer of a byte-level BPE tokenizer.

    `source` is the tokenizer's JSON, `config` tokenizer_config.json, `where` names the file in messages.

    Raises UnsupportedError naming the nearest pre-tokenizer, how it was compared, and --pre.
    """
    by_hash = _by_hash(tokenizer, config)
    steps = canonical_steps(source.get("pre_tokenizer"))
    ignores_merges = bool(source["model"].get("ignore_merges"))
    instead = _facts()["instead"].get(by_hash)
    if instead:
        return Recognised(instead, "structure", by_hash, "whose split is nearer to this tokenizer's own")
    changing = [kind for kind in normalizers(source.get("normalizer")) if kind != "NFC"]
    known = next((name for name, split in _facts()["splits"].items() if split["steps"] == steps), None)
    other_split = bool(known and by_hash and _facts()["names"][by_hash]["split"] not in (known, None))

    @cache
    def merges_alike(flag: bool) -> bool:
        return flag == ignores_merges or _merges_make_each_word(source)

    if by_hash and not other_split and merges_alike(_ignores_merges(by_hash)):
        return Recognised(by_hash, "hash")
    names = _facts()["splits"][known]["write"] if known and not changing else []
    for name in sorted(names, key=lambda name: _ignores_merges(name) != ignores_merges):
        if merges_alike(_ignores_merges(name)):
            why = "whose split is tokenizer.json's own" if other_split else Recognised.why
            return Recognised(name, "structure", by_hash, why)
    if by_hash:
        return Recognised(by_hash, "hash")
    raise UnsupportedError(_unknown(tokenizer, steps, ignores_merges, changing, where))


def wordpiece_name(tokenizer: Tokenizer, config: dict[str, Any]) -> str | None:
    """The name that llama.cpp's converter gives a WordPiece tokenizer, which llama.cpp ignores; None if unknown."""
    return _by_hash(tokenizer, config, "wordpiece")


def _by_hash(tokenizer: Tokenizer, config: dict[str, Any], table: str = "hashes") -> str | None:
    """The name by hash; the special tokens around the text depend on the wrapper class, so each habit is tried."""
    text, hashes = _facts()["text"], _facts()[table]
    bare = tokenizer.encode(text, add_special_tokens=False).ids
    candidates = [tokenizer.encode(text).ids, bare]
    if str(config.get("tokenizer_class", "")).removesuffix("Fast") in ("LlamaTokenizer", "CohereTokenizer"):
        # transformers 4's Llama and Cohere classes replace the post-processor by their own BOS and EOS
        around: list[list[int]] = [[], []]
        for side, role, default in ((0, "bos", True), (1, "eos", False)):
            number = tokenizer.token_to_id(token_text(config.get(f"{role}_token")) or "")
            if config.get(f"add_{role}_token", default) and number is not None:
                around[side] = [number]
        candidates.insert(0, around[0] + bare + around[1])
    for ids in candidates:
        name = hashes.get(sha256(str(ids).encode()).hexdigest())
        if name:
            return str(name)
    return None


def canonical_steps(node: Any) -> list[str] | None:
    """A pre_tokenizer of tokenizer.json as a list of splits in one spelling; None when it does more than split."""
    if node is None:
        return []
    match node.get("type"):
        case "Sequence":
            parts = [canonical_steps(child) for child in node.get("pretokenizers", [])]
            return None if None in parts else [step for part in parts for step in part or []]
        case "ByteLevel" if not node.get("add_prefix_space", True):
            return ["@gpt2"] if node.get("use_regex", True) else []
        case "Digits":
            return [r"\p{N}" if node.get("individual_digits") else r"\p{N}+"]
        case "Punctuation":
            return [f"@punctuation {node.get('behavior', 'Isolated')}"]
        case "Split" if "Regex" in node.get("pattern", {}):
            whole = (node.get("behavior"), bool(node.get("invert"))) in (("Isolated", False), ("Removed", True))
            return [_one_spelling(node["pattern"]["Regex"])] if whole else None
    return None


def _one_spelling(regex: str) -> str:
    for spelling, canonical in _facts()["rewrites"]:
        regex = regex.replace(spelling, canonical)
    return regex


def normalizers(node: Any) -> list[str]:
    """The kinds of normalizer that tokenizer.json applies, in order."""
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [kind for child in node.get("normalizers", []) for kind in normalizers(child)]
    return [str(node.get("type"))]


def _merges_make_each_word(source: dict[str, Any]) -> bool:
    """Whether merging makes each word that is a token, so that ignore_merges changes nothing.

    A word is a token that the pre-tokenizer leaves whole. Added tokens are cut out before.
    """
    plain = load_pipeline(json.dumps(dict(source, model=dict(source["model"], ignore_merges=False))).encode())
    added = {token["content"] for token in source.get("added_tokens") or []}
    byte_of = {character: byte for byte, character in alphabet().items()}
    for text in source["model"]["vocab"]:
        if text in added or len(plain.model.tokenize(text)) <= 1:
            continue
        try:
            word = bytes(byte_of[character] for character in text).decode()
        except (KeyError, UnicodeDecodeError):  # no text gives these bytes as one word
            continue
        if plain.pre_tokenizer is None or len(plain.pre_tokenizer.pre_tokenize_str(word)) == 1:
            return False
    return True


def _unknown(
    tokenizer: Tokenizer, steps: list[str] | None, ignores_merges: bool, changing: list[str], where: str
) -> str:
    if changing:
        return (
            f"{where} normalizes text with {listed(changing)}, which llama.cpp's byte-level BPE does not; "
            "--pre NAME converts it all the same, with other ids for texts that normalization changes"
        )
    splits: dict[str, Any] = _facts()["splits"]
    probe_splits = _splits_of(tokenizer.pre_tokenizer)
    agreement = {
        key: sum(a == b for a, b in zip(probe_splits, _splits_of(_built(split["steps"])), strict=True))
        for key, split in splits.items()
    }
    key = max(agreement, key=lambda name: (splits[name]["steps"] == steps, agreement[name]))
    names = splits[key]["write"]
    agreeing = [name for name in names if _ignores_merges(name) == ignores_merges]
    name = (agreeing or names)[0]
    reason = f"it splits {agreement[key]} of {len(PROBE)} probe texts the same way"
    if steps == splits[key]["steps"]:
        reason += f", but this tokenizer has ignore_merges {str(ignores_merges).lower()} and llama.cpp's does not"
    return (
        f"{where} has a pre-tokenizer that llama.cpp does not know; the nearest is {name} ({reason}): "
        f"pass --pre {name} to use it, or another of llama.cpp's names"
    )


def _splits_of(pre_tokenizer: Any) -> list[list[tuple[int, int]]]:
    if pre_tokenizer is None:
        return [[(0, len(text))] for text in PROBE]
    return [[span for _, span in pre_tokenizer.pre_tokenize_str(text)] for text in PROBE]


def _built(steps: Iterable[str]) -> Any:
    parts: list[Any] = []
    for step in steps:
        if step == "@gpt2":
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        elif step.startswith("@punctuation "):
            parts.append(pre_tokenizers.Punctuation(step.split()[1].lower()))
        else:
            parts.append(pre_tokenizers.Split(Regex(step), "isolated"))
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
