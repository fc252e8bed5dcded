"""Qwen's models that see images, of which only the text model is converted."""

from tests.families.models.case import VOCAB, Case

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

CASES = (
    Case("qwen3-vl", QWEN3_VL, newest=True, auto="AutoModelForImageTextToText"),
    Case(
        "qwen3-vl-tied",
        {**QWEN3_VL, "tie_word_embeddings": True, "text_config": {**TEXT, "tie_word_embeddings": True}},
        newest=True,
        auto="AutoModelForImageTextToText",
    ),
)
