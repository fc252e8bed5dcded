"""Orion 14B: Llama's graph with layer norms, which is StableLM's with whole heads rotated.

Shape of the GGUF: llama.cpp's `orion` architecture (src/models/orion.cpp). config.json calls the norms' epsilon
`rms_norm_eps`.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Canonical, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.native_config import shared
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_NORMS = (
    (f"{_AT}.input_layernorm", f"{_TO}.attn_norm"),
    (f"{_AT}.post_attention_layernorm", f"{_TO}.ffn_norm"),
    ("model.norm", "output_norm"),
)

_RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *PROJECTIONS,
    *PLAIN_MLP,
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Orion")
    only(config, "tie_word_embeddings", False, family="Orion")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/orion.py), with the rotary base that it leaves out."""
    keys = [
        Key(f"{arch}.tensor_data_layout", "str", "Meta AI original pth"),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", sizes.norm_eps),
    ]
    theta = sizes.rope.get("rope_theta", 10000.0)
    return keys if theta == 10000.0 else [*keys, Key(f"{arch}.rope.freq_base", "f32", theta)]


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    native = {key: value for key, value in shared(config).items() if key != "rms_norm_eps"}
    return {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "num_key_value_heads": config["num_attention_heads"],
        "rope_theta": 10000.0,
        **native,
        "hidden_dropout": 0.0,
        "layer_norm_eps": config["rms_norm_eps"],
        "partial_rotary_factor": 1.0,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        "use_parallel_residual": False,
        "use_qkv_bias": False,
    }


FAMILY = Family(
    name="Orion",
    models="Orion 14B",
    architectures=("OrionForCausalLM",),
    gguf_arch="orion",
    rules=_RULES,
    keys=_keys,
    # OrionConfig of the published code.
    defaults={
        "orion": {
            "max_position_embeddings": 4096,
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(
        _native_config, tuple(Rule(rule.source, rule.source, rule.shape) for rule in _RULES)
    ),
    traits=Traits(layer_norm=True),
)
