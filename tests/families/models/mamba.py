"""Mamba, FalconMamba and Mamba 2: layers without attention."""

from typing import Any

from tests.families.models.case import VOCAB, Case

# config.json as mamba-130m-hf has it, with small sizes
MAMBA: dict[str, Any] = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_inner": 128,
    "d_model": 64,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "intermediate_size": 128,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 3,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 8,
    "time_step_scale": 1.0,
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": VOCAB,
}
FALCON: dict[str, Any] = {
    **{key: value for key, value in MAMBA.items() if key not in ("d_inner", "d_model", "fused_add_norm", "n_layer")},
    "architectures": ["FalconMambaForCausalLM"],
    "mixer_rms_eps": 1e-06,
    "model_type": "falcon_mamba",
    "tie_word_embeddings": False,
}
# config.json as Mamba-Codestral-7B has it
MAMBA2: dict[str, Any] = {
    "architectures": ["Mamba2ForCausalLM"],
    "bos_token_id": 0,
    "chunk_size": 256,
    "conv_kernel": 4,
    "eos_token_id": 0,
    "expand": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba2",
    "n_groups": 2,
    "norm_before_gate": True,
    "num_heads": 8,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "state_size": 16,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 256,
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": VOCAB,
}

ROUNDED = (".ssm_a",)
CASES = (
    Case("mamba", MAMBA, newest=True, rounded=ROUNDED),
    Case(
        "mamba-silent-rank",
        {key: value for key, value in {**MAMBA, "conv_kernel": 3}.items() if key != "time_step_rank"},
        newest=True,
        rounded=ROUNDED,
    ),
    Case("falcon-mamba", FALCON, newest=True, rounded=ROUNDED),
    Case("mamba2", MAMBA2, newest=True),
    Case("mamba2-tied", {**MAMBA2, "tie_word_embeddings": True, "n_groups": 1}, newest=True),
)
