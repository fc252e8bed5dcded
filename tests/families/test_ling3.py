"""Ling 3.0: what llama.cpp would run otherwise is refused in one sentence."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import find_family
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"no_kda_lora": None}, "config.json has no no_kda_lora; add it, it must be true"),
        ({"kda_safe_gate": False}, "kda_safe_gate is false"),
        ({"gated_attention_proj_granularity_type": "element_wise"}, "with head_wise; a GGUF cannot express"),
        ({"kda_lower_bound": 0.5}, "kda_lower_bound must be less than zero, not 0.5"),
        ({"use_mla_nope": True}, "use_mla_nope is true"),
        ({"num_shared_experts": 2}, "num_shared_experts is 2"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than num_experts 8"),
        ({"layer_group_size": 3}, "other layers with full_attention than the last of 3"),
        ({"expert_swiglu_limit_list": 4}, "expert_swiglu_limit_list must be a list, not 4"),
        ({"share_expert_swiglu_limit_list": [4.0]}, "has a limit for a dense layer"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "cannot express rope scaling 'yarn'"),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    config = {**expected("ling3").config, **change}
    with pytest.raises(QuantkitError) as caught:
        find_family(config).sizes(config)
    assert words in str(caught.value)
