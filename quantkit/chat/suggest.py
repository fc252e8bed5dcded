"""Which built-in template a checkpoint without one was trained with, from evidence in the checkpoint itself."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.chat.builtin import BUILT_IN, BuiltIn


@dataclass(frozen=True)
class Suggestion:
    """A built-in that fits, and why, as words that follow "its"."""

    template: BuiltIn
    evidence: str


def suggestions(tokens: Sequence[str], generation_config: Mapping[str, Any], name: str) -> list[Suggestion]:
    """Every built-in that the evidence points to; [] for a base model or an unknown one.

    `tokens` are the vocabulary's texts by id, `generation_config` the parsed generation_config.json ({} where absent),
    `name` that of the checkpoint's folder or repository.
    """
    known = set(tokens)
    evidence = {
        "huozi": _huozi(known),
        "baichuan2": _baichuan("baichuan2", tokens, generation_config),
        "baichuan": _baichuan("baichuan", tokens, generation_config),
        "chatml": _qwen(known, generation_config),
        "blossom": "name is Blossom's" if "blossom" in name.lower() else None,
    }
    return [Suggestion(BUILT_IN[each], why) for each, why in evidence.items() if why is not None]


def suggest(tokens: Sequence[str], generation_config: Mapping[str, Any], name: str) -> Suggestion | None:
    """The one built-in that fits; None where the evidence points nowhere or to more than one."""
    found = suggestions(tokens, generation_config, name)
    return found[0] if len(found) == 1 else None


def _huozi(tokens: Collection[str]) -> str | None:
    marks = BUILT_IN["huozi"].marks
    return f"vocabulary has {marks[0]}" if all(mark in tokens for mark in marks) else None


def _baichuan(template: str, tokens: Sequence[str], generation_config: Mapping[str, Any]) -> str | None:
    """Both generations name the ids 195 and 196; only the vocabulary says which reserved tokens these are."""
    ids = [generation_config.get(key) for key in ("user_token_id", "assistant_token_id")]
    texts = tuple(tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else None for i in ids)
    marks = BUILT_IN[template].marks
    return f"generation_config.json marks the user's turns with {marks[0]}" if texts == marks else None


def _qwen(tokens: Collection[str], generation_config: Mapping[str, Any]) -> str | None:
    fits = generation_config.get("chat_format") == "chatml" and all(mark in tokens for mark in BUILT_IN["chatml"].marks)
    return "generation_config.json says chat_format chatml" if fits else None
