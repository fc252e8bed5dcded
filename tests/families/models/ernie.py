"""ERNIE 4.5, dense and mixtures: neighbouring rotary values, a bias on softmax scores, shared experts or none."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.glm4moe import fused

ERNIE: dict[str, Any] = {
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 32,
    "hidden_act": "silu",
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# the converter takes intermediate_size / num_key_value_heads for the width of the shared experts: 64
MOE: dict[str, Any] = {
    **{key: value for key, value in ERNIE.items() if key != "head_dim"},
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "moe_k": 3,
    "moe_layer_end_index": 2,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 6,
    "moe_num_shared_experts": 2,
}

CASES = (
    Case("ernie4.5", ERNIE, newest=True, tokenizer="few-letters"),
    Case("ernie4.5-untied", {**ERNIE, "tie_word_embeddings": False}, newest=True, tokenizer="few-letters"),
    Case("ernie4.5-moe", MOE, newest=True, tokenizer="few-letters"),
    Case(
        "ernie4.5-moe-no-shared",
        {**MOE, "moe_num_shared_experts": 0, "moe_layer_end_index": -1},
        newest=True,
        tokenizer="few-letters",
    ),
    # the converter takes experts one by one only
    Case("ernie4.5-moe-fused", {**MOE, "tie_word_embeddings": False}, publish=fused, newest=True, converter=False),
)
