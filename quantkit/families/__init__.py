"""One file per model family, each with a `FAMILY` of plain data; `base/` holds what family files are made of.

To support a model, add one file here (docs/dev/add-a-family.md). The environment variable QUANTKIT_FAMILIES names
folders with further files.
"""

from quantkit.families.base.family import Canonical, Computed, Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, read_hyperparameters
from quantkit.families.base.mapped import MappedTensor, Part
from quantkit.families.base.mapping import canonical_checkpoint, left_out, map_projector, map_tensors, why_missing
from quantkit.families.base.opening import open_model
from quantkit.families.base.projector import Projector
from quantkit.families.base.reading import read_mapped
from quantkit.families.base.reference import reference_logits
from quantkit.families.base.registry import (
    all_families,
    check_config,
    complete_architecture,
    find_architecture,
    find_family,
    forward_architectures,
    has_checked_plan,
    positions_of,
    token_roles,
    traits_of,
)
from quantkit.families.base.settings import cautions
from quantkit.families.base.traits import LLAMA_TRAITS, Traits

__all__ = [
    "LLAMA_TRAITS",
    "Canonical",
    "Computed",
    "Dropped",
    "Family",
    "Hyperparameters",
    "Key",
    "MappedTensor",
    "Part",
    "Projector",
    "Rule",
    "Take",
    "Traits",
    "all_families",
    "canonical_checkpoint",
    "cautions",
    "check_config",
    "complete_architecture",
    "find_architecture",
    "find_family",
    "forward_architectures",
    "has_checked_plan",
    "left_out",
    "map_projector",
    "map_tensors",
    "open_model",
    "positions_of",
    "read_hyperparameters",
    "read_mapped",
    "reference_logits",
    "token_roles",
    "traits_of",
    "why_missing",
]
