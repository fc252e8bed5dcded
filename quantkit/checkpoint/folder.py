"""Choose the weight files of a checkpoint, and read its config.json and index.

The same rules serve a local folder and the listing of a hub repository: names in, names out.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.checkpoint.jsonfile import parse_object, shown
from quantkit.checkpoint.not_checkpoint import describe_folder, describe_names
from quantkit.checkpoint.quantized.reading import read_scheme
from quantkit.checkpoint.quantized.settings import is_possibly_stale, quantization_config
from quantkit.errors import CheckpointError

SAFETENSORS = "safetensors"
TORCH = "torch"
SMALL_FILE = 200_000_000
"""Bytes that a config, a tokenizer, an index or a text has at most."""
GIT_LFS = b"version https://git-lfs"

# In order of preference. As in llama.cpp, an index has priority over a single file.
_LAYOUTS = (
    (SAFETENSORS, "model.safetensors", re.compile(r"model-(\d+)-of-(\d+)\.safetensors")),
    (TORCH, "pytorch_model.bin", re.compile(r"pytorch_model-(\d+)-of-(\d+)\.bin")),
)


@dataclass(frozen=True)
class Weights:
    """The weight files of a checkpoint. With an index they are known only after it is read, because it lists them."""

    kind: str
    """SAFETENSORS or TORCH."""
    files: tuple[str, ...]
    index: str | None = None


def choose_weights(names: Collection[str], where: str) -> Weights:
    """The weights among a checkpoint's file names; `where` names the checkpoint in messages.

    Safetensors are preferred over torch's files.

    Raises:
        CheckpointError: there are no weights, or a numbered shard is missing. The message says whether the files
            are an adapter, a GGUF, or Meta's original files.
    """
    for kind, single, numbered in _LAYOUTS:
        index = single + ".index.json"
        if index in names:
            return Weights(kind, (), index)
        if single in names:
            return Weights(kind, (single,))
        shards = [match for match in map(numbered.fullmatch, sorted(names)) if match]
        if shards:
            return Weights(kind, _complete(shards, where))
    raise CheckpointError(f"{where} {_what_else(names)}")


def _complete(shards: list[re.Match[str]], where: str) -> tuple[str, ...]:
    totals = {match[2] for match in shards}
    if len(totals) > 1:
        raise CheckpointError(
            f"{where} mixes shards of different sets ({shards[0][0]}, {shards[-1][0]}) without an index to tell them "
            f"apart; keep one set"
        )
    total = totals.pop()
    present = {int(match[1]) for match in shards}
    # Not range(total), because a file name can state any number of shards.
    missing = next((number for number in range(1, len(shards) + 2) if number not in present), None)
    if len(present) < int(total) and missing is not None:
        first = shards[0][0]
        name = first.replace(f"-{shards[0][1]}-", f"-{missing:0{len(shards[0][1])}d}-", 1)
        raise CheckpointError(
            f"{where} lacks {name} ({len(present)} of {int(total)} shards are there); download it again"
        )
    return tuple(match[0] for match in shards)


def _what_else(names: Collection[str]) -> str:
    if not names:
        return "is empty; give a folder with config.json and model.safetensors"
    return describe_names(names) or (
        "holds no weights (model.safetensors, its shards, or pytorch_model.bin); download the checkpoint again"
    )


def parse_index(data: bytes, name: str, where: str) -> dict[str, str]:
    """The weight map (tensor -> weight file) of an index file's bytes.

    Every file must lie in the checkpoint by its name alone: absolute paths and ".." are refused. Symbolic links are
    not looked at, the hub's cache is made of them. Raises CheckpointError.
    """
    index_file = f"{name} of {where}"
    weight_map = parse_object(data, index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no weight_map; download it again")
    inside: set[str] = set()
    for tensor, file in weight_map.items():
        if isinstance(file, str) and (file in inside or stays_inside(file)):
            inside.add(file)
        else:
            raise CheckpointError(
                f"{index_file} places tensor {shown(tensor)} in {shown(str(file))}, which is not a file name inside"
                f" the checkpoint; download it again from a source you trust"
            )
    return weight_map


def stays_inside(file: str) -> bool:
    """Whether a file name of a checkpoint's index or list is relative and leads to a place inside the checkpoint."""
    if not file or not file.isprintable() or "\\" in file:
        return False
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and path.name != ""


def check_index(weight_map: Mapping[str, str], files: Mapping[str, str], name: str, where: str) -> None:
    """Refuse an index that disagrees with the shards' own headers; `files`: the file of each tensor."""
    for tensor, file in weight_map.items():
        if files.get(tensor) != file:
            actual = f"it is in {files[tensor]}" if tensor in files else "no shard has it"
            raise CheckpointError(
                f"{name} of {where} places tensor {shown(tensor)} in {file}, but {actual}; download the checkpoint"
                " again"
            )
    for tensor, file in files.items():
        if tensor not in weight_map:
            raise CheckpointError(
                f"{file} of {where} holds tensor {shown(tensor)}, which {name} does not list; download it again"
            )


def parse_config(data: bytes, where: str) -> dict[str, Any]:
    """The parsed config.json of a model that quantkit may read.

    Raises:
        CheckpointError: it is malformed, or names no architecture.
        UnsupportedError: the weights are quantized already, and reading does not undo it.
    """
    config = parse_object(data, f"config.json of {where}")
    if not config.get("architectures") and not config.get("model_type"):
        raise CheckpointError(
            f"config.json of {where} names neither architectures nor model_type; take the checkpoint's own config.json"
        )
    refuse_quantized(config, where)
    return config


def refuse_quantized(config: Mapping[str, Any], where: str) -> None:
    """Refuse a quantization that no scheme reads, before any weights are fetched. Raises UnsupportedError.

    MXFP4 blocks are bytes to this room: only a family that knows of them (gpt-oss) takes their tensors. Settings of
    bitsandbytes and MLX may be left from before a merge; the tensors decide.
    """
    settings = quantization_config(config)
    if settings and settings.get("quant_method") != "mxfp4" and not is_possibly_stale(config):
        read_scheme(settings, where)


def read_small_file(folder: Path, name: str, where: str) -> bytes:
    """The bytes of a config or index file.

    Raises:
        CheckpointError: the file is missing, unreadable, a git-lfs pointer, or too large for its kind. For a missing
            config.json, the message names what the folder holds instead.
    """
    path = folder / name
    try:
        if path.stat().st_size > SMALL_FILE:
            raise CheckpointError(
                f"{name} of {where} is {path.stat().st_size} bytes, far too large for what it is; download it again"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        other = describe_folder(folder) if name == "config.json" else None
        hint = f"{where} {other}" if other else f"{where} has no {name}; give a complete Hugging Face checkpoint"
        raise CheckpointError(hint) from error
    except OSError as error:
        raise CheckpointError(unreadable(name, where, error)) from error
    refuse_pointer(data, f"{name} of {where}")
    return data


def unreadable(name: str, where: str, error: OSError) -> str:
    """The sentence for a file that the system does not let us read."""
    remedy = f"allow it with chmod u+r {name}" if isinstance(error, PermissionError) else "check the file"
    return f"{name} of {where} cannot be read ({error.strerror}); {remedy}"


def refuse_pointer(start: bytes, file: str) -> None:
    """Refuse a git-lfs pointer in the place of a file; `start` holds the file's first bytes. Raises CheckpointError."""
    if start.startswith(GIT_LFS):
        raise CheckpointError(f"{file} is a git-lfs pointer, not the file itself; run 'git lfs pull' first")
