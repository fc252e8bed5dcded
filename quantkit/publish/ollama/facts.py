"""What Ollama needs of a GGUF's header: type, size, chat template and its tokens, sampling, license."""

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
from quantkit.gguf.projector_file import is_projector
from quantkit.gguf.reader import GgufHeader, read_header, shard_paths

_TEMPLATE = "tokenizer.chat_template"
_TOKEN = "tokenizer.ggml."

# general.sampling.* as llama.cpp reads it (common/common.cpp) -> Ollama's parameter. Ollama has no mirostat or xtc.
_SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
}
# The defaults of llama.cpp for a file without add_bos_token (llama_vocab::impl::load).
_ADDS_BOS_MODELS = ("llama", "bert")
_ADDS_BOS_PRE = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
)
# Roles of the tokens that end an answer. The format spells `seperator` so.
_ENDS = ("eos", "eot", "eom")
_SPECIAL = {"unknown": "unk_token", "seperator": "sep_token", "padding": "pad_token"}


@dataclass(frozen=True)
class Facts:
    """The facts of a model file."""

    name: str
    files: tuple[Path, ...]
    type: str
    size_label: str | None
    context_length: int | None
    chat_template: str | None
    suggested: BuiltIn | None
    """The built-in template that fits the vocabulary, for a file without a template."""
    bos_token: str
    eos_token: str
    special_tokens: Mapping[str, str]
    end_tokens: tuple[str, ...]
    """Texts of the EOS, EOT and EOM tokens, in that order, without repeats."""
    adds_bos: bool
    sampling: tuple[tuple[str, int | float], ...]
    """Parameters under Ollama's names."""
    license: str | None


def facts_of_gguf(path: Path) -> Facts:
    """The facts of a model; `path` is its file or one of its shards.

    Raises:
        CheckpointError: not a sound GGUF, a shard is missing, or not a model (an adapter, a projector, an imatrix).
    """
    if not path.is_file():
        raise CheckpointError(f"file {path} not found; check the path")
    files = tuple(shard_paths(path))
    headers = [read_header(file) for file in files]
    values = {key.key: key.value for key in headers[0].keys}
    kind = values.get("general.type", "model")
    if kind != "model" or values.get("general.architecture") == "clip":
        raise CheckpointError(f"{path.name} is not a model: its kind is {kind!r}; pass the model's own GGUF")
    tokens = values.get(f"{_TOKEN}tokens", ())
    name = str(values.get("general.name") or path.stem)
    template = _text(values.get(_TEMPLATE)) or _text(values.get(f"{_TEMPLATE}.default"))
    token_texts = {role: _token(values, tokens, role) for role in ("bos", *_ENDS, *_SPECIAL)}
    return Facts(
        name=name,
        files=files,
        type=_type(values, headers),
        size_label=_text(values.get("general.size_label")) or _computed_size_label(headers),
        context_length=_positive_integer(values.get(f"{values.get('general.architecture')}.context_length")),
        chat_template=template,
        suggested=None if template else _suggested(values, f"{name} {path.name}"),
        bos_token=token_texts["bos"] or "",
        eos_token=token_texts["eos"] or "",
        special_tokens={
            word: token_texts[role] or "" for role, word in _SPECIAL.items() if token_texts[role] is not None
        },
        end_tokens=tuple(dict.fromkeys(text for role in _ENDS if (text := token_texts[role]))),
        adds_bos=_adds_bos(values),
        sampling=tuple(_sampling(values)),
        license=_text(values.get("general.license.name")) or _text(values.get("general.license")),
    )


def facts_of_folder(folder: Path) -> tuple[list[Facts], list[str]]:
    """Every model of a NAME-GGUF folder, and a sentence for each file that is not a model.

    Raises:
        CheckpointError: the folder holds no model.
    """
    models: list[Facts] = []
    notes: list[str] = []
    for path in sorted(folder.glob("*.gguf")):
        if any(path.name == file.name for model in models for file in model.files):
            continue
        try:
            if not is_projector(read_header(path)):
                models.append(facts_of_gguf(path))
        except CheckpointError as error:
            notes.append(f"left out: {error}")
    if not models:
        raise CheckpointError(notes[0] if notes else f"{folder} holds no GGUF file; make them with `quantkit gguf`")
    return models, notes


def _type(values: Mapping[str, Any], headers: list[GgufHeader]) -> str:
    number = values.get("general.file_type")
    for file_type in FILE_TYPES.values():
        if file_type.ftype == number:
            return file_type.name
    bytes_by_type = Counter[str]()
    for header in headers:
        for slot in header.tensors:
            bytes_by_type[slot.type.name.lower()] += slot.nbytes
    return bytes_by_type.most_common(1)[0][0] if bytes_by_type else "unknown"


def _computed_size_label(headers: list[GgufHeader]) -> str | None:
    """A size label for a file without one, by the format's own rule (gguf.size_label)."""
    total = sum(prod(slot.shape) for header in headers for slot in header.tensors)
    return str(gguf.size_label(total, 0, 0, 0)) if total else None


def _adds_bos(values: Mapping[str, Any]) -> bool:
    add_bos = values.get(f"{_TOKEN}add_bos_token")
    if add_bos is not None:
        return bool(add_bos)
    model, pre = values.get(f"{_TOKEN}model"), values.get(f"{_TOKEN}pre")
    return model in _ADDS_BOS_MODELS or (model == "gpt2" and pre in _ADDS_BOS_PRE)


def _sampling(values: Mapping[str, Any]) -> list[tuple[str, int | float]]:
    parameters: list[tuple[str, int | float]] = []
    for key, parameter in _SAMPLING.items():
        value = values.get(f"general.sampling.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        # The file holds float32: 0.85 is stored as 0.8500000238.
        parameters.append((parameter, value if isinstance(value, int) else float(str(np.float32(value)))))
    return parameters


def _token(values: Mapping[str, Any], tokens: Any, role: str) -> str | None:
    number = values.get(f"{_TOKEN}{role}_token_id")
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        return None
    return _decoded(tokens[number])


def _suggested(values: Mapping[str, Any], name: str) -> BuiltIn | None:
    tokens = [_decoded(token) for token in values.get(f"{_TOKEN}tokens", ())]
    suggestion = suggest(tokens, {}, name, _text(values.get("general.architecture")))
    return suggestion.template if suggestion else None


def _decoded(token: Any) -> str:
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _positive_integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
