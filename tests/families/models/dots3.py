"""Dots 3 Note's text model: layers with an indexer, and layers with a window whose latent attention has other sizes."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

DOTS3: dict[str, Any] = {
    "architectures": ["Dots3NoteForCausalLM"],
    "model_type": "dots3_note_text",
    "apply_mla_qkv_lora_rescale": True,
    "attention_bias": False,
    "attention_gate_type": "headwise",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 64,
    "index_head_dim": 64,
    "index_n_heads": 4,
    "index_topk": 2048,
    "intermediate_size": 96,
    "k_rope_only_layernorm": True,
    "kv_lora_rank": 32,
    "layer_types": [
        *("full_attention", "sliding_attention", "sliding_attention"),
        *("sliding_attention", "full_attention"),
    ],
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "pad_token_id": 2,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 80000000.0,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "sliding_window_size": 7,
    "swa_attention_gate_type": "headwise",
    "swa_head_dim": 32,
    "swa_kv_lora_rank": 48,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 24,
    "swa_qk_nope_head_dim": 24,
    "swa_qk_rope_head_dim": 8,
    "swa_rope_theta": 50000.0,
    "swa_v_head_dim": 20,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_dsa": True,
    "use_sliding_window": True,
    "v_head_dim": 16,
    "vocab_size": VOCAB,
}


def published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As the hub has it, beside towers for images and audio."""
    towers = ("vision_encoder.patch_embed.proj.weight", "audio_encoder.layer_norm.weight")
    more = {name: weight(0, name, (8, 8)) for name in towers}
    width = {"adapter_out_dim": config["hidden_size"]}
    config = {**config, "model_type": "dots3_note", "audio_config": dict(width), "vision_config": dict(width)}
    return config, tensors | more


def with_later_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The same with a dense layer with a window that predicts a later token, and its embedding."""
    config, tensors = published(config, tensors)
    extra, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    at, like = f"model.layers.{extra}", "model.layers.1"
    more = {
        name.replace(like, at): v for name, v in tensors.items() if name.startswith(f"{like}.") and ".mlp." not in name
    }
    own = {
        **dict.fromkeys(("enorm", "hnorm", "shared_head.norm"), (hidden,)),
        "eh_proj": (hidden, 2 * hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    more |= {f"{at}.{name}.weight": weight(0, name, shape) for name, shape in own.items()}
    embedding = "model.mtp.embed_tokens.weight"
    return config, tensors | more | {embedding: weight(0, embedding, (config["vocab_size"], hidden))}


CASES = (
    Case("dots3", DOTS3, publish=published, newest=True, raw_config=True, tokenizer="dots3"),
    Case(
        "dots3-later-token",
        {**DOTS3, "architectures": ["Dots3NoteTextForCausalLM"]},
        publish=with_later_token,
        newest=True,
        raw_config=True,
        tokenizer="dots3",
        seed=1,
    ),
)
