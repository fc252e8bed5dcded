"""Jamba: Mamba, attention and experts in turn."""

from typing import Any

from tests.families.models.case import VOCAB, Case

# config.json as Jamba v0.1 has it, with small sizes
JAMBA: dict[str, Any] = {
    "architectures": ["JambaForCausalLM"],
    "attention_dropout": 0.0,
    "attn_layer_offset": 2,
    "attn_layer_period": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_dt_rank": 8,
    "mamba_expand": 2,
    "mamba_inner_layernorms": True,
    "mamba_proj_bias": False,
    "max_position_embeddings": 512,
    "model_type": "jamba",
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_logits_to_keep": 1,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_mamba_kernels": True,
    "vocab_size": VOCAB,
}

ROUNDED = (".ssm_a",)
CASES = (
    Case("jamba", JAMBA, newest=True, rounded=ROUNDED, tokenizer="few-letters"),
    Case(
        "jamba-dense-tied",
        {**JAMBA, "num_experts": 1, "num_experts_per_tok": 1, "tie_word_embeddings": True},
        newest=True,
        rounded=ROUNDED,
        tokenizer="few-letters",
    ),
)
