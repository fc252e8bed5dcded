"""Weights of an embedding model's Dense modules (sentence-transformers): one safetensors file a module.

A module's folder is called NUMBER_Dense. Its tensors get the folder's name as prefix, as in `2_Dense.linear.weight`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from quantkit.checkpoint.safetensors_file import Header

_FILE = re.compile(r"(\d+_Dense)/model\.safetensors")


def module_files(names: Iterable[str]) -> list[str]:
    """The modules' weight files among the names of a checkpoint's files, in order of names."""
    return sorted(name for name in names if _FILE.fullmatch(name))


def module_files_in(folder: Path) -> list[str]:
    """The modules' weight files in a local folder."""
    return module_files(path.relative_to(folder).as_posix() for path in folder.glob("*_Dense/model.safetensors"))


def with_module_name(header: Header, file: str) -> Header:
    """The header with the module's prefix before each name; the header itself for any other file."""
    match = _FILE.fullmatch(file)
    if match is None:
        return header
    tensors = {
        f"{match[1]}.{name}": replace(tensor, name=f"{match[1]}.{name}") for name, tensor in header.tensors.items()
    }
    return replace(header, tensors=tensors)


def name_of(path: Path) -> str:
    """A weight file's name in its checkpoint: that of a module's file with its folder."""
    name = "/".join(path.parts[-2:])
    return name if is_module_file(name) else path.name


def is_module_file(file: str) -> bool:
    """Whether a weight file is a module's."""
    return _FILE.fullmatch(file) is not None
