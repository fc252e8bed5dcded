"""Qwen's models that see images, of which only the text model is converted."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

AUTO = "AutoModelForImageTextToText"
TEXT = {
    "model_type": "qwen3_vl_text",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION = {
    "model_type": "qwen3_vl",
    "deepstack_visual_indexes": [0, 1],
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN3_VL = {
    "model_type": "qwen3_vl",
    "text_config": TEXT,
    "vision_config": VISION,
    "image_token_id": 280,
    "video_token_id": 281,
    "vision_start_token_id": 282,
    "vision_end_token_id": 283,
    "tie_word_embeddings": False,
}

# config.json of Qwen2-VL has the text model's settings at its top level.
QWEN2_VL = {
    **{key: value for key, value in TEXT.items() if key not in ("head_dim", "attention_bias")},
    "model_type": "qwen2_vl",
    "max_window_layers": 4,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "image_token_id": 280,
    "video_token_id": 281,
    "vision_start_token_id": 282,
    "vision_end_token_id": 283,
    "vision_config": {
        "model_type": "qwen2_vl",
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
QWEN2_5_VL = {
    **QWEN2_VL,
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "fullatt_block_indexes": [1],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
    },
}
QWEN3_VL_MOE = {
    **QWEN3_VL,
    "model_type": "qwen3_vl_moe",
    "text_config": {
        **TEXT,
        "model_type": "qwen3_vl_moe_text",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "vision_config": {**VISION, "model_type": "qwen3_vl_moe"},
}


def transposed_experts(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The fused experts as published: (experts, inputs, outputs). transformers 5 saves (experts, outputs, inputs)."""
    turned = {name: np.ascontiguousarray(t.swapaxes(1, 2)) if ".experts." in name else t for name, t in tensors.items()}
    return config, turned


CASES = (
    Case("qwen3-vl", QWEN3_VL, newest=True, auto=AUTO),
    Case(
        "qwen3-vl-tied",
        {**QWEN3_VL, "tie_word_embeddings": True, "text_config": {**TEXT, "tie_word_embeddings": True}},
        newest=True,
        auto=AUTO,
    ),
    Case("qwen2-vl", QWEN2_VL, newest=True, auto=AUTO),
    Case(
        "qwen2-vl-nested",
        {
            **{
                key: value for key, value in QWEN2_VL.items() if key not in TEXT or key in ("model_type", "hidden_size")
            },
            "text_config": {
                **{key: QWEN2_VL[key] for key in QWEN2_VL if key in TEXT},
                "model_type": "qwen2_vl_text",
                "tie_word_embeddings": True,
            },
            "tie_word_embeddings": True,
        },
        newest=True,
        auto=AUTO,
    ),
    Case("qwen2.5-vl", QWEN2_5_VL, newest=True, auto=AUTO),
    Case("qwen3-vl-moe", QWEN3_VL_MOE, transposed_experts, seed=1, newest=True, auto=AUTO),
    # llama.cpp's converter transposes the experts of this layout too
    Case("qwen3-vl-moe-as-saved", QWEN3_VL_MOE, converter=False, seed=1, newest=True, auto=AUTO),
)
