"""Special tokens that a family's checkpoints leave to code: which token ends a turn, where no file says so.

llama.cpp's converter names them by text, family by family (conversion/qwen.py, glm.py, chatglm.py, internlm.py,
gemma.py); so does this table. A token that the vocabulary does not have is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .files import token_text

Roles = Mapping[str, str]


@dataclass(frozen=True)
class FamilyRoles:
    """Role -> token text: `first` where the files name no special token at all, `also` for the roles they leave open.

    `instead` overrules the files, with a warning.
    """

    first: Roles
    also: Roles
    instead: Roles


def _roles(*, first: Roles | None = None, also: Roles | None = None, instead: Roles | None = None) -> FamilyRoles:
    return FamilyRoles(first or {}, also or {}, instead or {})


_END = "<|endoftext|>"
_GLM = _roles(also={"eos": _END, "eot": "<|user|>", "unk": _END})
_GLM_MOE = _roles(also={"bos": "[gMASK]", "eot": "<|user|>", "unk": _END, "eom": "<|observation|>"})
_BY_ARCHITECTURE = {
    "QWenLMHeadModel": _roles(first={"bos": _END, "eos": _END}, also={"unk": _END}),
    "Glm4ForCausalLM": _roles(also={"eos": _END, "eot": "<|user|>", "unk": _END, "bos": _END}),
    "GlmForCausalLM": _GLM,
    "ChatGLMModel": _GLM,
    "ChatGLMForConditionalGeneration": _GLM,
    "Glm4MoeForCausalLM": _GLM_MOE,
    "Glm4MoeLiteForCausalLM": _GLM_MOE,
    # its chats end in a token that the configuration does not call the end
    "InternLM2ForCausalLM": _roles(instead={"eos": "<|im_end|>"}),
    "GemmaForCausalLM": _roles(also={"eot": "<end_of_turn>"}),
}


def add_family_roles(ids: dict[str, int], config: Mapping[str, Any], texts: list[bytes], warnings: list[str]) -> None:
    """Complete `ids` (role -> token id) by the architecture that config.json names; `texts` are the vocabulary's."""
    named = config.get("architectures")
    roles = _BY_ARCHITECTURE.get(str(named[0])) if isinstance(named, list) and named else None
    if roles is None:
        return
    wanted = {**(roles.first if not ids else {}), **roles.also, **roles.instead}
    known = _positions(texts, set(wanted.values()))
    for role, text in wanted.items():
        number = known.get(text)
        if number is None or (role in ids and role not in roles.instead):
            continue
        if role in ids and ids[role] != number:
            warnings.append(f"{role}_token_id is {number} ({text}), which ends this family's turns, not {ids[role]}")
        ids[role] = number


def add_named_ends(ids: dict[str, int], said: Mapping[str, Any], texts: list[bytes], warnings: list[str]) -> None:
    """Find BOS and EOS by their names in tokenizer_config.json where nothing gave EOS an id.

    llama.cpp would otherwise take its default for the kind of vocabulary (11 for byte-level BPE), which ends no turn.
    """
    if "eos" in ids:
        return
    names = {role: token_text(said.get(f"{role}_token")) for role in ("bos", "eos")}
    known = _positions(texts, {name for name in names.values() if name})
    for role, name in names.items():
        if role not in ids and name in known:
            ids[role] = known[name]
            warnings.append(f"{role}_token_id is {known[name]}, where the vocabulary has {name}; no file gives the id")


def _positions(texts: list[bytes], wanted: set[str]) -> dict[str, int]:
    encoded = {text.encode(): text for text in wanted}
    return {encoded[text]: number for number, text in enumerate(texts) if text in encoded}
