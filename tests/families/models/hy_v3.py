"""Hunyuan 3: head norms, sigmoid scores with a bias, a shared expert, a layer that predicts a further token."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

HY_V3: dict[str, Any] = {
    "architectures": ["HYV3ForCausalLM"],
    "model_type": "hy_v3",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 32,
    "hidden_act": "silu",
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 11158840.0, "rope_type": "default"},
    "router_scaling_factor": 1.5,
    "route_norm": True,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def with_further_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As the model is published: after the layers one that predicts a further token, with a norm at its end."""
    extra, last = config["num_hidden_layers"], config["num_hidden_layers"] - 1
    published = dict(tensors)
    for name, value in tensors.items():
        if f".layers.{last}." in name:
            published[name.replace(f".layers.{last}.", f".layers.{extra}.")] = value
    hidden = config["hidden_size"]
    own = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "final_layernorm": (hidden,)}
    for name, shape in own.items():
        published[f"model.layers.{extra}.{name}.weight"] = weight(0, name, shape)
    return {**config, "num_nextn_predict_layers": 1}, published


CASES = (
    Case("hy-v3", HY_V3, publish=with_further_token, newest=True, seed=1),
    Case("hy-v3-tied", {**HY_V3, "num_shared_experts": 2, "tie_word_embeddings": True}, newest=True),
)
