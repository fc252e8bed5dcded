"""Granite with sliding windows and sinks, dense and with experts."""

from typing import Any

from tests.families.models.case import VOCAB, Case

GRANITE_SWA: dict[str, Any] = {
    "architectures": ["GraniteSWAForCausalLM"],
    "model_type": "granite_swa",
    "attention_multiplier": 0.2,
    "bos_token_id": 0,
    "embedding_multiplier": 3.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
    "logits_scaling": 2.0,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "residual_multiplier": 0.5,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "sliding_window": 5,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}
GRANITE_MOE_SWA = {
    **GRANITE_SWA,
    "architectures": ["GraniteMoeSWAForCausalLM"],
    "model_type": "granitemoe_swa",
    "intermediate_size": 32,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "shared_intermediate_size": 48,
}

CASES = (
    Case("granite-swa", GRANITE_SWA, newest=True),
    # the converter reads the layers without rotary positions under a name that the class does not have
    Case(
        "granite-swa-no-rope",
        {**GRANITE_SWA, "layer_rope_theta": [0, 10000.0, 10000.0, 10000.0, 0], "tie_word_embeddings": False},
        newest=True,
        converter=False,
    ),
    Case("granitemoe-swa", GRANITE_MOE_SWA, newest=True),
    Case("granitemoe-swa-without-shared", {**GRANITE_MOE_SWA, "shared_intermediate_size": 0}, newest=True),
)
