"""Nemotron-NAS: layers that differ in key heads and widths or lack a part. transformers' Llama is changed into it."""

from typing import Any

from tests.families.models.breadth2 import LLAMA, LLAMA3
from tests.families.models.case import Case, Tensors, weight

HIDDEN, HEADS, HEAD = 64, 4, 16
# heads that share a key (0: none), one linear in place of attention, factor of the feed-forward's width
_BLOCKS: tuple[tuple[int, bool, float | None], ...] = (
    (2, False, 3.0),
    (4, False, 9.0),
    (0, True, 3.0),
    (0, False, 6.5),
    (0, False, None),
    (1, False, 2.625),
)
_WIDTHS = (256, 512, 256, 512, 0, 256)


def part_values() -> Tensors:
    """The tensors within the layers, by their published names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, ((group, linear, _), width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True)):
        at = f"model.layers.{layer}."
        if group:
            kv = HEADS // group * HEAD
            shapes |= {f"{at}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qo"}
            shapes |= {f"{at}self_attn.{name}_proj.weight": (kv, HIDDEN) for name in "kv"}
        elif linear:
            shapes[f"{at}self_attn.linear_attn.weight"] = (HIDDEN, HIDDEN)
        if width:
            shapes |= {f"{at}mlp.{name}_proj.weight": (width, HIDDEN) for name in ("gate", "up")}
            shapes[f"{at}mlp.down_proj.weight"] = (HIDDEN, width)
    return {name: weight(2, name, shape) for name, shape in shapes.items()}


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    own = part_values()
    kept = {name: values for name, values in tensors.items() if ".self_attn." not in name and ".mlp." not in name}
    for layer, ((group, linear, _), width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True)):
        if not (group or linear):
            del kept[f"model.layers.{layer}.input_layernorm.weight"]
        if not width:
            del kept[f"model.layers.{layer}.post_attention_layernorm.weight"]
    blocks = [
        {
            "attention": {
                "n_heads_in_group": group or None,
                "no_op": not (group or linear),
                "replace_with_linear": linear,
            },
            "ffn": {"ffn_mult": factor, "no_op": factor is None, "replace_with_linear": False},
        }
        for group, linear, factor in _BLOCKS
    ]
    stated = {
        **config,
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "block_configs": blocks,
        "intermediate_size": None,
        "num_key_value_heads": None,
    }
    return stated, {**kept, **own}


_NAS: dict[str, Any] = {
    **LLAMA,
    "num_hidden_layers": len(_BLOCKS),
    "num_key_value_heads": 2,
    "rope_scaling": {**LLAMA3, "factor": 8.0},
    "rope_theta": 500000.0,
}


def _first_release(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """DeciLM-7B: only key heads differ between layers."""
    heads = [config["num_key_value_heads"]] * config["num_hidden_layers"]
    own = {"architectures": ["DeciLMForCausalLM"], "model_type": "deci", "num_key_value_heads_per_layer": heads}
    return {**config, **own}, tensors


CASES = (
    # the converter writes a vocabulary of 128,256 tokens in another way than any other
    Case("nemotron-nas", _NAS, publish=_published, patch="differ_by_layer", newest=True, vocabulary=False),
    Case("decilm-7b", {**LLAMA, "num_key_value_heads": 2}, publish=_first_release, newest=True, vocabulary=False),
)
