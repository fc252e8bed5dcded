"""Open the weight files of a local folder, and check their headers against the index."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantkit.checkpoint import safetensors_file, torch_bin
from quantkit.checkpoint.checkpoint import WeightFiles
from quantkit.checkpoint.folder import (
    GIT_LFS,
    SAFETENSORS,
    Weights,
    check_index,
    choose_weights,
    parse_index,
    read_small_file,
    refuse_pointer,
    unreadable,
)
from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.modules import is_module_file, module_files_in, with_module_name
from quantkit.checkpoint.safetensors_file import Header
from quantkit.checkpoint.tensor import TensorInfo
from quantkit.errors import CheckpointError, ReadError
from quantkit.system.descriptors import READ, read_at


def open_weights(folder: Path, where: str) -> WeightFiles:
    """Every weight file of `folder`, open for reading; `where` names the checkpoint in messages.

    Raises CheckpointError with the name of a file that is missing, truncated, malformed or contradicts the index.
    """
    chosen = choose_weights([entry.name for entry in folder.iterdir()], where)
    weight_map = read_index(folder, chosen, where)
    files = shard_names(chosen, weight_map)
    modules = module_files_in(folder)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        count = f" ({len(missing)} of {len(files)} weight files are missing)" if len(missing) > 1 else ""
        raise CheckpointError(f"{where} lacks its weight file {missing[0]}{count}; download it again")
    descriptors: dict[str, int] = {}
    try:
        headers: dict[str, Header] = {}
        for file in (*files, *modules):
            descriptors[file] = open_file(folder / file, where)
            try:
                refuse_pointer(read_at(descriptors[file], len(GIT_LFS), 0), f"{file} of {where}")
                if chosen.kind == SAFETENSORS or file in modules:
                    headers[file] = safetensors_file.read_header(descriptors[file], file)
                else:
                    headers[file] = torch_bin.read_header(folder / file, file)
            except OSError as error:
                raise ReadError(unreadable(file, where, error)) from error
        return combine(headers, weight_map, chosen, where, descriptors)
    except BaseException:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise


def read_index(folder: Path, chosen: Weights, where: str) -> dict[str, str] | None:
    """The weight map of the chosen index, None without an index."""
    if chosen.index is None:
        return None
    return parse_index(read_small_file(folder, chosen.index, where), chosen.index, where)


def shard_names(chosen: Weights, weight_map: Mapping[str, str] | None) -> list[str]:
    """The weight files, in order of names."""
    return sorted(set(weight_map.values()) if weight_map is not None else chosen.files)


def combine(
    headers: Mapping[str, Header],
    weight_map: Mapping[str, str] | None,
    chosen: Weights,
    where: str,
    descriptors: Mapping[str, int] | None,
) -> WeightFiles:
    """The tensors of all files together, each in one file only, which is the one in the index."""
    tensors: dict[str, TensorInfo] = {}
    for tensor in _all(headers):
        other = tensors.setdefault(tensor.name, tensor)
        if other is not tensor:
            raise CheckpointError(
                f"tensor {shown(tensor.name)} of {where} is in both {other.file} and {tensor.file}; download it again"
            )
    if weight_map is not None:
        listed = {file for file in headers if not is_module_file(file)}
        files_of = {name: tensor.file for name, tensor in tensors.items() if tensor.file in listed}
        check_index(weight_map, files_of, chosen.index or "", where)
    if not tensors:
        raise CheckpointError(f"the weight files of {where} hold no tensors; download the checkpoint again")
    return WeightFiles(tensors, {file: header.sha256 for file, header in headers.items()}, descriptors)


def _all(headers: Mapping[str, Header]) -> Iterable[TensorInfo]:
    for file, header in headers.items():
        yield from with_module_name(header, file).tensors.values()


def open_file(path: Path, where: str) -> int:
    """The descriptor of a weight file. Raises CheckpointError."""
    try:
        return os.open(path, READ)
    except OSError as error:
        raise CheckpointError(unreadable(path.name, where, error)) from error
