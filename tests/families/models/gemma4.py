"""Gemma 4: two head sizes, values that are keys, layers that share keys and values, per-layer embeddings, experts."""

from dataclasses import replace
from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

ROPE = {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
}
SLIDING, FULL = "sliding_attention", "full_attention"
TEXT: dict[str, Any] = {
    "model_type": "gemma4_text",
    "attention_bias": False,
    "attention_k_eq_v": False,
    "bos_token_id": 1,
    "enable_moe_block": False,
    "eos_token_id": 2,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 64,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 96,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
    "max_position_embeddings": 512,
    "moe_intermediate_size": None,
    "num_attention_heads": 4,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": ROPE,
    # fewer than the tokens of a test, so that the window matters
    "sliding_window": 5,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_double_wide_mlp": False,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
}
# E2B and E4B: one key head, per-layer embeddings, shared keys and values
SMALL = {
    **TEXT,
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 32,
    "num_hidden_layers": 7,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL],
    "num_kv_shared_layers": 4,
}
# 31B and 12B: global layers have their own number of key heads, and no values
LARGE = {
    **TEXT,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision",
}
EXPERTS = {**LARGE, "enable_moe_block": True, "moe_intermediate_size": 32, "num_experts": 6, "top_k_experts": 2}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "position_embedding_size": 16,
}
AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "output_proj_dims": 32,
    "subsampling_conv_channels": [8, 4],
}
IDS = {
    "boi_token_id": 271,
    "eoi_token_id": 272,
    "image_token_id": 273,
    "video_token_id": 274,
    "boa_token_id": 275,
    "eoa_token_index": 276,
    "audio_token_id": 277,
}
UNIFIED = {
    "model_type": "gemma4_unified",
    "text_config": {
        **{name: value for name, value in LARGE.items() if "per_layer" not in name and "expert" not in name},
        "model_type": "gemma4_unified_text",
    },
    "vision_config": {
        "model_type": "gemma4_unified_vision",
        "mm_embed_dim": 32,
        "mm_posemb_size": 8,
        "num_soft_tokens": 4,
        "patch_size": 4,
        "pooling_kernel_size": 2,
    },
    "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 16},
    "tie_word_embeddings": True,
    **IDS,
}


def with_unused_keys(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Keys and values of all layers, as published, also where the model reads those of an earlier layer."""
    published = dict(tensors)
    for layer, kind in enumerate(config["layer_types"]):
        at, width = f"model.layers.{layer}.self_attn", 32 if kind == SLIDING else 64
        for name, shape in (("k_proj", (width, 64)), ("v_proj", (width, 64)), ("k_norm", (width,))):
            published.setdefault(f"{at}.{name}.weight", weight(0, f"{at}.{name}.weight", shape))
    return config, published


SEES = "AutoModelForImageTextToText"

_CASES = (
    Case("gemma4", SMALL),
    # published checkpoints hold keys and values of layers that use those of an earlier one
    Case("gemma4-wide", {**SMALL, "use_double_wide_mlp": True}, publish=with_unused_keys),
    # without a key llama.cpp caps the logits at 30, and the converter writes none
    Case("gemma4-uncapped", {**LARGE, "final_logit_softcapping": None}, converter=False),
    Case("gemma4-large", LARGE),
    Case("gemma4-experts", EXPERTS),
    Case(
        "gemma4-images",
        {
            "model_type": "gemma4",
            "text_config": SMALL,
            "vision_config": VISION,
            "audio_config": AUDIO,
            "tie_word_embeddings": True,
            **IDS,
        },
        auto=SEES,
    ),
    Case("gemma4-unified", UNIFIED, auto=SEES),
)
CASES = tuple(replace(case, newest=True, tokenizer="raw") for case in _CASES)
