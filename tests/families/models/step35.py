"""Step 3.5 and 3.7 Flash: heads and rotation by kind of layer, a gate a head, experts with limits, MTP layers."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight
from tests.families.models.qwen_vision import AUTO

_KINDS = [("full" if layer % 4 == 0 else "sliding") + "_attention" for layer in range(7)]
_MTP = 2
"""Layers that predict a later token: the last two of the lists."""

TEXT: dict[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"],
    "model_type": "step3p5",
    "att_impl_type": "GQA",
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 6,
        "num_attention_groups": 2,
        "head_dim": 32,
        "true_head_dim": 32,
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": _KINDS,
    "max_position_embeddings": 512,
    "moe_every_n_layer": 1,
    "moe_intermediate_size": 32,
    "moe_layer_offset": 0,
    "moe_layers_enum": "2,3,4",
    "moe_num_experts": 6,
    "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 3.0,
    "moe_top_k": 3,
    "need_fp32_gate": True,
    "norm_expert_weight": True,
    "num_attention_groups": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_nextn_predict_layers": _MTP,
    "partial_rotary_factors": [0.5 if kind == "full_attention" else 1.0 for kind in _KINDS],
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    },
    "rope_theta": [5000000.0 if kind == "full_attention" else 10000.0 for kind in _KINDS],
    "share_expert_dim": 48,
    # fewer than the tokens of a test, so that the window matters
    "sliding_window": 6,
    # low enough for the values of a tiny model to reach them
    "swiglu_limits": [0.0, 0.0, 0.0, 0.3, 0.5, 0.0, 0.0],
    "swiglu_limits_shared": [0.4, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0],
    "tie_word_embeddings": False,
    "use_head_wise_attn_gate": True,
    "use_moe": True,
    "use_moe_router_bias": True,
    "vocab_size": VOCAB,
    "yarn_only_types": ["full_attention"],
}
VISION = {
    "hidden_size": 32,
    "image_size": 56,
    "mlp_ratio": 2.0,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
}


def with_images(text: dict[str, Any]) -> dict[str, Any]:
    """config.json of the class that transformers has: the text model's, and a small tower's."""
    return {
        "architectures": ["Step3p7ForConditionalGeneration"],
        "model_type": "step3p7",
        "image_token_id": 280,
        "text_config": text,
        "vision_config": VISION,
    }


def with_later_tokens(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """With the dense layers that predict later tokens, which no logits depend on."""
    result, text = dict(tensors), config["text_config"]
    hidden, vocab, own = text["hidden_size"], text["vocab_size"], text["num_hidden_layers"]
    for number in range(own, own + text["num_nextn_predict_layers"]):
        at = f"model.layers.{number}"
        for name, values in tensors.items():
            if name.startswith("model.layers.1."):
                result[name.replace("model.layers.1", at)] = values
        shapes = {"eh_proj": (hidden, 2 * hidden), "transformer.shared_head.output": (vocab, hidden)}
        shapes |= dict.fromkeys(("enorm", "hnorm", "transformer.shared_head.norm"), (hidden,))
        result |= {f"{at}.{name}.weight": weight(number, name, shape) for name, shape in shapes.items()}
    return config, result


def text_alone(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Step 3.5 Flash, which transformers has as the text model of 3.7 only."""
    return config["text_config"], {
        name: values
        for name, values in with_later_tokens(config, tensors)[1].items()
        if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head."))
    }


# one window, no scaling, no limits and no layers for later tokens
PLAIN: dict[str, Any] = {
    **{key: value for key, value in TEXT.items() if not key.startswith("swiglu_limits")},
    "attention_other_setting": None,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "moe_layers_enum": "1,2",
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 0,
    "partial_rotary_factors": [0.5, 1.0, 0.5],
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": [5000000.0, 10000.0, 5000000.0],
}

CASES = (
    Case("step3.5", with_images(TEXT), newest=True, auto=AUTO, publish=text_alone, raw_config=True),
    Case("step3.7", with_images(TEXT), newest=True, auto=AUTO, publish=with_later_tokens, raw_config=True),
    Case("step3.5-plain", with_images(PLAIN), newest=True, auto=AUTO, publish=text_alone, raw_config=True),
)
