"""What a GGUF's header says that Ollama needs: the type, the size, the template and its tokens, sampling, licence."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quantkit.chat import BuiltIn, suggest
from quantkit.errors import CheckpointError
from quantkit.gguf.file_types import FILE_TYPES
from quantkit.gguf.reader import GgufHeader, read_header, shard_paths

_TEMPLATE = "tokenizer.chat_template"
_TOKEN = "tokenizer.ggml."

# general.sampling.* as llama.cpp reads it (common/common.cpp) -> Ollama's parameter. Its mirostat and xtc have none.
_SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
}
# Where the file does not say (llama.cpp, llama_vocab::impl::load).
_ADDS_BOS_MODELS = ("llama", "bert")
_ADDS_BOS_PRE = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
)
# Ids that end an answer; the format spells its own keys so.
_ENDS = ("eos", "eot", "eom")
_SPECIAL = {"unknown": "unk_token", "seperator": "sep_token", "padding": "pad_token"}


@dataclass(frozen=True)
class Facts:
    """A model as its file tells of it."""

    name: str
    files: tuple[Path, ...]
    type: str
    size_label: str | None
    context_length: int | None
    chat_template: str | None
    suggested: BuiltIn | None
    """The built-in template that fits, for a file without one."""
    bos_token: str
    eos_token: str
    special_tokens: Mapping[str, str]
    end_tokens: tuple[str, ...]
    """Texts of the EOS, EOT and EOM tokens, in that order, each once."""
    adds_bos: bool
    sampling: tuple[tuple[str, int | float], ...]
    """In Ollama's names."""
    license: str | None


def facts_of_gguf(path: Path) -> Facts:
    """The facts of a model file, of which `path` is the whole or a shard.

    Raises:
        CheckpointError: not a sound GGUF, a shard is missing, or no model (an adapter, a projector, an imatrix).
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    files = tuple(shard_paths(path))
    headers = [read_header(file) for file in files]
    values = {key.key: key.value for key in headers[0].keys}
    kind = values.get("general.type", "model")
    if kind != "model" or values.get("general.architecture") == "clip":
        raise CheckpointError(f"{path.name} is not a model: its kind is {kind!r}; pass the model's own GGUF")
    tokens = values.get(f"{_TOKEN}tokens", ())
    name = str(values.get("general.name") or path.stem)
    template = _text(values.get(_TEMPLATE)) or _text(values.get(f"{_TEMPLATE}.default"))
    marks = {role: _token(values, tokens, role) for role in ("bos", *_ENDS, *_SPECIAL)}
    return Facts(
        name=name,
        files=files,
        type=_type(values, headers),
        size_label=_text(values.get("general.size_label")) or _counted(headers),
        context_length=_whole(values.get(f"{values.get('general.architecture')}.context_length")),
        chat_template=template,
        suggested=None if template else _suggested(tokens, f"{name} {path.name}"),
        bos_token=marks["bos"] or "",
        eos_token=marks["eos"] or "",
        special_tokens={word: marks[role] or "" for role, word in _SPECIAL.items() if marks[role] is not None},
        end_tokens=tuple(dict.fromkeys(text for role in _ENDS if (text := marks[role]))),
        adds_bos=_adds_bos(values),
        sampling=tuple(_sampling(values)),
        license=_text(values.get("general.license.name")) or _text(values.get("general.license")),
    )


def facts_of_folder(folder: Path) -> tuple[list[Facts], list[str]]:
    """Every model of a NAME-GGUF folder, and a sentence for each file that is none.

    Raises:
        CheckpointError: it holds no model.
    """
    found: list[Facts] = []
    notes: list[str] = []
    for path in sorted(folder.glob("*.gguf")):
        if any(path.name == file.name for each in found for file in each.files):
            continue
        try:
            found.append(facts_of_gguf(path))
        except CheckpointError as error:
            notes.append(f"left out: {error}")
    if not found:
        raise CheckpointError(notes[0] if notes else f"{folder} holds no GGUF file; make them with `quantkit gguf`")
    return found, notes


def _type(values: Mapping[str, Any], headers: list[GgufHeader]) -> str:
    number = values.get("general.file_type")
    for each in FILE_TYPES.values():
        if each.ftype == number:
            return each.name
    amounts = Counter[str]()
    for header in headers:
        for slot in header.tensors:
            amounts[slot.type.name.lower()] += slot.nbytes
    return amounts.most_common(1)[0][0] if amounts else "unknown"


def _counted(headers: list[GgufHeader]) -> str | None:
    """A size label for a file without one, by the format's own rule (gguf.size_label)."""
    total = sum(prod(slot.shape) for header in headers for slot in header.tensors)
    return str(gguf.size_label(total, 0, 0, 0)) if total else None


def _adds_bos(values: Mapping[str, Any]) -> bool:
    said = values.get(f"{_TOKEN}add_bos_token")
    if said is not None:
        return bool(said)
    model, pre = values.get(f"{_TOKEN}model"), values.get(f"{_TOKEN}pre")
    return model in _ADDS_BOS_MODELS or (model == "gpt2" and pre in _ADDS_BOS_PRE)


def _sampling(values: Mapping[str, Any]) -> list[tuple[str, int | float]]:
    found: list[tuple[str, int | float]] = []
    for key, parameter in _SAMPLING.items():
        value = values.get(f"general.sampling.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        # The file holds float32: 0.85 is stored as 0.8500000238.
        found.append((parameter, value if isinstance(value, int) else float(str(np.float32(value)))))
    return found


def _token(values: Mapping[str, Any], tokens: Any, role: str) -> str | None:
    number = values.get(f"{_TOKEN}{role}_token_id")
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        return None
    return _decoded(tokens[number])


def _suggested(tokens: Any, name: str) -> BuiltIn | None:
    found = suggest([_decoded(token) for token in tokens], {}, name)
    return found.template if found else None


def _decoded(token: Any) -> str:
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
