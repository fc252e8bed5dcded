"""Mellum 2: Qwen3-MoE's graph; some layers have a sliding window and another rotary base.

Shape of the GGUF: llama.cpp's `mellum` architecture (src/models/mellum.cpp), which scales rope in layers without a
window only.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families import qwen3moe
from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.sliding import sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS, local_rope, slides, window

# llama.cpp's value for a file without the key.
_PATTERN = 4

# transformers' MellumConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mellum": {
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 896,
        "norm_topk_prob": True,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "sliding_window": 1024,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Mellum")
    only(config, "attention_bias", False, family="Mellum")
    only(config, "norm_topk_prob", True, family="Mellum")
    only(config, "num_mtp_layers", 0, family="Mellum")
    layers = size(config, "num_hidden_layers")
    kinds = config.get("mlp_layer_types") or ["sparse"] * layers
    if set(kinds) != {"sparse"}:
        raise UnsupportedError(
            f"config.json: mlp_layer_types lists {', '.join(sorted(map(str, set(kinds))))}; llama.cpp runs Mellum only"
            " with experts in every layer"
        )
    if config.get("layer_types") is None:
        config["layer_types"] = ["full_attention"] * layers
    rope = config.get("rope_parameters")
    for name in ("full_attention", "sliding_attention"):
        if isinstance(rope, Mapping) and isinstance(rope.get(name), Mapping):
            plain_yarn({"rope_parameters": rope[name]}, "Mellum")
    local = rope.get("sliding_attention") if isinstance(rope, Mapping) else None
    if isinstance(local, Mapping) and local.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"config.json: sliding layers have rope scaling {local['rope_type']!r}; llama.cpp scales other layers only"
        )
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/mellum.py)."""
    result = [
        *base_keys(arch, sizes),
        Key(f"{arch}.expert_feed_forward_length", "u32", size(sizes.config, "moe_intermediate_size")),
    ]
    if (tokens := optional_size(sizes.config, "sliding_window")) is not None:
        layers = sliding_layers(sizes.config, sizes.n_layer, 1)
        result += [
            Key(f"{arch}.attention.sliding_window", "u32", tokens),
            Key(f"{arch}.attention.sliding_window_pattern", "bools", layers),
        ]
    return result


def _slides(config: Config, layer: int) -> bool:
    return slides(config, layer, False)


FORWARD = replace(
    qwen3moe.FORWARD,
    attention=Attention(norms=HEAD_NORMS, rope=local_rope(_slides), window=window(_slides)),
)

FAMILY = Family(
    name="Mellum",
    models="Mellum 2 12B-A2.5B",
    architectures=("MellumForCausalLM",),
    gguf_arch="mellum",
    rules=qwen3moe.FAMILY.rules,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=qwen3moe.FAMILY.dimensions,
    traits=Traits(sliding_every=_PATTERN),
    rope_kinds=("default", "yarn"),
    # layers for a later token are left out
    no_effect=("mtp_layer_types", "mtp_mlp_layer_types"),
    forward=FORWARD,
)
