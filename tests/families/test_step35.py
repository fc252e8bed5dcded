"""Step 3.5: config.json of the hub and of transformers 5 mean the same; what llama.cpp cannot express is refused."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import check_config, find_family
from tests.families.expected import expected


def test_the_settings_that_transformers_saves_give_the_keys_of_the_hubs() -> None:
    hub = expected("step3.5").config
    saved = {
        **{key: value for key, value in hub.items() if not key.startswith("moe_") or "intermediate" in key},
        "layer_types": hub["layer_types"][:5],
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse", "sparse"],
        "moe_router_activation": hub["moe_router_activation"],
        "moe_router_scaling_factor": hub["moe_router_scaling_factor"],
        "mtp_layer_types": hub["layer_types"][5:],
        "n_routed_experts": hub["moe_num_experts"],
        "num_experts_per_tok": hub["moe_top_k"],
        "num_key_value_heads": hub["num_attention_groups"],
        "num_sliding_attention_heads": 6,
        "rope_parameters": {
            "full_attention": {**hub["rope_scaling"], "rope_theta": 5000000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
        "swiglu_limits": hub["swiglu_limits"][:5],
        "swiglu_limits_shared": hub["swiglu_limits_shared"][:5],
    }
    for name in (
        *("attention_other_setting", "num_attention_groups", "partial_rotary_factors"),
        *("rope_scaling", "rope_theta"),
    ):
        del saved[name]
    family = find_family(hub)
    ours, theirs = (family.keys("step35", family.sizes(config)) for config in (saved, hub))
    assert ours == theirs
    tables = [family.computed[0].values(family.sizes(config)) for config in (saved, hub)]
    assert tables[0] is not None and tables[1] is not None
    assert tables[0].tobytes() == tables[1].tobytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention"] * 7, "partial_rotary_factors": [0.5] * 7}, "has no sliding_attention"),
        ({"layer_types": ["chunked_attention"] * 7}, "layer_types contains 'chunked_attention'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "must list the kinds of 5 layers"),
        ({"partial_rotary_factors": [0.5] * 7}, "the same one for all layers|layers of sliding_attention rotate 0.5"),
        ({"partial_rotary_factors": None}, "layers of full_attention rotate 1 of a head"),
        ({"rope_theta": [5000000.0] * 3}, "rope_theta must have an entry for each layer"),
        (
            {"rope_theta": [1e6, 1e4, 1e4, 1e3, 1e6, 1e4, 1e4]},
            "rope_theta must have .* all layers of sliding_attention",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "cannot express rope scaling 'yarn'"),
        ({"yarn_only_types": ["sliding_attention"]}, "yarn_only_types is"),
        ({"use_rope_layers": [True, False]}, "use_rope_layers is"),
        ({"use_head_wise_attn_gate": False}, "use_head_wise_attn_gate is false"),
        ({"norm_expert_weight": False}, "norm_expert_weight is false"),
        ({"moe_router_activation": "softmax"}, "moe_router_activation is 'softmax'"),
        ({"moe_top_k": 7}, "moe_top_k 7 is more than moe_num_experts 6"),
        ({"moe_layers_enum": "2,x"}, "moe_layers_enum must list the numbers"),
        ({"swiglu_limits": 7.0}, "swiglu_limits must list a limit of each layer"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"attention_other_setting": {"num_attention_heads": 5, "num_attention_groups": 2}}, "5 heads of layers"),
        ({"attention_other_setting": [6]}, "attention_other_setting must be an object"),
        ({"num_attention_groups": None}, "config.json has no num_attention_groups"),
        ({"moe_num_experts": None}, "config.json has no moe_num_experts"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_by_config_alone(changes: dict[str, Any], words: str) -> None:
    config = expected("step3.5").config
    check_config(config)
    with pytest.raises(QuantkitError, match=words):
        check_config({**config, **changes})
