"""Spark X2.5, which transformers has no class of."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.families.models.case import VOCAB, Case

SPARK: dict[str, Any] = {
    "architectures": ["Spark2_5ForCausalLM"],
    "model_type": "spark2_5",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "gate_attn_act_mode": "sigmoid",
    "head_dim": 16,
    "headwise_attn_output_gate": True,
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 5000000.0, "rope_type": "default"},
        "sliding_attention": {"partial_rotary_factor": 1.0, "rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 7,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}


def layout(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, as published."""
    return dict(_layout(config))


def _layout(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, heads, width = (
        config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
    )
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_k_v_proj.weight", ((heads + 2 * config["num_key_value_heads"]) * width, hidden)
        yield f"{at}.self_attn.g_proj.weight", (heads, hidden)
        yield f"{at}.self_attn.out_proj.weight", (hidden, heads * width)
        yield f"{at}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.embedding.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


CASES = (Case("spark-x2.5", SPARK, newest=True, reference="spark"),)
