"""Mellum 2; openPangu Embedded in the layout of its remote code."""

from typing import Any

from tests.families.models.breadth import SIZES
from tests.families.models.breadth2 import LLAMA
from tests.families.models.case import Case, Tensors

MELLUM = {
    **SIZES,
    "model_type": "mellum",
    "attention_bias": False,
    "head_dim": 32,
    "hidden_act": "silu",
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
    "mlp_layer_types": ["sparse"] * 4,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 500000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "sliding_window": 5,
    "tie_word_embeddings": False,
    "use_sliding_window": True,
}


def _pangu(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    kept = {key: native[key] for key in SIZES if key in native}
    return {
        **kept,
        "architectures": ["PanguEmbeddedForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_openpangu_dense.PanguEmbeddedForCausalLM"},
        "bias": True,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "PanguEmbedded",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 16000000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }, tensors


CASES = (
    Case("mellum", MELLUM, newest=True),
    Case(
        "pangu",
        {**LLAMA, "attention_bias": True, "num_key_value_heads": 2, "rope_theta": 16000000.0},
        publish=_pangu,
        tokenizer="few-letters",
    ),
)
