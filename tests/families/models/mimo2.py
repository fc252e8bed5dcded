"""MiMo-V2-Flash: values narrower than keys, key heads and sinks by kind of layer, layers that predict a later token."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

MIMO: dict[str, Any] = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "model_type": "mimo_v2_flash",
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "attention_bias": False,
    "attention_value_scale": 0.707,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0],
    "intermediate_size": 96,
    "layernorm_epsilon": 1e-5,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "moe_layer_freq": [0, 1, 1, 1, 1, 1],
    "n_group": 1,
    "n_routed_experts": 6,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5000000,
    "routed_scaling_factor": None,
    "scoring_func": "sigmoid",
    # fewer than the tokens of a test, so that the window matters
    "sliding_window": 6,
    "swa_head_dim": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_rope_theta": 10000,
    "swa_v_head_dim": 16,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 16,
    "vocab_size": VOCAB,
}
_MTP = 3
"""Layers that predict a later token, which llama.cpp's converter takes for granted."""


def published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """With the layers that predict later tokens, which no logits depend on: a layer with a window, and dense."""
    result, hidden = dict(tensors), config["hidden_size"]
    for number in range(_MTP):
        at = f"model.mtp.layers.{number}"
        for name, values in tensors.items():
            if ".layers.1.self_attn." in name:
                result[name.replace("model.layers.1", at)] = values
            if ".layers.0.mlp." in name:
                result[name.replace("model.layers.0", at)] = values
        norms = ("enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm")
        shapes = {"eh_proj": (hidden, 2 * hidden)} | dict.fromkeys(norms, (hidden,))
        result |= {f"{at}.{name}.weight": weight(number, name, shape) for name, shape in shapes.items()}
    return config, result


CASES = (Case("mimo2", MIMO, newest=True, publish=published, raw_config=True),)
