"""Tiny models of classes that transformers does not have, whose logits a module beside this one computes in torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tests.families.models import Case, weight

Made = tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, dict[str, Any]]
"""config.json, tensors, logits, and the native config and shapes, see `with_transformers.build`."""


def made_in_torch(
    case: Case,
    layout: Mapping[str, tuple[int, ...]],
    logits: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], torch.Tensor],
) -> Made:
    """The case's model with tensors of the shapes `layout`. `logits`: a function of these and of config.json."""
    config = dict(case.config)
    tensors = {name: weight(case.seed, name, shape) for name, shape in layout.items()}
    with torch.no_grad():
        found = logits({name: torch.from_numpy(values) for name, values in tensors.items()}, config).numpy()
    return config, tensors, found, {"config": config, "layout": {name: list(shape) for name, shape in layout.items()}}
