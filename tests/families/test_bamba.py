"""Bamba: settings that llama.cpp cannot express."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import check_config
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_layer_indices": None}, "attn_layer_indices lists no layer"),
        ({"attn_layer_indices": [4]}, r"attn_layer_indices must list layers below 4, not \[4\]"),
        ({"attn_rotary_emb": 16}, "attn_rotary_emb is 16, but llama.cpp runs Bamba only with 8"),
        ({"partial_rotary_factor": 1.0}, "partial_rotary_factor is 1.0"),
        ({"mamba_expand": 4}, "mamba_expand is 4"),
        ({"mamba_d_head": 32}, "mamba_n_heads 8 times mamba_d_head 32"),
        ({"mamba_n_groups": 3}, "choose heads that divide the width"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"time_step_limit": [0.1, 0.5]}, "time_step_limit"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "cannot express rope scaling 'yarn'"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_by_config_alone(changes: dict[str, Any], words: str) -> None:
    config = expected("bamba").config
    check_config(config)
    with pytest.raises(QuantkitError, match=words):
        check_config({**config, **changes})
