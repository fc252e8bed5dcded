"""Granite 4: what llama.cpp does not run is refused in one sentence."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import check_config
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer_types": ["mamba"] * 4}, "every layer is a Mamba layer"),
        ({"layer_types": ["mamba", "rwkv", "mamba", "attention"]}, "layer_types contains 'rwkv'"),
        ({"layer_types": ["mamba"]}, "must list the kinds of 4 layers"),
        ({"layer_types": ["attention"] * 4}, "position_embedding_type is 'nope'.*only with rope"),
        ({"position_embedding_type": "rope"}, "position_embedding_type is 'rope'.*only with nope"),
        ({"mamba_expand": 3, "mamba_d_head": "auto"}, "mamba_expand is 3"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias is false"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is true"),
        ({"mamba_d_head": 8}, "mamba_n_heads 8 times mamba_d_head 8"),
        ({"mamba_n_groups": 3}, "8 heads and 3 groups"),
        ({"time_step_limit": [0.001, 0.1]}, "time_step_limit is"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok 7"),
    ],
)
def test_what_llama_cpp_does_not_run_is_refused(changes: dict[str, Any], sentence: str) -> None:
    config = expected("granitehybrid").config
    check_config(config)
    with pytest.raises(QuantkitError, match=sentence):
        check_config({**config, **changes})
