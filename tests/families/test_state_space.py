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
    ],
)
def test_what_llama_cpp_does_not_run_is_refused(model: str, changes: dict[str, Any], sentence: str) -> None:
    config = expected(model).config
    check_config(config)
    with pytest.raises(QuantkitError, match=sentence):
        check_config({**config, **changes})
