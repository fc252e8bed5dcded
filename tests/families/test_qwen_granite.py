"""Qwen and Granite: what llama.cpp has built in one way is refused in the other; what Qwen 1's config.json means."""

from typing import Any

import pytest

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import find_family
from tests.families.expected import expected


def config(case: str, **changes: Any) -> dict[str, Any]:
    return {**expected(case).config, **changes}


def keys(config: dict[str, Any]) -> dict[str, Any]:
    family = find_family(config)
    return {key.name: key.value for key in family.keys(family.gguf_arch, family.sizes(config))}


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, **changes}}


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("qwen", {"no_bias": False}, "no_bias is false.*only with true"),
        ("qwen", {"rotary_pct": 0.5}, "rotary_pct is 0.5.*only with 1"),
        ("qwen", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("qwen", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("qwen", {"kv_channels": 32}, "4 heads of kv_channels 32 are not hidden_size 64"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'.*only with silu"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2, "layer_types": None},
            "window of 64 tokens",
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 3}, "64"),
        ("qwen2", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope scaling 'llama3'"),
        ("qwen2-yarn", yarn(beta_fast=16), "beta_fast is 16.*Qwen2 with YaRN only with 32"),
        ("qwen2-yarn", yarn(beta_slow=2), "beta_slow is 2"),
        ("qwen2-yarn", yarn(truncate=False), "truncate is false"),
        ("qwen2-yarn", yarn(attention_factor=1.0), r"attention_factor is 1,.*only with 1\.13863"),
        ("qwen2-yarn", yarn(mscale=1.0, mscale_all_dim=0.5), "attention_factor is 1.06"),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob is true.*only with false"),
        ("qwen2moe", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("qwen2moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2.*only with 1"),
        ("qwen2moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
        ("qwen2moe", {"use_sliding_window": True, "sliding_window": 64}, "window of 64 tokens"),
        ("qwen3", {"attention_bias": True}, "attention_bias is true"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 3}, "64"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is false.*only with true"),
        ("qwen3moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
        ("qwen3moe", {"attention_bias": True}, "attention_bias is true"),
        ("granite", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("granite", {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ("granitemoe", {"position_embedding_type": "nope"}, "position_embedding_type is 'nope'.*only with rope"),
        ("granitemoeshared", {"num_local_experts": 0}, "num_local_experts is 0"),
    ],
)
def test_a_setting_no_gguf_can_express_is_refused(case: str, change: dict[str, Any], words: str) -> None:
    settings = config(case)
    find_family(settings).sizes(settings)
    with pytest.raises(UnsupportedError, match=words):
        find_family(settings).sizes({**settings, **change})


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("qwen", {"intermediate_size": 191}, "intermediate_size 191 is odd"),
        ("qwen2moe", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than num_experts 6"),
        ("qwen3moe", {"moe_intermediate_size": "wide"}, "moe_intermediate_size must be a positive whole number"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier must be a number other than 0"),
        ("granite", {"logits_scaling": None}, "logits_scaling must be a number other than 0"),
        ("granite", {"embedding_multiplier": "12"}, "embedding_multiplier must be a number"),
        ("granitemoe", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than num_local_experts 6"),
        ("granitemoeshared", {"shared_intermediate_size": -1}, "shared_intermediate_size must be a positive"),
    ],
)
def test_a_config_that_cannot_be_true_is_refused(case: str, change: dict[str, Any], words: str) -> None:
    settings = config(case, **change)
    with pytest.raises(CheckpointError, match=words):
        find_family(settings).sizes(settings)


@pytest.mark.parametrize(
    "change",
    [
        # as Qwen 1.5, 2 and 2.5 are published: the window is off, or as wide as the context, or above the last layer
        {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3, "layer_types": None},
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["full_attention"] * 3},
    ],
)
def test_a_window_that_hides_nothing_is_no_obstacle(change: dict[str, Any]) -> None:
    settings = config("qwen2", **change)
    assert find_family(settings).sizes(settings).n_layer == 3


def test_yarn_as_llama_cpp_has_it_built_in_may_be_spelled_out() -> None:
    settings = config("qwen2-yarn", **yarn(beta_fast=32, beta_slow=1.0, attention_factor=1.1386294361119891))
    assert keys(settings)["qwen2.rope.scaling.factor"] == 4.0


def test_the_two_halves_qwen_1_counts_are_one_width_elsewhere() -> None:
    settings = config("qwen")
    assert settings["intermediate_size"] == 2 * 96
    assert find_family(settings).sizes(settings).ffn == 96
    assert keys(settings)["qwen.feed_forward_length"] == 2 * 96


@pytest.mark.parametrize(
    ("change", "context"),
    [
        ({}, 512),
        ({"use_logn_attn": False}, 512),
        ({"use_dynamic_ntk": False, "use_logn_attn": False}, 2048),
        ({"seq_length": 8192}, 2048),
        ({"seq_length": None}, 2048),
    ],
)
def test_qwen_1_ends_where_it_would_start_to_stretch(change: dict[str, Any], context: int) -> None:
    assert keys(config("qwen", **change))["qwen.context_length"] == context


@pytest.mark.parametrize("case", ["qwen2", "qwen2-yarn", "qwen2moe", "qwen3moe", "granitemoe"])
def test_rope_settings_of_either_generation_give_the_same_keys(case: str) -> None:
    settings = config(case)
    newer = {key: value for key, value in settings.items() if key not in ("rope_theta", "rope_scaling")}
    rope = {"rope_type": "default", **(settings["rope_scaling"] or {}), "rope_theta": settings["rope_theta"]}
    assert keys({**newer, "rope_parameters": rope}) == keys(settings)


def test_attention_by_chunks_is_told() -> None:
    config = expected("qwen2").config
    family = find_family(config)
    assert not list(family.cautions(family.sizes(config)))
    long = {**config, "dual_chunk_attention_config": {"chunk_size": 262144, "original_max_position_embeddings": 262144}}
    (caution,) = family.cautions(family.sizes(long))
    assert "more than 262144 tokens" in caution
