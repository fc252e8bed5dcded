"""The built-in template that fits a checkpoint without a template, by evidence in the checkpoint."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.chat.builtin import BUILT_IN, BuiltIn


@dataclass(frozen=True)
class Suggestion:
    """A built-in template that fits, and the evidence, as words that follow "its"."""

    template: BuiltIn
    evidence: str


def suggestions(
    tokens: Sequence[str], generation_config: Mapping[str, Any], name: str, architecture: str | None
) -> list[Suggestion]:
    """All built-in templates that fit the evidence; [] for a base model or an unknown model.

    `tokens`: the token texts by id. `generation_config`: the parsed generation_config.json, {} without the file.
    `name`: the name of the checkpoint's folder or repository. `architecture`: that of its GGUF, None if unknown.
    """
    vocabulary = set(tokens)
    evidence = {
        "huozi": _huozi(vocabulary),
        "baichuan2": _baichuan("baichuan2", tokens, generation_config),
        "baichuan": _baichuan("baichuan", tokens, generation_config),
        "chatml": _qwen(vocabulary, generation_config),
        "blossom": "name is Blossom's" if "blossom" in name.lower() else None,
    }
    for template in BUILT_IN.values():
        if template.architecture is not None:
            evidence[template.name] = _architecture(template, vocabulary, name, architecture)
    return [Suggestion(BUILT_IN[name], reason) for name, reason in evidence.items() if reason is not None]


def suggest(
    tokens: Sequence[str], generation_config: Mapping[str, Any], name: str, architecture: str | None
) -> Suggestion | None:
    """The one built-in template that fits; None when none or more than one fits."""
    fitting = suggestions(tokens, generation_config, name, architecture)
    return fitting[0] if len(fitting) == 1 else None


def _huozi(tokens: Collection[str]) -> str | None:
    marks = BUILT_IN["huozi"].marks
    return f"vocabulary has {marks[0]}" if all(mark in tokens for mark in marks) else None


def _baichuan(template: str, tokens: Sequence[str], generation_config: Mapping[str, Any]) -> str | None:
    """Both generations use the ids 195 and 196, so the token texts of these ids tell them apart."""
    ids = [generation_config.get(key) for key in ("user_token_id", "assistant_token_id")]
    texts = tuple(tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else None for i in ids)
    marks = BUILT_IN[template].marks
    return f"generation_config.json marks the user's turns with {marks[0]}" if texts == marks else None


def _qwen(tokens: Collection[str], generation_config: Mapping[str, Any]) -> str | None:
    fits = generation_config.get("chat_format") == "chatml" and all(mark in tokens for mark in BUILT_IN["chatml"].marks)
    return "generation_config.json names chat_format chatml" if fits else None


def _architecture(template: BuiltIn, tokens: Collection[str], name: str, architecture: str | None) -> str | None:
    """A base model has the same architecture and tokens; its name says what it is."""
    fits = architecture == template.architecture and all(mark in tokens for mark in template.marks)
    is_base = re.search(r"(?<![a-z])base(?![a-z])", name.lower()) is not None
    return f"architecture is {architecture}" if fits and not is_base else None
