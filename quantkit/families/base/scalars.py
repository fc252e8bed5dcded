"""Tensors of one number that a GGUF has as keys: their values, read into the config."""

import re
from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CheckpointError
from quantkit.families.base.mapping import renamed
from quantkit.families.base.registry import find_family

SETTING = "scalars"
"""The name under which the config holds the numbers, by the tensors' names as the family's rules have them."""


def with_scalars(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """config.json with the numbers that the family's `scalars` names; of headers alone, and of others, as it is.

    Raises:
        CheckpointError: such a tensor has several numbers, or cannot be read.
    """
    family = find_family(checkpoint.config)
    if family.scalars is None or not checkpoint.has_weights:
        return checkpoint.config
    values = {}
    for name in checkpoint.tensors:
        if re.fullmatch(family.scalars, renamed(family, name)):
            numbers = checkpoint.read_rows(name, 0, 1)
            if numbers.size != 1:
                raise CheckpointError(f"tensor {name} has {numbers.size} numbers, but the model needs one")
            values[renamed(family, name)] = float(numbers.reshape(-1)[0])
    return {**checkpoint.config, SETTING: values}
