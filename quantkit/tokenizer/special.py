"""Special tokens: their ids, whether BOS, EOS and SEP are added, and the chat template, as GGUF keys.

The order of the keys and of the files is llama.cpp's (gguf-py/gguf/vocab.py, SpecialVocab), so a header equals its
converter's. Ids come from tokenizer_config.json's tokens first, then from config.json's numbers. For BOS and EOS the
post-processor of tokenizer.json precedes tokenizer_config.json's add_*_token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Any

from gguf import GGUFValueType

from quantkit.errors import TokenizerError
from quantkit.gguf import keyvalues
from quantkit.gguf.keyvalues import KeyValue

from .files import TokenizerFiles, token_text

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # the format spells it so
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
_ADDED = ("bos", "eos", "sep")
_CODE_LLAMA_VOCAB, _CODE_LLAMA_EOT = 32016, 32010
_NO_BOS_VOCAB = 49152


@dataclass
class Specials:
    """What the files say: role -> id, role -> whether it is added, the template; insertion order is key order.

    `normalizers`: whether text is made lower-case and accents are removed, where the normalizer says so.
    """

    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    template: str | list[dict[str, Any]] | None = None
    normalizers: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read(files: TokenizerFiles, config: Mapping[str, Any], n_tokens: int) -> Specials:
    """Special tokens of the checkpoint; an id outside the `n_tokens` of the vocabulary is left out with a warning."""
    specials = Specials()
    stated = dict(files.config)
    roles = list(_ROLES)
    if files.tokenizer is not None:
        _from_normalizer(files.tokenizer.get("normalizer"), specials.normalizers)
        _from_post_processor(files.tokenizer, stated, roles, specials)
    specials.template = files.template
    for role in roles:
        adds = stated.get(f"add_{role}_token")
        if isinstance(adds, bool):
            specials.adds.setdefault(role, adds)
        text = token_text(stated.get(f"{role}_token"))
        if text is not None:
            _keep(specials, role, _added_id(files, text), n_tokens)
    nested = config.get("text_config")
    for role in roles:
        number = config.get(f"{role}_token_id")
        if number is None and isinstance(nested, Mapping):
            number = nested.get(f"{role}_token_id")
        _keep(specials, role, number, n_tokens)
    return specials


def keys(specials: Specials, config: Mapping[str, Any], *, by_size: bool) -> list[KeyValue]:
    """The keys in llama.cpp's order: ids, add_*_token, chat templates, then what its Llama converter adds.

    `by_size`: the family is one of that converter's, which knows Code Llama and small Granite by their vocab_size.
    """
    ids, adds = dict(specials.ids), dict(specials.adds)
    vocab_size = config.get("vocab_size") if by_size else None
    late = []
    if vocab_size == _CODE_LLAMA_VOCAB and "eot" not in ids:
        late.append(keyvalues.uint32(_ID_KEYS["eot"], _CODE_LLAMA_EOT))
    if vocab_size == _NO_BOS_VOCAB and "bos" in adds:
        adds["bos"] = False
    elif vocab_size == _NO_BOS_VOCAB:
        late.append(keyvalues.boolean("tokenizer.ggml.add_bos_token", False))
    return [
        *(keyvalues.uint32(_ID_KEYS[role], number) for role, number in ids.items() if role in _ID_KEYS),
        *(keyvalues.boolean(f"tokenizer.ggml.add_{role}_token", add) for role, add in adds.items() if role in _ADDED),
        *template_keys(specials.template),
        *(
            keyvalues.boolean(f"tokenizer.ggml.normalizer.{name}", specials.normalizers[name])
            for name in ("lowercase", "strip_accents")
            if name in specials.normalizers
        ),
        *late,
    ]


def force_added(specials: Specials, adds: Mapping[str, bool]) -> list[KeyValue]:
    """Set whether BOS or EOS is added, by role; return the keys of the roles that the files leave open."""
    late = [role for role in adds if role not in specials.adds]
    specials.adds |= {role: add for role, add in adds.items() if role not in late}
    return [keyvalues.boolean(f"tokenizer.ggml.add_{role}_token", adds[role]) for role in late]


def added_first(specials: Specials, adds: Mapping[str, bool]) -> list[KeyValue]:
    """The keys of the roles in `adds`, by the files or else by `adds`; take them out of `specials`."""
    stated = {role: specials.adds.pop(role, added) for role, added in adds.items()}
    return [keyvalues.boolean(f"tokenizer.ggml.add_{role}_token", added) for role, added in stated.items()]


def template_keys(template: str | list[dict[str, Any]] | None) -> list[KeyValue]:
    """tokenizer.chat_template, or for named templates one key each, their names, and the default one last."""
    if template is None:
        return []
    if isinstance(template, str):
        return [keyvalues.string("tokenizer.chat_template", template)]
    named: dict[str, str] = {}
    default = None
    for choice in (entry for entry in template if isinstance(entry, dict)):
        name = "".join(c if c in ascii_letters + digits else "_" for c in str(choice.get("name", "")))
        text = choice.get("template")
        if name == "default" and isinstance(text, str):
            default = text
        elif name and isinstance(text, str):
            named[name] = text
    result = [keyvalues.string(f"tokenizer.chat_template.{name}", text) for name, text in named.items()]
    if named:
        # sorted where llama.cpp writes a set in no fixed order: one source must give one file
        result.append(keyvalues.array("tokenizer.chat_templates", GGUFValueType.STRING, sorted(named)))
    if default is not None:
        result.append(keyvalues.string("tokenizer.chat_template", default))
    return result


def default_template(template: str | list[dict[str, Any]] | None) -> str | None:
    """The template that a plain chat uses."""
    for key in template_keys(template):
        if key.key == "tokenizer.chat_template":
            return str(key.value)
    return None


def _keep(specials: Specials, role: str, number: Any, n_tokens: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or role in specials.ids:
        return
    if 0 <= number < n_tokens:
        specials.ids[role] = number
    elif role in _ID_KEYS:
        specials.warnings.append(f"left out {role}_token_id {number}: the vocabulary has {n_tokens} tokens")


def _added_id(files: TokenizerFiles, text: str) -> Any:
    for token in (files.tokenizer or {}).get("added_tokens") or []:
        if token.get("content") == text:
            return token.get("id")
    return None


def _from_normalizer(node: Any, normalizers: dict[str, bool]) -> None:
    """Set what a normalizer of tokenizer.json says of case and accents (SpecialVocab._parse_normalizer)."""
    match (node or {}).get("type"):
        case "Lowercase":
            normalizers["lowercase"] = True
        case "StripAccents":
            normalizers["strip_accents"] = True
        case "BertNormalizer":
            stated = {name: node.get(name) for name in ("lowercase", "strip_accents")}
            normalizers |= {name: value for name, value in stated.items() if isinstance(value, bool)}
        case "Sequence":
            for child in node.get("normalizers") or []:
                _from_normalizer(child, normalizers)


def _from_post_processor(
    tokenizer: dict[str, Any], stated: dict[str, Any], roles: list[str], specials: Specials
) -> None:
    """What the post-processor puts around a text decides about BOS, EOS and SEP; it may rename them in `stated`."""
    has_config = bool(stated)
    bos, cls, eos, sep = (token_text(stated.get(f"{role}_token")) for role in ("bos", "cls", "eos", "sep"))
    if has_config and not bos and cls:
        stated["bos_token"] = bos = cls
    if has_config and not eos and sep:
        stated["eos_token"] = eos = sep
    processor = tokenizer.get("post_processor")
    for step in (processor or {}).get("processors", [processor] if processor else []):
        kind = step.get("type")
        if kind == "ByteLevel":
            specials.adds.setdefault("bos", False)
            specials.adds.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            specials.adds |= {"bos": True, "eos": True, "sep": True}
            if has_config:
                stated["cls_token"] = cls = cls or step.get("cls", [bos])[0]
                stated["sep_token"] = sep = sep or step.get("sep", [eos])[0]
        elif kind == "TemplateProcessing":
            bos, cls, eos, sep = _from_template(step, stated, roles, specials, (bos, cls, eos, sep), has_config)


_Four = tuple[str | None, str | None, str | None, str | None]


def _from_template(
    step: dict[str, Any], stated: dict[str, Any], roles: list[str], specials: Specials, tokens: _Four, has_config: bool
) -> _Four:
    bos, cls, eos, sep = tokens
    single, pair = step.get("single") or [], step.get("pair") or []
    first = _special(single[0]) if len(single) > 1 else None
    last = _special(single[-1]) if len(single) > 1 else None
    if first:
        if not has_config:
            bos = first
        elif first not in (bos, cls):
            if not bos:
                stated["bos_token"] = bos = first
            if not cls:
                stated["cls_token"] = cls = first
        specials.adds["bos"] = first in (bos, cls)
    if last:
        if has_config and last != eos:
            # the token put at the end is the EOS; the one the configuration names so ends a turn
            spare = next((role for role in ("eot", "eom") if role not in roles), None)
            if spare:
                roles.append(spare)
                stated[f"{spare}_token"] = eos
            stated["eos_token"] = last
        eos = last
        specials.adds["eos"] = True
    middle = _between(pair, first, last)
    if middle:
        ends = (sep, eos)
        add = _special(middle[0]) in ends and not last
        if len(middle) == 2 and _special(middle[1]) is not None:
            add = add or _special(middle[1]) in ends
        specials.adds["sep"] = add
        if add and not sep and has_config:
            stated["sep_token"] = eos
    return bos, cls, eos, sep


def _between(pair: list[dict[str, Any]], first: str | None, last: str | None) -> list[dict[str, Any]]:
    """What a template for two texts puts between them."""
    if pair and first and _special(pair[0]) == first:
        pair = pair[1:]
    if pair and last and _special(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) < 2 or _sequence(pair[0]) != "A" or _sequence(pair[-1]) != "B":
        return []
    return pair[1:-1]


def _special(part: dict[str, Any]) -> str | None:
    text = (part.get("SpecialToken") or {}).get("id")
    return text if isinstance(text, str) and text else None


def _sequence(part: dict[str, Any]) -> str | None:
    name = (part.get("Sequence") or {}).get("id")
    return name if isinstance(name, str) else None


def refuse_template(template: str) -> None:
    """Raise TokenizerError for an override that holds no text."""
    if not template.strip():
        raise TokenizerError("--chat-template is empty; give the template's text or leave the option out")
