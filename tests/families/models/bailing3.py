"""Ling 3.0: transformers has it as BailingHybrid, and saves the published names but one."""

from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

# Published bounds of decays are -5, with which a state of random weights forgets within tokens.
LING3: dict[str, Any] = {
    "architectures": ["BailingMoeV3ForCausalLM"],
    "model_type": "bailing_hybrid",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "expert_swiglu_limit_list": None,
    "first_k_dense_replace": 1,
    "gated_attention_proj_granularity_type": "head_wise",
    "group_norm_size": 1,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "kda_lower_bound": -0.5,
    "kda_safe_gate": True,
    "kv_lora_rank": 32,
    "layer_group_size": 2,
    "layer_types": [*["linear_attention", "full_attention"] * 2, "full_attention"],
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": 32,
    "n_group": 4,
    "no_kda_lora": True,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "pad_token_id": 2,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_interleave": True,
    "rope_theta": 6000000.0,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "share_expert_swiglu_limit_list": None,
    "short_conv_kernel_size": 4,
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "use_bias": False,
    "use_qkv_bias": False,
    "v_head_dim": 16,
    "vocab_size": VOCAB,
}


def published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As the hub has it: Kimi Delta Attention ends in o_proj, latent attention in dense."""
    for layer, kind in enumerate(config["layer_types"]):
        if kind == "linear_attention":
            at = f"model.layers.{layer}.attention."
            tensors[f"{at}o_proj.weight"] = tensors.pop(f"{at}dense.weight")
    return config, tensors


def with_later_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The same with a layer after the others that predicts a later token."""
    config, tensors = published(config, tensors)
    extra, hidden = config["num_hidden_layers"], config["hidden_size"]
    last = f".layers.{extra - 1}."
    more = {name.replace(last, f".layers.{extra}."): values for name, values in tensors.items() if last in name}
    own = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "final_layernorm": (hidden,)}
    more |= {f"model.layers.{extra}.{name}.weight": weight(0, name, shape) for name, shape in own.items()}
    return {**config, "num_nextn_predict_layers": 1}, tensors | more


# Ling-3.0-flash: its last layers limit their experts, which transformers' class leaves out; queries are not compressed.
FLASH: dict[str, Any] = {
    **LING3,
    "expert_swiglu_limit_list": [0, None, 0, 0.4, 0.3],
    "q_lora_rank": None,
    "share_expert_swiglu_limit_list": [0, 0, 0.3, 0, 0.2],
}

CASES = (
    Case("ling3", LING3, publish=with_later_token, newest=True, raw_config=True, other_names=True),
    Case(
        "ling3-limits",
        FLASH,
        publish=published,
        newest=True,
        raw_config=True,
        other_names=True,
        patch="limit_ling3_experts",
        seed=1,
    ),
)
