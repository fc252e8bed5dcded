"""GLM-4.5: sigmoid scores with a bias, norms of queries and keys or none, and layers that predict a further token."""

import re
from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors, weight

GLM4_MOE: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 32,
    "hidden_act": "silu",
    "partial_rotary_factor": 0.5,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "max_position_embeddings": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False,
    "use_qk_norm": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def with_further_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As the models are published: after the layers one that predicts a further token, which no logits depend on."""
    extra, last = config["num_hidden_layers"], config["num_hidden_layers"] - 1
    published = dict(tensors)
    for name, value in tensors.items():
        if f".layers.{last}." in name:
            published[name.replace(f".layers.{last}.", f".layers.{extra}.")] = value
    hidden = config["hidden_size"]
    own = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "shared_head.norm": (hidden,)}
    for name, shape in (own | dict.fromkeys(("shared_head.head", "embed_tokens"), (VOCAB, hidden))).items():
        published[f"model.layers.{extra}.{name}.weight"] = weight(0, name, shape)
    return {**config, "num_nextn_predict_layers": 1}, published


def fused(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Experts as transformers 5 holds them: gate above up in one tensor, stacked over the experts, and down."""
    one = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
    published = {name: values for name, values in tensors.items() if not one.fullmatch(name)}
    parts: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for name, values in tensors.items():
        if match := one.fullmatch(name):
            parts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = values
    for at, roles in parts.items():
        gate, up, down = (np.stack([roles[role][n] for n in sorted(roles[role])]) for role in ("gate", "up", "down"))
        published[f"{at}.gate_up_proj"], published[f"{at}.down_proj"] = np.concatenate([gate, up], axis=1), down
    return config, published


CASES = (
    Case(
        "glm4moe",
        {**GLM4_MOE, "first_k_dense_replace": 2},
        publish=with_further_token,
        newest=True,
        tokenizer="glm-4.5",
    ),
    Case(
        "glm4moe-head-norms-groups",
        {**GLM4_MOE, "use_qk_norm": True, "n_group": 2, "topk_group": 1, "n_routed_experts": 8, "n_shared_experts": 2},
        newest=True,
        tokenizer="glm-4.5",
    ),
    # the converter takes experts one by one only
    Case(
        "glm4moe-fused-tied",
        {**GLM4_MOE, "attention_bias": False, "tie_word_embeddings": True},
        publish=fused,
        newest=True,
        converter=False,
    ),
)
