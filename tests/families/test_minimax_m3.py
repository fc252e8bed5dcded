"""MiniMax M3: settings that llama.cpp cannot express, and the names that transformers 5 saves."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import check_config
from tests.families.expected import expected

SPARSE = "sparse_attention_config"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swiglu_limit": 10.0}, "swiglu_limit is 10.0"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"moe_layer_freq": [1, 0, 1]}, "layers with experts are not the last ones"),
        ({"moe_layer_freq": [0, 0, 1]}, "or not those with sparse attention"),
        ({"moe_layer_freq": [0, 1]}, "moe_layer_freq must list 0 or 1 for 3 layers"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than num_local_experts 6"),
        ({"shared_intermediate_size": 48}, "only with a multiple of intermediate_size 32"),
        ({"rotary_dim": 15}, "rotary_dim 15 must be even"),
        ({"num_key_value_heads": 4}, "2 index heads for 4 key heads"),
        ({SPARSE: None}, "config.json has no sparse_num_index_heads"),
        ({SPARSE: [1]}, "sparse_attention_config must be an object"),
        ({"qk_norm_type": "per_layer"}, "qk_norm_type is 'per_layer'"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_by_config_alone(changes: dict[str, Any], words: str) -> None:
    config = expected("minimax-m3-text").config
    check_config(config)
    with pytest.raises(QuantkitError, match=words):
        check_config({**config, **changes})


def test_the_settings_that_transformers_saves_are_read_too() -> None:
    config = expected("minimax-m3-text").config
    saved = {key: value for key, value in config.items() if key not in (SPARSE, "moe_layer_freq")} | {
        "index_block_size": 2,
        "index_head_dim": 32,
        "index_local_blocks": 1,
        "index_n_heads": 2,
        "index_topk_blocks": 3,
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    }
    check_config(saved)
    with pytest.raises(QuantkitError, match="or not those with sparse attention"):
        check_config({**saved, "layer_types": ["full_attention"] * 3})
