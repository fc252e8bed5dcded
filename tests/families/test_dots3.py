"""Dots 3: what llama.cpp would run otherwise is refused in one sentence, and what differs in long texts is said."""

from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.families import find_family
from tests.families.expected import expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"apply_mla_qkv_lora_rescale": None}, "config.json has no apply_mla_qkv_lora_rescale"),
        ({"attention_gate_type": "elementwise"}, "attention_gate_type is 'elementwise'"),
        ({"k_rope_only_layernorm": False}, "k_rope_only_layernorm is false"),
        ({"layer_types": None}, "config.json has no layer_types; add the kinds of 5 layers"),
        ({"moe_shared_expert_intermediate_size": 64}, "moe_shared_expert_intermediate_size is 64"),
        ({"n_group": 2}, "n_group is 2"),
        ({"swa_q_lora_rank": 32}, "swa_q_lora_rank is 32"),
        ({"swa_kv_lora_rank": None}, "config.json has no swa_kv_lora_rank"),
        ({"swa_rope_theta": None}, "config.json has no swa_rope_theta"),
        ({"use_dsa": False}, "use_dsa is false"),
        ({"index_head_dim": 96}, "index_head_dim is 96"),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    config = {**expected("dots3").config, **change}
    with pytest.raises(QuantkitError) as caught:
        find_family(config).sizes(config)
    assert words in str(caught.value)


def test_texts_longer_than_the_choice_of_the_indexer_are_mentioned() -> None:
    config = expected("dots3").config
    family = find_family(config)
    assert not list(family.cautions(family.sizes(config)))
    (caution,) = family.cautions(family.sizes({**config, "index_topk": 100}))
    assert "in texts of more than 100 tokens" in caution
