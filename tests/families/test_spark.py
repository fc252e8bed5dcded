"""Spark X2.5: what llama.cpp would run otherwise is refused in one sentence."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import find_family
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gate_attn_act_mode": "silu"}, "gate_attn_act_mode is 'silu'"),
        ({"headwise_attn_output_gate": None}, "config.json has no headwise_attn_output_gate; add it, it must be true"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"layer_types": None}, "config.json has no layer_types; add the kinds of 4 layers"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_parameters has no rope_theta of full_attention"),
        ({"sliding_window": None}, "config.json has no sliding_window"),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    config = {**expected("spark-x2.5").config, **change}
    with pytest.raises(QuantkitError) as caught:
        find_family(config).sizes(config)
    assert words in str(caught.value)
