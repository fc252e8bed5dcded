"""MiniMax M2: one norm over all heads, half of a head rotated, experts under Mixtral's names."""

import re
from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

MINIMAX_M2: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "attn_type_list": [1, 1, 1],
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 32,
    "hidden_act": "silu",
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 3,
    "num_local_experts": 6,
    "num_hidden_layers": 3,
    "qk_norm_type": "per_layer",
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rotary_dim": 16,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "use_mtp": True,
    "num_mtp_modules": 3,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def named_by_modules(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As transformers 5 holds the model: the block is called mlp, experts are fused, and rope has one object."""
    one = re.compile(r"(.*)\.block_sparse_moe\.experts\.(\d+)\.(w1|w2|w3)\.weight")
    published = {
        name.replace(".block_sparse_moe.", ".mlp."): values
        for name, values in tensors.items()
        if not one.fullmatch(name)
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"

        def stacked(part: str, at: str = at) -> np.ndarray:
            names = (f"{at}.block_sparse_moe.experts.{n}.{part}.weight" for n in range(config["num_local_experts"]))
            return np.stack([tensors[name] for name in names])

        published[f"{at}.mlp.experts.gate_up_proj"] = np.concatenate([stacked("w1"), stacked("w3")], axis=1)
        published[f"{at}.mlp.experts.down_proj"] = stacked("w2")
    kept = {key: value for key, value in config.items() if key not in ("rope_theta", "rotary_dim")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    if "rotary_dim" in config:
        rope["partial_rotary_factor"] = config["rotary_dim"] / config["head_dim"]
    return {**kept, "rope_parameters": rope}, published


CASES = (
    Case("minimax-m2", MINIMAX_M2, newest=True),
    # the converter knows the published names only
    Case("minimax-m2-fused", MINIMAX_M2, publish=named_by_modules, newest=True, converter=False),
)
