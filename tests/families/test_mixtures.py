"""Mixtures of experts: settings that llama.cpp would run as another model, and layers that predict a later token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.families import find_family
from quantkit.families.base.native import Native
from quantkit.forward.attention import attend
from quantkit.forward.layer import Context as Sequence
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS
from tests.helpers.conversions import to_gguf
from tests.planning.models import read_model

REFUSED: list[tuple[str, dict[str, Any], type[QuantkitError], str]] = [
    ("glm4moe", {"hidden_act": "gelu"}, UnsupportedError, "hidden_act is 'gelu'"),
    ("glm4moe", {"scoring_func": "softmax"}, UnsupportedError, "scoring_func is 'softmax'"),
    ("glm4moe", {"num_experts_per_tok": 7}, CheckpointError, "num_experts_per_tok 7 is more than n_routed_experts 6"),
    ("minimax-m2", {"scoring_func": "softmax"}, UnsupportedError, "scoring_func is 'softmax'"),
    ("minimax-m2", {"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings is true"),
    ("minimax-m2", {"qk_norm_type": "per_head"}, UnsupportedError, "qk_norm_type is 'per_head'"),
    ("minimax-m2", {"attn_type_list": [0, 1, 1]}, UnsupportedError, "attn_type_list is"),
    ("minimax-m2", {"use_routing_bias": False}, UnsupportedError, "use_routing_bias is false"),
    ("minimax-m2", {"rotary_dim": 15}, CheckpointError, "rotary_dim 15 must be even"),
    ("minimax-m2", {"rotary_dim": 48}, CheckpointError, "at most head_dim 32"),
    ("minimax-m2", {"num_experts_per_tok": 7}, CheckpointError, "num_experts_per_tok 7 is more than"),
    ("ernie4.5", {"use_bias": True}, UnsupportedError, "use_bias is true"),
    ("ernie4.5-moe", {"use_bias": True}, UnsupportedError, "use_bias is true"),
    ("ernie4.5-moe", {"moe_layer_interval": 2}, UnsupportedError, "moe_layer_interval is 2"),
    ("ernie4.5-moe", {"moe_layer_end_index": 1}, UnsupportedError, "moe_layer_end_index is 1.*only with -1 or 2"),
    ("ernie4.5-moe", {"moe_k": 7}, CheckpointError, "moe_k 7 is more than moe_num_experts 6"),
    ("hunyuan-dense", {"attention_bias": True}, UnsupportedError, "attention_bias is true"),
    ("hunyuan-dense", {"use_cla": True}, UnsupportedError, "use_cla is true"),
    ("hunyuan-dense", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedError, "alpha None"),
    ("hunyuan-dense", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, UnsupportedError, "rope scaling 'yarn'"),
    ("hunyuan-moe", {"moe_topk": [3, 2]}, UnsupportedError, "moe_topk differs between layers"),
    ("hunyuan-moe", {"moe_topk": "3"}, CheckpointError, "moe_topk must be a whole number"),
    ("hunyuan-moe", {"moe_topk": 7}, CheckpointError, "moe_topk 7 is more than num_experts 6"),
    ("hunyuan-moe", {"num_shared_expert": [2, 2]}, UnsupportedError, "num_shared_expert is 2"),
    ("hunyuan-moe", {"moe_intermediate_size": 16}, UnsupportedError, "moe_intermediate_size is 16.*only with 32"),
    ("bailingmoe", {"norm_head": True}, UnsupportedError, "norm_head is true"),
    ("bailingmoe", {"first_k_dense_replace": 1}, UnsupportedError, "first_k_dense_replace is 1"),
    ("bailingmoe", {"num_experts_per_tok": 7}, CheckpointError, "num_experts_per_tok 7 is more than num_experts 6"),
    ("bailingmoe2", {"use_qkv_bias": True}, UnsupportedError, "use_qkv_bias is true"),
    ("bailingmoe2", {"use_qk_norm": False}, UnsupportedError, "use_qk_norm is false"),
    ("bailingmoe2", {"num_shared_experts": 2}, UnsupportedError, "num_shared_experts is 2"),
    ("bailingmoe2", {"head_dim": 32}, UnsupportedError, "4 heads of head_dim 32 are not hidden_size 64"),
    ("llama4", {"attention_chunk_size": 4096}, UnsupportedError, "attention_chunk_size is 4096.*only with 8192"),
    ("llama4", {"attn_temperature_tuning": False}, UnsupportedError, "attn_temperature_tuning is false"),
    ("llama4", {"floor_scale": 4096}, UnsupportedError, "floor_scale is 4096"),
    ("llama4", {"no_rope_layers": [1, 1, 1, 1, 1]}, UnsupportedError, "no_rope_layers is"),
    ("llama4", {"layer_types": ["full_attention"] * 5}, UnsupportedError, "layer_types is"),
    ("llama4", {"moe_layers": [1, 3]}, UnsupportedError, "moe_layers is"),
    ("llama4", {"use_qk_norm": False}, UnsupportedError, "use_qk_norm is false.*4 experts"),
    ("llama4-interleaved-128-experts", {"use_qk_norm": True}, UnsupportedError, "use_qk_norm is true.*128 experts"),
    ("llama4", {"num_experts_per_tok": 5}, CheckpointError, "num_experts_per_tok 5 is more than num_local_experts 4"),
    ("afmoe", {"mup_enabled": False}, UnsupportedError, "mup_enabled is false"),
    ("afmoe", {"route_norm": False}, UnsupportedError, "route_norm is false"),
    ("afmoe", {"score_func": "softmax"}, UnsupportedError, "score_func is 'softmax'"),
    ("afmoe", {"layer_types": ["full_attention"] * 5}, UnsupportedError, "layer_types is"),
    ("afmoe", {"global_attn_every_n_layers": 2}, UnsupportedError, "global_attn_every_n_layers is 2"),
    ("afmoe", {"num_experts_per_tok": 7}, CheckpointError, "num_experts_per_tok 7 is more than num_experts 6"),
    ("glm4moe", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, UnsupportedError, "rope scaling 'llama3'"),
]


@pytest.mark.parametrize(("name", "change", "error", "words"), REFUSED)
def test_what_llama_cpp_would_run_wrong_is_refused(
    name: str, change: dict[str, Any], error: type[QuantkitError], words: str
) -> None:
    config = expected(name).config
    family = find_family(config)
    family.keys(family.gguf_arch, family.sizes(config))
    with pytest.raises(error, match=words):
        family.keys(family.gguf_arch, family.sizes({**config, **change}))


@pytest.mark.parametrize("name", ["bailingmoe", "bailingmoe2", "bailingmoe2-further-token"])
def test_the_forward_of_remote_code_gives_the_logits_of_the_native_model(name: str, tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint(name, tmp_path))) as checkpoint:
        native, known = Native(checkpoint), expected(name).logits
        ours = native.decoder.run(TOKENS)
    np.testing.assert_allclose(ours, known, atol=2e-3 * known.std() + 1e-3 * np.abs(known).max())


def test_a_token_attends_within_its_chunk_only(tmp_path: Path) -> None:
    """Rotary scores depend on distances alone, so each chunk gives what it gives as a text of its own."""
    with open_checkpoint(str(write_checkpoint("llama4", tmp_path))) as checkpoint:
        decoder = Native(checkpoint).decoder
        layer = decoder.layer(0).layer
        chunked = replace(layer, config={**layer.config, "attention_chunk_size": 5})
        x = np.random.default_rng(0).standard_normal((12, decoder.hidden)).astype(np.float32)
        part = decoder.architecture.attention
        whole = attend(part, chunked, x, Sequence())
        alone = [attend(part, layer, piece, Sequence()) for piece in (x[:5], x[5:10], x[10:])]
    np.testing.assert_allclose(whole, np.concatenate(alone), atol=1e-5)


def test_late_queries_of_layers_without_positions_are_scaled_as_transformers_scales_them(tmp_path: Path) -> None:
    """log1p(floor((position + 1) / floor_scale)) * attn_scale + 1 (Llama4TextAttention.forward)."""
    with open_checkpoint(str(write_checkpoint("llama4", tmp_path))) as checkpoint:
        decoder = Native(checkpoint).decoder
        part, config = decoder.architecture.attention, {**decoder.config, "floor_scale": 4}
        layers = [replace(decoder.layer(number).layer, config=config) for number in (2, 3)]
        x = np.random.default_rng(0).standard_normal((8, decoder.hidden)).astype(np.float32)
        late = [attend(part, layer, x, Sequence()) for layer in layers]
        plain = [attend(part, replace(layer, config=decoder.config), x, Sequence()) for layer in layers]
    np.testing.assert_array_equal(late[0], plain[0])
    np.testing.assert_array_equal(late[1][:3], plain[1][:3])
    assert (np.abs(late[1][3:] - plain[1][3:]).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize(("name", "stated", "blocks"), [("glm4moe-head-norms-groups", 1, 3), ("glm4moe", 0, 4)])
def test_the_checkpoint_says_how_many_layers_predict_a_later_token(
    name: str, stated: int, blocks: int, tmp_path: Path
) -> None:
    """transformers saves a model without these layers and leaves config.json as it was."""
    with open_checkpoint(str(write_checkpoint(name, tmp_path))) as checkpoint:
        config = {**checkpoint.config, "num_nextn_predict_layers": stated}
        family = find_family(config)
        keys = {key.name: key.value for key in family.keys("glm4moe", family.sizes(config, checkpoint.tensors))}
    assert keys["glm4moe.block_count"] == blocks
    assert keys["glm4moe.nextn_predict_layers"] == blocks - 3


def test_layers_that_predict_a_later_token_take_no_memory(tmp_path: Path) -> None:
    """llama.cpp loads them on request only, and the cache has no place for them."""
    path = to_gguf(write_checkpoint("glm4moe", tmp_path / "glm4moe"), "f32", tmp_path)
    shape, tensors = read_model(path)
    without = [tensor for tensor in tensors if tensor.layer != 3]
    assert len(without) < len(tensors)
    memory, expected_memory = (plan_memory(shape, part, Context(n_ctx=512)) for part in (tensors, without))
    assert memory == expected_memory
    assert memory.cpu.weights == sum(tensor.nbytes for tensor in without)
