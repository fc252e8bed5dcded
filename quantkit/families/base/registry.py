"""The registry of families: lookups by config.json, by GGUF architecture and by model_type."""

import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from quantkit import families
from quantkit.errors import UnsupportedError, UsageError
from quantkit.families.base.family import Family
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture
from quantkit.tokenizer.roles import NO_ROLES, TokenRoles

FOLDERS_VARIABLE = "QUANTKIT_FAMILIES"
"""Environment variable: folders of the user's own family files, separated as in PATH."""

_ENDING = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")


def all_families() -> tuple[Family, ...]:
    """Every family by module name: quantkit's own, then those of the folders in QUANTKIT_FAMILIES.

    Raises:
        UsageError: a user's family file cannot be loaded.
    """
    return (*_own().values(), *_users(os.environ.get(FOLDERS_VARIABLE, "")).values())


@cache
def _own() -> dict[str, Family]:
    names = [entry.name for entry in pkgutil.iter_modules(families.__path__) if not entry.ispkg]
    modules = {name: importlib.import_module(f"{families.__name__}.{name}") for name in names}
    return {name: module.FAMILY for name, module in modules.items() if hasattr(module, "FAMILY")}


@cache
def _users(folders: str) -> dict[str, Family]:
    """The families of `folders`, by path of their file."""
    owners = {
        name: f"quantkit/families/{module}.py" for module, family in _own().items() for name in family.architectures
    }
    result: dict[str, Family] = {}
    for folder in filter(None, folders.split(os.pathsep)):
        if not Path(folder).is_dir():
            raise UsageError(f"{FOLDERS_VARIABLE} names {folder}, which is not a folder; correct or unset the variable")
        for path in sorted(Path(folder).glob("*.py")):
            family = _load(path)
            for name in family.architectures:
                if name in owners:
                    raise UsageError(
                        f"{path} defines architecture {name}, which {owners[name]} also defines; remove the name from"
                        " one of them"
                    )
                owners[name] = str(path)
            result[str(path)] = family
    return result


def _load(path: Path) -> Family:
    family = getattr(_import(path), "FAMILY", None)
    if not isinstance(family, Family):
        raise UsageError(f"{path} has no FAMILY; assign a quantkit.families.Family to FAMILY, or remove the file")
    return family


def _import(path: Path) -> ModuleType:
    name = f"quantkit_family_{sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"family file {path} cannot be loaded ({type(error).__name__}: {error}); correct it, or remove it from the"
            f" folder that {FOLDERS_VARIABLE} names"
        ) from error
    return module


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of the first name in `config["architectures"]`.

    Raises:
        UnsupportedError: no family has this architecture; the message says how to add one and lists the known ones.
        UsageError: a user's family file cannot be loaded.
    """
    wanted = _architecture_name(config)
    known = {name: family for family in all_families() for name in family.architectures}
    if wanted in known:
        return known[wanted]
    supported = ", ".join(sorted(known))
    if wanted is None:
        raise UnsupportedError(
            f'config.json names no architecture; add "architectures": [NAME]. Supported names are {supported}'
        )
    near = _nearest(wanted, known)
    hint = f"; the nearest by name is {near}" if near else ""
    modules = {name: module for module, family in _own().items() for name in family.architectures}
    example = modules.get(near or "", "llama")
    raise UnsupportedError(
        f"architecture {wanted} of config.json is not supported yet; if llama.cpp runs it, add a family file such as"
        f" quantkit/families/{example}.py; supported are {supported}{hint}"
    )


def _architecture_name(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _nearest(wanted: str, known: Iterable[str]) -> str | None:
    """The known architecture with the most similar name, compared without endings such as ForCausalLM."""
    models = {_ENDING.sub("", name): name for name in known}
    close = difflib.get_close_matches(_ENDING.sub("", wanted), models, n=1, cutoff=0.65)
    return models[close[0]] if close else None


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a model that config.json alone shows to be unsupported, before any weights are fetched.

    Raises:
        UnsupportedError: no family has the architecture, or a GGUF cannot express a setting.
        CheckpointError: a size is missing or inconsistent with another one.
    """
    family = find_family(config)
    family.keys(family.gguf_arch, family.sizes(config))


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The forward's description of the native architecture that config.json names.

    Raises:
        UnsupportedError: no family describes this architecture, or the forward does not support a setting.
    """
    name = _architecture_name(config) or "LlamaForCausalLM"
    architecture = forward_architectures().get(name)
    if architecture is None:
        raise UnsupportedError(f"the reference forward does not support architecture {name} of config.json")
    reason = architecture.refused(config)
    if reason:
        raise UnsupportedError(f"the reference forward of {name} does not support {reason}")
    return replace(architecture, **architecture.variant(config))


def forward_architectures() -> dict[str, Architecture]:
    """Every architecture of transformers that the forward runs, by its name in config.json."""
    described: dict[str, Architecture] = {}
    for family in all_families():
        if isinstance(family.forward, Architecture):
            described |= dict.fromkeys(family.architectures, family.forward)
        elif family.forward is not None:
            described |= family.forward
    return described


def token_roles(config: Mapping[str, Any]) -> TokenRoles:
    """The special tokens that the code of config.json's architecture fixes."""
    from quantkit.families.unconverted import TOKEN_ROLES

    wanted = _architecture_name(config)
    for family in all_families():
        if wanted in family.architectures:
            return family.token_roles
    return TOKEN_ROLES.get(wanted or "", NO_ROLES)


def traits_of(gguf_arch: str) -> Traits:
    """The traits of a GGUF architecture; those of Llama for an unknown one."""
    from quantkit.families.unconverted import TRAITS

    for family in all_families():
        if family.gguf_arch == gguf_arch:
            return family.traits
    return TRAITS.get(gguf_arch, Traits())


def has_checked_plan(gguf_arch: str) -> bool:
    """Whether the tests compare the compute buffer of this GGUF architecture with llama.cpp's."""
    return any(family.gguf_arch == gguf_arch for family in _own().values())


def positions_of(model_type: str | None) -> str | None:
    """`alibi` or `learned` if the model_type of config.json alone decides it, else None."""
    from quantkit.families.unconverted import POSITIONS

    for family in all_families():
        if model_type in family.defaults and family.traits.positions in ("alibi", "learned"):
            return family.traits.positions
    return POSITIONS.get(model_type or "")
