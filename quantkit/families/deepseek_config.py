"""config.json of DeepSeek-V2 and V3: defaults, and the settings that llama.cpp does not run."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.hyperparameters import optional_size, size
from quantkit.families.base.refusals import SILU, only

# transformers' DeepseekV2Config and DeepseekV3Config; V3's class scores by sigmoid without stating it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "v_head_dim": 128,
        "norm_topk_prob": False,
        "moe_intermediate_size": 1407,
    },
    "deepseek_v3": {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "v_head_dim": 128,
        "norm_topk_prob": True,
        "moe_intermediate_size": 2048,
        "scoring_func": "sigmoid",
        "rope_interleave": True,
    },
}

# llama.cpp recognises a Lite model, which has no compressed queries, by these (src/models/deepseek2.cpp, is_lite).
_LITE_LAYERS = (26, 27)
_LITE_LAYERS_AND_VOCABULARY = (48, 128256)

_AS_V3 = ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "Glm4MoeLiteForCausalLM", "GlmMoeDsaForCausalLM")


def is_v3(config: Mapping[str, Any]) -> bool:
    """Whether config.json is of V3's class, which R1 and Moonlight share."""
    return bool(config["architectures"][0] in _AS_V3)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that llama.cpp does not support; set head_dim to the rotary width, as transformers does."""
    v3 = is_v3(config)
    family = "DeepSeek-V3" if v3 else "DeepSeek-V2"
    prepare_attention(config, family)
    _queries(config)
    if v3:
        prepare_experts(config, family)
    else:
        only(config, "moe_layer_freq", 1, family=family)
        only(config, "scoring_func", "softmax", family=family)
        _expert_sizes(config)
        # transformers ignores norm_topk_prob; DeepSeek's code ignores routed_scaling_factor; llama.cpp applies both
        only(config, "norm_topk_prob", False, family=family)
        _groups_of_v2(config)
    return config


def prepare_attention(config: dict[str, Any], family: str) -> None:
    """Refuse settings outside the mixture that llama.cpp does not support; set head_dim to the rotary width."""
    config["head_dim"] = size(config, "qk_rope_head_dim")
    heads = size(config, "num_attention_heads")
    only(config, "num_key_value_heads", heads, family=family)
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mlp_bias", False, family=family)
    only(config, "rope_interleave", True, family=family)
    _yarn(config)


def prepare_experts(config: dict[str, Any], family: str) -> None:
    """Refuse settings of V3's mixture that llama.cpp does not support; state its scores."""
    only(config, "moe_layer_freq", 1, family=family)
    only(config, "scoring_func", "sigmoid", family=family)
    only(config, "topk_method", "noaux_tc", family=family)
    _expert_sizes(config)
    config["scoring_func"] = "sigmoid"


def _expert_sizes(config: Mapping[str, Any]) -> None:
    for name in ("num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"):
        size(config, name)


def _groups_of_v2(config: dict[str, Any]) -> None:
    """Remove expert groups that the model ignores, because llama.cpp would apply them."""
    method = config.get("topk_method", "greedy")
    only(config, "topk_method", "greedy", "group_limited_greedy", family="DeepSeek-V2")
    if method == "greedy" and (optional_size(config, "n_group") or 1) > 1:
        config["n_group"] = config["topk_group"] = None


def _queries(config: Mapping[str, Any]) -> None:
    layers, vocabulary = size(config, "num_hidden_layers"), size(config, "vocab_size")
    lite = layers in _LITE_LAYERS or (layers, vocabulary) == _LITE_LAYERS_AND_VOCABULARY
    compressed = config.get("q_lora_rank") is not None
    if lite == compressed:
        raise UnsupportedError(
            f"config.json: q_lora_rank is {config.get('q_lora_rank')!r}, but llama.cpp runs a DeepSeek of {layers}"
            f" layers only {'without' if lite else 'with'} compressed queries; a GGUF cannot express this setting"
        )


def _yarn(config: Mapping[str, Any]) -> None:
    """Refuse YaRN settings that llama.cpp does not read; it needs mscale equal to mscale_all_dim."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or (rope.get("rope_type") or rope.get("type")) != "yarn":
        return
    with_yarn = "DeepSeek with YaRN"
    only(rope, "beta_fast", 32, family=with_yarn)
    only(rope, "beta_slow", 1, family=with_yarn)
    only(rope, "truncate", True, family=with_yarn)
    mscale, all_dims = rope.get("mscale"), rope.get("mscale_all_dim")
    if not all_dims or mscale != all_dims or rope.get("attention_factor") is not None:
        raise UnsupportedError(
            f"config.json: rope scaling 'yarn' has mscale {mscale!r}, mscale_all_dim {all_dims!r} and attention_factor"
            f" {rope.get('attention_factor')!r}; llama.cpp runs DeepSeek only with mscale equal to mscale_all_dim and"
            " without attention_factor"
        )
