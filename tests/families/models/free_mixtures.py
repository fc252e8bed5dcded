"""Mixtures that share most of a graph with another family."""

from typing import Any

from tests.families.models.case import Case, Tensors
from tests.families.models.free_towers import TEXT

EXPERTS = {
    "moe_intermediate_size": 32,
    "n_group": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.8,
    "tie_word_embeddings": False,
    "topk_group": 1,
}
SOLAR = {
    **TEXT,
    **EXPERTS,
    "model_type": "solar_open",
    "attention_bias": False,
    "first_k_dense_replace": 0,
    "head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "partial_rotary_factor": 1.0,
    "use_qk_norm": False,
}
SARVAM = {
    **TEXT,
    **EXPERTS,
    "model_type": "sarvam_moe",
    "architectures": ["SarvamMoEForCausalLM"],
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "num_experts": 8,
    "num_shared_experts": 1,
    "score_function": "sigmoid",
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
}
EXAONE_MOE = {
    **TEXT,
    **EXPERTS,
    "model_type": "exaone_moe",
    "architectures": ["ExaoneMoEForCausalLM"],
    "first_k_dense_replace": 1,
    "head_dim": 32,
    "layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention"],
    "num_experts": 8,
    "num_hidden_layers": 5,
    "num_shared_experts": 1,
    "scoring_func": "sigmoid",
    "sliding_window": 8,
    "sliding_window_pattern": "LLLG",
}


def module_of_remote_code(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The class with the name of its module, and a model_type that transformers does not know.

    The converter reads other config.json files through transformers, which renames num_experts; then it finds none.
    """
    name = "modeling_sarvam_moe.SarvamMoEForCausalLM"
    return {**config, "architectures": [name], "model_type": "sarvam_moe_remote"}, tensors


CASES = (
    Case("solar-open", SOLAR, newest=True, tokenizer="solar"),
    Case("sarvam-moe", SARVAM, newest=True, converter=False),
    Case("sarvam-moe-module", SARVAM, module_of_remote_code, newest=True, seed=1),
    Case("exaone-moe", EXAONE_MOE, newest=True),
    Case(
        "exaone-moe-layers",
        {**EXAONE_MOE, "architectures": ["ExaoneMoeForCausalLM"], "first_k_dense_replace": 2, "num_shared_experts": 2},
        newest=True,
        seed=1,
    ),
)
