"""Which layers of a mixture are dense, which have experts, and the layers after them that predict a later token.

DeepSeek-V3 (arXiv 2412.19437, section 2.2) calls the last kind multi-token prediction; llama.cpp calls it nextn.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size

_NEXTN = "num_nextn_predict_layers"


def dense_layers(sizes: Hyperparameters) -> range:
    """The first `first_k_dense_replace` layers, which have no experts."""
    return range(min(int(number(sizes.config, "first_k_dense_replace") or 0), sizes.n_layer))


def routed_layers(sizes: Hyperparameters) -> range:
    """The layers with experts."""
    return range(len(dense_layers(sizes)), sizes.n_layer)


def nextn_rules(layer: Iterable[Rule], at: str = "model.layers.{layer}") -> tuple[Rule, ...]:
    """The rules of a layer that predicts a later token: those of a layer with experts (`layer`), and its own.

    The source names of the layer go on after those of the model's own layers.
    """
    to = "blk.{layer}.nextn"
    nextn = (
        Rule(f"{at}.eh_proj.weight", f"{to}.eh_proj.weight", ("hidden", "two_hidden")),
        Rule(f"{at}.enorm.weight", f"{to}.enorm.weight", ("hidden",)),
        Rule(f"{at}.hnorm.weight", f"{to}.hnorm.weight", ("hidden",)),
        Rule(f"{at}.embed_tokens.weight", f"{to}.embed_tokens.weight", ("vocab", "hidden"), required=False),
        Rule(f"{at}.shared_head.head.weight", f"{to}.shared_head_head.weight", ("vocab", "hidden"), required=False),
        Rule(f"{at}.shared_head.norm.weight", f"{to}.shared_head_norm.weight", ("hidden",), required=False),
    )
    return tuple(replace(rule, draft=True, layers=None) for rule in (*layer, *nextn))


def observe_nextn(config: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """config.json with the number of layers that predict a later token in the checkpoint; transformers loses them."""
    n_layer = size(config, "num_hidden_layers")
    numbers = {
        int(match[1])
        for name in tensors
        if (match := re.match(r"model\.(?:language_model\.)?layers\.(\d+)\.eh_proj\.", name))
    }
    further = sum(number >= n_layer for number in numbers)
    if further or config.get(_NEXTN) is not None:
        config[_NEXTN] = further
    return config


def nextn_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The key for the number of layers that predict a later token, if config.json states it."""
    stated = sizes.config.get(_NEXTN) is not None
    return [Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft)] if stated else []
