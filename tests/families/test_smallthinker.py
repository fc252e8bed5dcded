"""SmallThinker: what llama.cpp would run otherwise is refused in one sentence."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import find_family
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moe_enable_early_router": False}, "moe_enable_early_router is false"),
        ({"moe_enable_secondary_experts": True}, "moe_enable_secondary_experts is true"),
        ({"sliding_window_size": 1024}, "sliding_window_size is 1024"),
        ({"sliding_window_layout": [0, 1]}, "sliding_window_layout must be a list of 5 times 0 or 1, not [0, 1]"),
        ({"sliding_window_layout": [1, 1, 1, 1, 0]}, "a GGUF cannot express this sliding_window_layout"),
        ({"rope_layout": [1] * 5}, "a GGUF cannot express this sliding_window_layout and rope_layout"),
        ({"sliding_window_layout": [0] * 5}, "a GGUF cannot express this sliding_window_layout and rope_layout"),
        ({"moe_num_active_primary_experts": 7}, "7 is more than moe_num_primary_experts 6"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "cannot express rope scaling 'linear'"),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    config = {**expected("smallthinker").config, **change}
    with pytest.raises(QuantkitError) as caught:
        find_family(config).sizes(config)
    assert words in str(caught.value)
