"""Ling 1 and 2.0: remote code, so the logits come from the native models that compute the same.

GLM-4.5 is Ling 2.0 with other names; Granite's mixture with shared experts, without its multipliers, is Ling 1.
"""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors, weight
from tests.families.models.glm4moe import GLM4_MOE

NAMES = {
    "model.embed_tokens.": "model.word_embeddings.",
    ".self_attn.o_proj.": ".attention.dense.",
    ".self_attn.q_norm.": ".attention.query_layernorm.",
    ".self_attn.k_norm.": ".attention.key_layernorm.",
    ".mlp.gate.e_score_correction_bias": ".mlp.gate.expert_bias",
}
SAME = (
    *("vocab_size", "hidden_size", "hidden_act", "intermediate_size", "max_position_embeddings", "rms_norm_eps"),
    *("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "num_experts_per_tok", "rope_theta"),
    *("tie_word_embeddings",),
)
PUBLISHED = {
    "model_type": "bailing_moe",
    "use_bias": False,
    "use_qkv_bias": False,
    "norm_head": False,
    "norm_topk_prob": True,
    "rope_scaling": None,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def renamed(tensors: Tensors, layers: int) -> Tensors:
    """The tensors by the names of the published code, which has queries, keys and values in one matrix."""
    published = {}
    for name, values in tensors.items():
        if any(f".self_attn.{role}_proj." in name for role in "qkv"):
            continue
        for old, new in NAMES.items():
            name = name.replace(old, new)
        published[name] = values
    for layer in range(layers):
        at = f"model.layers.{layer}"
        three = [tensors[f"{at}.self_attn.{role}_proj.weight"] for role in "qkv"]
        published[f"{at}.attention.query_key_value.weight"] = np.concatenate(three)
    return published


def ling2(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """GLM-4.5 by the names of BailingMoeV2."""
    kept = ("n_group", "topk_group", "routed_scaling_factor", "first_k_dense_replace", "head_dim")
    published = {
        **PUBLISHED,
        **{key: config[key] for key in (*SAME, *kept, "moe_intermediate_size", "partial_rotary_factor")},
        "architectures": ["BailingMoeV2ForCausalLM"],
        "moe_router_enable_expert_bias": True,
        "moe_shared_expert_intermediate_size": config["moe_intermediate_size"],
        "num_experts": config["n_routed_experts"],
        "num_nextn_predict_layers": 0,
        "num_shared_experts": 1,
        "score_function": "sigmoid",
        "use_qk_norm": True,
        "use_rmsnorm": True,
    }
    return published, renamed(tensors, config["num_hidden_layers"])


def ling2_with_further_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The same with a layer after the others that predicts a later token."""
    published, named = ling2(config, tensors)
    extra, hidden = published["num_hidden_layers"], published["hidden_size"]
    last = f".layers.{extra - 1}."
    more = {name.replace(last, f".layers.{extra}."): values for name, values in named.items() if last in name}
    own = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "final_layernorm": (hidden,)}
    more |= {f"model.layers.{extra}.{name}.weight": weight(0, name, shape) for name, shape in own.items()}
    return {**published, "num_nextn_predict_layers": 1}, named | more


def ling1(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Granite's mixture by the names of BailingMoe: gate and up apart, experts one by one."""
    wide, shared = config["intermediate_size"], config["shared_intermediate_size"]
    named = renamed(
        {
            name: values
            for name, values in tensors.items()
            if ".block_sparse_moe." not in name and "shared_mlp" not in name
        },
        config["num_hidden_layers"],
    )
    for layer in range(config["num_hidden_layers"]):
        at, to = f"model.layers.{layer}", f"model.layers.{layer}.mlp"
        named[f"{to}.gate.weight"] = tensors[f"{at}.block_sparse_moe.router.layer.weight"]
        both, down = (tensors[f"{at}.block_sparse_moe.{name}_linear.weight"] for name in ("input", "output"))
        for expert in range(config["num_local_experts"]):
            one = f"{to}.experts.{expert}"
            named[f"{one}.gate_proj.weight"], named[f"{one}.up_proj.weight"] = both[expert, :wide], both[expert, wide:]
            named[f"{one}.down_proj.weight"] = down[expert]
        both = tensors[f"{at}.shared_mlp.input_linear.weight"]
        named[f"{to}.shared_experts.gate_proj.weight"] = both[:shared]
        named[f"{to}.shared_experts.up_proj.weight"] = both[shared:]
        named[f"{to}.shared_experts.down_proj.weight"] = tensors[f"{at}.shared_mlp.output_linear.weight"]
    return {
        **PUBLISHED,
        **{key: config[key] for key in SAME},
        "architectures": ["BailingMoeForCausalLM"],
        "first_k_dense_replace": 0,
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "moe_intermediate_size": wide,
        "num_experts": config["num_local_experts"],
        "num_shared_experts": shared // wide,
        "norm_softmax": False,
        "multi_gate": False,
    }, named


LING2: dict[str, Any] = {
    **GLM4_MOE,
    "attention_bias": False,
    "head_dim": 16,
    "use_qk_norm": True,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
}
LING1: dict[str, Any] = {
    "model_type": "granitemoeshared",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 32,
    "shared_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 512,
    "rope_theta": 600000.0,
    "tie_word_embeddings": False,
    "attention_multiplier": 0.25,
}

CASES = (
    Case("bailingmoe2", LING2, publish=ling2, newest=True),
    Case(
        "bailingmoe2-further-token",
        {**LING2, "n_group": 1, "topk_group": 1},
        publish=ling2_with_further_token,
        newest=True,
    ),
    Case("bailingmoe", LING1, publish=ling1),
)
