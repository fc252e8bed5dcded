"""DeepSeek-V4's config.json, as DeepSeek or as transformers writes it; what llama.cpp does not have is refused."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.hyperparameters import number, optional_size, size
from quantkit.families.base.refusals import SILU, only

NAME = "DeepSeek-V4"
# constants of llama.cpp's graph
STREAMS = 4
SPARSE, HEAVY = 4, 128
# transformers' defaults: the share of a head that rotates, and the layers that choose experts by token
_ROTARY, _HASHED = 64 / 512, 3
_KINDS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": SPARSE,
    "heavily_compressed_attention": HEAVY,
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state the settings by DeepSeek's own names."""
    only(config, "hidden_act", *SILU, family=NAME)
    only(config, "attention_bias", False, family=NAME)
    only(config, "mlp_bias", False, family=NAME)
    only(config, "tie_word_embeddings", False, family=NAME)
    only(config, "num_key_value_heads", 1, family=NAME)
    only(config, "hc_mult", STREAMS, family=NAME)
    only(config, "scoring_func", "sqrtsoftplus", family=NAME)
    only(config, "topk_method", "noaux_tc", family=NAME)
    # the model's code always normalises the weights of its experts
    only(config, "norm_topk_prob", True, family=NAME)
    config["qk_rope_head_dim"] = _rotary(config)
    config["compress_ratios"] = _ratios(config)
    config["num_hash_layers"] = _hash_layers(config)
    config = _rope(config)
    heads, groups = size(config, "num_attention_heads"), size(config, "o_groups")
    if heads % groups:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} does not divide by o_groups {groups}; correct one of them"
        )
    # a power of two, for the Hadamard rotation of index queries and keys, and no narrower than what rotates
    widths = (1 << n for n in range(6, 12) if 1 << n >= config["qk_rope_head_dim"])
    only(config, "index_head_dim", *widths, family=NAME)
    return config


def _rotary(config: Mapping[str, Any]) -> int:
    """Rotated values of a head: `qk_rope_head_dim`, or a share as transformers saves it. They are its last ones."""
    width, stated = size(config, "head_dim"), optional_size(config, "qk_rope_head_dim")
    share = number(config, "partial_rotary_factor")
    if stated is None or share is not None:
        rotary = int(width * (_ROTARY if share is None else share))
        if stated not in (None, rotary):
            raise CheckpointError(
                f"config.json: qk_rope_head_dim is {stated}, but partial_rotary_factor {share} makes it {rotary};"
                " remove one of them"
            )
        stated = rotary
    if not 0 < stated <= width or stated % 2:
        raise CheckpointError(
            f"config.json: {stated} values of a head rotate (qk_rope_head_dim or partial_rotary_factor); the number"
            f" must be even, and from 2 to head_dim, which is {width}"
        )
    return stated


def _ratios(config: Mapping[str, Any]) -> list[int]:
    """How many tokens each layer compresses into one: `compress_ratios`, or `layer_types` as transformers saves them.

    The list may go on for the layers that predict a later token.
    """
    layers, kinds, ratios = size(config, "num_hidden_layers"), config.get("layer_types"), config.get("compress_ratios")
    if kinds is None and ratios is None:
        sparse = "compressed_sparse_attention"
        kinds = [sparse if layer > 1 and layer % 2 else "heavily_compressed_attention" for layer in range(layers)]
    if kinds is not None:
        rates = config.get("compress_rates")
        for name, ratio in _KINDS.items():
            if ratio and isinstance(rates, Mapping):
                only(rates, name, ratio, family=NAME)
        of_kinds = [_KINDS.get(str(kind), -1) for kind in kinds] if isinstance(kinds, list) else []
        if isinstance(ratios, list) and ratios[:layers] != of_kinds[:layers]:
            raise CheckpointError("config.json: layer_types and compress_ratios contradict each other; remove one")
        ratios = of_kinds if ratios is None else ratios
    known = _KINDS.values()
    if not isinstance(ratios, list) or len(ratios) < layers or any(ratio not in known for ratio in ratios):
        raise UnsupportedError(
            f"config.json: compress_ratios (or layer_types) must have one entry for each of {layers} layers, and"
            f" llama.cpp runs {NAME} only with ratios of {', '.join(map(str, known))}"
        )
    return [int(ratio) for ratio in ratios]


def _hash_layers(config: Mapping[str, Any]) -> int:
    """How many layers, the first ones, choose experts by token: stated, or by the `mlp_layer_types`."""
    layers, kinds = size(config, "num_hidden_layers"), config.get("mlp_layer_types")
    if kinds is None:
        stated = number(config, "num_hash_layers")
        count = _HASHED if stated is None else int(stated)
        if count < 0:
            raise CheckpointError(f"config.json: num_hash_layers is {count}; it must be 0 or more")
        return min(count, layers)
    count = kinds.count("hash_moe") if isinstance(kinds, list) else 0
    if kinds != ["hash_moe"] * count + ["moe"] * (layers - count):
        raise UnsupportedError(
            f"config.json: mlp_layer_types is not hash_moe in the first and moe in all others of {layers} layers, and"
            f" llama.cpp runs {NAME} only so; a GGUF cannot express this setting"
        )
    return count


def positive(config: Mapping[str, Any], name: str) -> float:
    value = number(config, name)
    if value is None or value <= 0:
        raise CheckpointError(f"config.json: {name} must be a positive number, not {value}; correct it")
    return value


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The scaling of layers that compress as the model's; transformers saves both under names of their own."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (
        isinstance(rope, Mapping)
        and isinstance(rope.get("main"), Mapping)
        and isinstance(rope.get("compress"), Mapping)
    ):
        main, rope = rope["main"], dict(rope["compress"])
        only(main, "rope_type", "default", family=NAME)
        compress_theta = rope.pop("rope_theta", None) or config.get("compress_rope_theta")
        rope.pop("partial_rotary_factor", None)
        config = {**config, "compress_rope_theta": compress_theta, "rope_parameters": rope}
        config["rope_theta"] = main.get("rope_theta") or config.get("rope_theta")
    if isinstance(rope, Mapping) and (rope.get("rope_type") or rope.get("type")) == "yarn":
        with_yarn = f"{NAME} with YaRN"
        only(rope, "truncate", True, family=with_yarn)
        only(rope, "attention_factor", 1.0, family=with_yarn)
    return config
