"""What of DeepSeek-V2 and V3 llama.cpp's `deepseek2` has built in one way only (src/models/deepseek2.cpp)."""

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.refusals import SILU, only

# llama.cpp asks for no compressed queries where it knows a Lite model by these (deepseek2.cpp, is_lite).
_LITE_LAYERS = (26, 27)
_LITE_LAYERS_AND_VOCABULARY = (48, 128256)


def is_v3(config: Mapping[str, Any]) -> bool:
    """Whether config.json is of V3's class, which R1 and Moonlight share."""
    return bool(config["architectures"][0] == "DeepseekV3ForCausalLM")


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph has built in otherwise; the rotary width is the class's head_dim."""
    v3 = is_v3(config)
    family = "DeepSeek-V3" if v3 else "DeepSeek-V2"
    config["head_dim"] = size(config, "qk_rope_head_dim")
    heads = size(config, "num_attention_heads")
    only(config, "num_key_value_heads", heads, family=family)
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mlp_bias", False, family=family)
    only(config, "moe_layer_freq", 1, family=family)
    only(config, "rope_interleave", True, family=family)
    only(config, "scoring_func", "sigmoid" if v3 else "softmax", family=family)
    size(config, "num_experts_per_tok")
    if v3:
        config["scoring_func"] = "sigmoid"
        only(config, "topk_method", "noaux_tc", family=family)
    else:
        # transformers' own class leaves it undone, DeepSeek's leaves routed_scaling_factor undone, llama.cpp does both
        only(config, "norm_topk_prob", False, family=family)
        _groups_of_v2(config)
    _queries(config)
    _yarn(config)
    return config


def _groups_of_v2(config: dict[str, Any]) -> None:
    """Groups that the model does not look at must not be in the GGUF, where llama.cpp would."""
    method = config.get("topk_method", "greedy")
    only(config, "topk_method", "greedy", "group_limited_greedy", family="DeepSeek-V2")
    if method == "greedy" and (optional_size(config, "n_group") or 1) > 1:
        config["n_group"] = config["topk_group"] = None


def cautions(sizes: Hyperparameters) -> Iterator[str]:
    groups = optional_size(sizes.config, "n_group") or 1
    if sizes.config.get("topk_method") == "group_limited_greedy" and groups > 1:
        yield (
            f"of {groups} groups of experts the model chooses those with the best single expert, llama.cpp with the"
            " best two: now and then a token will go to other experts than in the checkpoint"
        )


def _queries(config: Mapping[str, Any]) -> None:
    layers, vocabulary = size(config, "num_hidden_layers"), size(config, "vocab_size")
    lite = layers in _LITE_LAYERS or (layers, vocabulary) == _LITE_LAYERS_AND_VOCABULARY
    compressed = config.get("q_lora_rank") is not None
    if lite == compressed:
        raise UnsupportedError(
            f"config.json: q_lora_rank is {config.get('q_lora_rank')!r}, but llama.cpp takes a model of {layers} layers"
            f" for one {'without' if lite else 'with'} compressed queries; no GGUF can express it"
        )


def _yarn(config: Mapping[str, Any]) -> None:
    """llama.cpp scales attention by mscale_all_dim and takes mscale for the same; the rest of YaRN is built in."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or (rope.get("rope_type") or rope.get("type")) != "yarn":
        return
    named = "DeepSeek with YaRN"
    only(rope, "beta_fast", 32, family=named)
    only(rope, "beta_slow", 1, family=named)
    only(rope, "truncate", True, family=named)
    each, whole = rope.get("mscale"), rope.get("mscale_all_dim")
    if not whole or each != whole or rope.get("attention_factor") is not None:
        raise UnsupportedError(
            f"config.json: rope scaling 'yarn' has mscale {each!r}, mscale_all_dim {whole!r} and attention_factor"
            f" {rope.get('attention_factor')!r}; llama.cpp runs DeepSeek only with the first two equal and no third"
        )
