"""What a family's checkpoints leave to code: which token ends a turn, and the space in front of a text.

llama.cpp's converter names special tokens by text, family by family; so does a family file (`TokenRoles`). A token that
the vocabulary does not have is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from .files import token_text


class SpacePrefix(Enum):
    """How llama.cpp's converter of a family writes the key tokenizer.ggml.add_space_prefix.

    STATED: before the model, as add_prefix_space of tokenizer_config.json; without it, not at all.
    STATED_AFTER_TYPES: the same, after the token types.
    MODEL_AFTER_TYPES: as tokenizer.model has it, after the token types.
    FALSE_LAST: false, after all other keys.
    NEVER: not at all.
    """

    STATED = auto()
    STATED_AFTER_TYPES = auto()
    MODEL_AFTER_TYPES = auto()
    FALSE_LAST = auto()
    NEVER = auto()


@dataclass(frozen=True)
class RawBpe:
    """A BPE over raw UTF-8 text with byte fallback: llama.cpp's `model`, and the special tokens that it prints.

    `visible` are token texts that the converter types user-defined, so that a chat parser can read them.
    """

    model: str
    visible: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenRoles:
    """Role -> token text. Roles are bos, eos, eot, eom, unk.

    `first` counts where the files name no special token at all, `also` for the roles that the files leave open;
    `instead` overrules the files, with a warning. `space_prefix`: the key for the space in front of a text.
    `stated`: role -> the key of config.json that has the token's id. `adds`: role -> whether llama.cpp adds the token
    to a text, whatever the files say; with `adds_first` the files decide where they say it, and the keys come before
    the model. `raw_bpe`: how a tokenizer.json that merges raw text is written; None writes a
    SentencePiece vocabulary. `token_types`: the file states the number of token types, `type_vocab_size` of config.json
    or 1; an encoder needs it. `t5`: the SentencePiece unigram model is written as T5's.
    """

    first: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    space_prefix: SpacePrefix = SpacePrefix.NEVER
    stated: Mapping[str, str] = field(default_factory=dict)
    adds: Mapping[str, bool] = field(default_factory=dict)
    adds_first: bool = False
    raw_bpe: RawBpe | None = None
    token_types: bool = False
    t5: bool = False


NO_ROLES = TokenRoles()
LLAMA_ROLES = TokenRoles(space_prefix=SpacePrefix.STATED)
"""Of the families that llama.cpp's converter derives from its LlamaModel."""


def add_family_roles(ids: dict[str, int], roles: TokenRoles, texts: list[bytes], warnings: list[str]) -> None:
    """Complete `ids` (role -> token id) by the family's roles; `texts` are the vocabulary's."""
    role_texts = {**(roles.first if not ids else {}), **roles.also, **roles.instead}
    known = _positions(texts, set(role_texts.values()))
    for role, text in role_texts.items():
        number = known.get(text)
        if number is None or (role in ids and role not in roles.instead):
            continue
        if role in ids and ids[role] != number:
            warnings.append(f"{role}_token_id is {number} ({text}), which ends this family's turns, not {ids[role]}")
        ids[role] = number


def add_named_ends(ids: dict[str, int], stated: Mapping[str, Any], texts: list[bytes], warnings: list[str]) -> None:
    """Find BOS and EOS by their names in tokenizer_config.json where nothing gave EOS an id.

    llama.cpp would otherwise take its default for the kind of vocabulary (11 for byte-level BPE), which ends no turn.
    """
    if "eos" in ids:
        return
    names = {role: token_text(stated.get(f"{role}_token")) for role in ("bos", "eos")}
    known = _positions(texts, {name for name in names.values() if name})
    for role, name in names.items():
        if role not in ids and name in known:
            ids[role] = known[name]
            warnings.append(f"{role}_token_id is {known[name]}, where the vocabulary has {name}; no file gives the id")


def _positions(texts: list[bytes], role_texts: set[str]) -> dict[str, int]:
    encoded = {text.encode(): text for text in role_texts}
    return {encoded[text]: number for number, text in enumerate(texts) if text in encoded}
