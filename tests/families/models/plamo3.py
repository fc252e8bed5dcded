"""PLaMo 3, and its tokenizer. transformers has no class for it; Gemma 3's is changed into it."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

_GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 16,
    "hidden_activation": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": [("full" if layer % 3 == 2 else "sliding") + "_attention" for layer in range(4)],
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 16,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1e6,
    "sliding_window": 5,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NAMES = (
    ("model.layers.", "model.layers.layers."),
    (".input_layernorm.", ".pre_mixer_norm."),
    (".post_attention_layernorm.", ".post_mixer_norm."),
    (".pre_feedforward_layernorm.", ".pre_mlp_norm."),
    (".post_feedforward_layernorm.", ".post_mlp_norm."),
    (".self_attn.", ".mixer."),
)
_FUSED = (("mixer.qkv_proj", ("q_proj", "k_proj", "v_proj")), ("mlp.gate_up_proj", ("gate_proj", "up_proj")))
_KEPT = (
    *("head_dim", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "rms_norm_eps"),
    *("num_hidden_layers", "num_key_value_heads", "rope_theta", "tie_word_embeddings", "vocab_size", "bos_token_id"),
    "eos_token_id",
)


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    published = {}
    for name, values in tensors.items():
        for old, new in _NAMES:
            name = name.replace(old, new)
        published[name] = values
    for layer in range(config["num_hidden_layers"]):
        for fused, parts in _FUSED:
            at = f"model.layers.layers.{layer}.{fused.rpartition('.')[0]}"
            rows = [published.pop(f"{at}.{part}.weight") for part in parts]
            published[f"model.layers.layers.{layer}.{fused}.weight"] = np.concatenate(rows)
    stated = {
        **{name: _GEMMA[name] for name in _KEPT},
        "architectures": ["Plamo3ForCausalLM"],
        "model_type": "plamo3",
        "rope_local_theta": _GEMMA["rope_local_base_freq"],
        "sliding_window_pattern": 3,
        "window_size": _GEMMA["sliding_window"],
    }
    return stated, published


CASES = (Case("plamo3", _GEMMA, publish=_published, patch="make_plamo3", newest=True, tokenizer="plamo"),)
