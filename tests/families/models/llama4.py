"""Llama 4: rotary positions in three of four layers, one expert or several, dense layers between, 128 experts."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

TEXT: dict[str, Any] = {
    "model_type": "llama4_text",
    "architectures": ["Llama4ForCausalLM"],
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attn_scale": 0.1,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 16,
    "hidden_act": "silu",
    "interleave_moe_layer_step": 1,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "max_position_embeddings": 512,
    "moe_layers": None,
    "no_rope_layers": [],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_hidden_layers": 5,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "use_qk_norm": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# the ends are equal in Llama 4 Scout
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}

VISION: dict[str, Any] = {"model_type": "llama4_vision_model", "hidden_size": 32, "num_hidden_layers": 1}


def with_vision(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The text model as Scout and Maverick are published: within a model that sees images."""
    published = {f"language_model.{name}": values for name, values in tensors.items()}
    published["vision_model.model.layers.0.self_attn.q_proj.weight"] = weight(0, "vision", (32, 32))
    published["multi_modal_projector.linear_1.weight"] = weight(0, "projector", (64, 32))
    nested = {key: value for key, value in config.items() if key != "architectures"}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": nested,
        "vision_config": VISION,
        "tie_word_embeddings": False,
    }, published


CASES = (
    Case("llama4", {**TEXT, "rope_scaling": LLAMA3}, newest=True),
    Case(
        "llama4-interleaved-128-experts",
        {
            **TEXT,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
            "num_local_experts": 128,
            "hidden_size": 32,
            "head_dim": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 4,
            "use_qk_norm": False,
        },
        newest=True,
    ),
    # transformers 5.24's own class of the whole model stumbles over a text without an image
    Case("llama4-vision", TEXT, publish=with_vision, newest=True),
)
