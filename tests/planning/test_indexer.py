"""DeepSeek-V3.2 and GLM-5 at their published widths: cache, compute buffer and weights against llama.cpp's account."""

from pathlib import Path
from typing import Any

import pytest

from tests.families.models.indexed import GLM5, V32
from tests.families.published import Published
from tests.planning.test_delta_net import assert_memory_is_llama_cpps, header

WIDTHS: dict[str, Any] = {
    "hidden_size": 7168,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 32,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
GLM_WIDTHS = {
    **WIDTHS,
    "hidden_size": 6144,
    "index_n_heads": 32,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "v_head_dim": 256,
}
MODELS = (
    Published("DeepSeek-V3.2", {**V32, **WIDTHS, "num_hidden_layers": 3}, 0),
    Published(
        "GLM-5.2",
        {**GLM5, **GLM_WIDTHS, "num_hidden_layers": 4, "indexer_types": ["full", "shared", "full", "shared"]},
        0,
    ),
)


@pytest.mark.parametrize("published", MODELS, ids=lambda model: model.name)
def test_a_model_of_published_widths_takes_what_llama_cpp_reserves(published: Published, tmp_path: Path) -> None:
    """Of all layers a few, and of 256 experts 32: the buffers of a layer do not depend on their number."""
    assert_memory_is_llama_cpps(header(published, tmp_path))
