"""One file per model family, each a `FAMILY` of plain data. Adding a family is adding a file here."""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.family import Family, Key, Rule, Take
from quantkit.families.hyperparameters import Hyperparameters, read_hyperparameters
from quantkit.families.mapping import MappedTensor, Part, canonical_checkpoint, left_out, map_tensors
from quantkit.families.reading import read_mapped

__all__ = [
    "Family",
    "Hyperparameters",
    "Key",
    "MappedTensor",
    "Part",
    "Rule",
    "Take",
    "all_families",
    "canonical_checkpoint",
    "check_config",
    "find_family",
    "left_out",
    "map_tensors",
    "read_hyperparameters",
    "read_mapped",
]

_ENDING = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")


@cache
def all_families() -> tuple[Family, ...]:
    """Every family of this package, by module name."""
    return tuple(_modules().values())


@cache
def _modules() -> dict[str, Family]:
    names = [entry.name for entry in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module.FAMILY for name, module in modules.items() if hasattr(module, "FAMILY")}


def find_family(config: Mapping[str, Any]) -> Family:
    """The family that `config["architectures"]` names.

    Raises:
        UnsupportedError: no family takes this architecture; the message says what it would need, and names the others.
    """
    names = config.get("architectures")
    asked = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    known = {name: module for module, family in _modules().items() for name in family.architectures}
    if asked in known:
        return _modules()[known[asked]]
    supported = ", ".join(sorted(known))
    if asked is None:
        raise UnsupportedError(f'config.json names no architecture ("architectures": [...]); supported are {supported}')
    near = _nearest(asked, known)
    hint = f"; the nearest by name is {near}" if near else ""
    example = known[near] if near else "llama"
    raise UnsupportedError(
        f"architecture {asked} of config.json is not supported yet; it would need a family file, as"
        f" quantkit/families/{example}.py is one, for an architecture that llama.cpp runs; supported are"
        f" {supported}{hint}"
    )


def _nearest(asked: str, known: Iterable[str]) -> str | None:
    """By the model's own part of the name: all end in ForCausalLM or the like."""
    models = {_ENDING.sub("", name): name for name in known}
    close = difflib.get_close_matches(_ENDING.sub("", asked), models, n=1, cutoff=0.65)
    return models[close[0]] if close else None


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what config.json alone shows cannot be converted, before any weights are fetched.

    Raises:
        UnsupportedError: no family takes the architecture, or its family cannot express a setting in a GGUF.
        CheckpointError: a size is missing or at odds with another one.
    """
    family = find_family(config)
    family.keys(family.gguf_arch, family.sizes(config))
