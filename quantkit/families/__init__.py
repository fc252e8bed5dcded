"""One file per model family, each a `FAMILY` of plain data. Adding a family is adding a file here."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
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
    "find_family",
    "left_out",
    "map_tensors",
    "read_hyperparameters",
    "read_mapped",
]


@cache
def all_families() -> tuple[Family, ...]:
    """Every family of this package, by module name."""
    modules = (importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def find_family(config: Mapping[str, Any]) -> Family:
    """The family that `config["architectures"]` names.

    Raises:
        UnsupportedError: no family takes this architecture; the message names the supported ones.
    """
    names = config.get("architectures")
    asked = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    known = {name: family for family in all_families() for name in family.architectures}
    if asked in known:
        return known[asked]
    supported = ", ".join(sorted(known))
    if asked is None:
        raise UnsupportedError(f'config.json names no architecture ("architectures": [...]); supported are {supported}')
    close = difflib.get_close_matches(asked, known, n=1, cutoff=0.75)
    hint = f"; the nearest by name is {close[0]}" if close else ""
    raise UnsupportedError(f"architecture {asked} of config.json is not supported yet; supported are {supported}{hint}")
