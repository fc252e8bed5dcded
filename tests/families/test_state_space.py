"""State-space and hybrid models: what llama.cpp does not run is refused in one sentence."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import check_config
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        ("falcon-h1", {"attention_bias": True}, "attention_bias is true"),
        ("falcon-h1", {"projectors_bias": True}, "projectors_bias is true"),
        ("falcon-h1", {"mamba_conv_bias": False}, "mamba_conv_bias is false"),
        ("falcon-h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": True}, "mamba_norm_before_gate is true"),
        ("falcon-h1", {"tie_word_embeddings": True}, "one tensor for both"),
        ("falcon-h1", {"ssm_multipliers": [1.0, 2.0]}, "ssm_multipliers must be a list of 5 numbers"),
        ("falcon-h1", {"mlp_multipliers": [1.0, "x"]}, "mlp_multipliers must be a number, not 'x'"),
        ("falcon-h1", {"key_multiplier": "x"}, "key_multiplier must be a number"),
        ("falcon-h1", {"mamba_d_head": 16}, "mamba_n_heads 8 times mamba_d_head 16"),
        ("falcon-h1", {"mamba_n_groups": 3}, "8 heads and 3 groups"),
        ("falcon-h1", {"time_step_limit": [0.001, 0.1]}, "time_step_limit is"),
        ("falcon-h1", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ("nemotron-h", {"hybrid_override_pattern": "M-M*-MR"}, "hybrid_override_pattern contains 'R'"),
        ("nemotron-h", {"hybrid_override_pattern": "M-M*-M"}, "states 6 layers, but num_hidden_layers is 7"),
        ("nemotron-h", {"hybrid_override_pattern": None}, "has no hybrid_override_pattern"),
        ("nemotron-h", {"hybrid_override_pattern": "M-M*-ME"}, "some layers are mlp and some moe"),
        ("nemotron-h", {"hybrid_override_pattern": "M-M-M-M"}, "only with both Mamba and attention layers"),
        ("nemotron-h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"),
        ("nemotron-h", {"use_bias": True}, "use_bias is true"),
        ("nemotron-h", {"use_conv_bias": False}, "use_conv_bias is false"),
        ("nemotron-h", {"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 is not layer_norm_epsilon 1e-05"),
        ("nemotron-h", {"n_groups": 3}, "8 heads and 3 groups"),
        ("nemotron-h-moe", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than n_routed_experts 6"),
        ("nemotron-h-moe", {"mlp_bias": True}, "mlp_bias is true"),
        ("mamba", {"expand": 3}, "expand is 3"),
        ("mamba", {"use_bias": True}, "use_bias is true"),
        ("mamba", {"use_conv_bias": False}, "use_conv_bias is false"),
        ("mamba", {"intermediate_size": 256}, "intermediate_size 256 is not the width of Mamba"),
        ("mamba", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("mamba2", {"head_dim": 32}, "num_heads 8 times head_dim 32"),
        ("mamba2", {"n_groups": 3}, "8 heads and 3 groups"),
        ("mamba2", {"time_step_limit": [0.001, 0.1]}, "time_step_limit is"),
        ("jamba", {"mamba_expand": 3}, "mamba_expand is 3"),
        ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms is false"),
        ("jamba", {"attn_layer_offset": 4}, "attn_layer_offset 4 must be less than attn_layer_period 4"),
        ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0}, "only with both Mamba and attention layers"),
        ("jamba", {"num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than num_experts 4"),
    ],
)
def test_what_llama_cpp_does_not_run_is_refused(model: str, changes: dict[str, Any], sentence: str) -> None:
    config = expected(model).config
    check_config(config)
    with pytest.raises(QuantkitError, match=sentence):
        check_config({**config, **changes})
