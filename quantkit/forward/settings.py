"""What config.json says of a layer, in each architecture's own keys: windows, scales, rope, which layers have experts.

What it leaves out is what transformers' config classes take.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from quantkit.forward.description import Config, given, head_dim

PerLayerConfig = Callable[[Config, int], Config]


def number(key: str, default: float = 1.0) -> Callable[[Config], float]:
    return lambda config: float(given(config, key, default=default))


def size(*keys: str) -> Callable[[Config], int]:
    return lambda config: int(given(config, *keys, default=0))


def flag(key: str, default: bool = False) -> Callable[[Config], bool]:
    return lambda config: bool(given(config, key, default=default))


def slides(config: Config, layer: int, otherwise: bool) -> bool:
    """What config.json says of a layer, else what the config class takes instead."""
    kinds = config.get("layer_types")
    return bool(kinds[layer] == "sliding_attention") if kinds else otherwise


def window(otherwise: Callable[[Config, int], bool]) -> Callable[[Config, int], int | None]:
    return lambda config, layer: (
        config.get("sliding_window") if slides(config, layer, otherwise(config, layer)) else None
    )


def every_layer(config: Config, _layer: int) -> int | None:
    return config.get("sliding_window")


def if_used(config: Config, _layer: int) -> int | None:
    return config.get("sliding_window") if config.get("use_sliding_window") else None


def qwen_window(config: Config, layer: int) -> int | None:
    late = layer >= int(given(config, "max_window_layers", default=28))
    return if_used(config, layer) if slides(config, layer, late) else None


def gpt2_scale(config: Config, layer: int) -> float:
    scale = head_dim(config) ** -0.5 if given(config, "scale_attn_weights", default=True) else 1.0
    return float(scale / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx") else scale)


def latent_scale(config: Config, _layer: int) -> float:
    """Long contexts by YaRN sharpen the softmax too, which cos and sin do not show where both mscales are equal."""
    scale = float(config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, over_all = float(rope.get("factor") or 1.0), float(rope.get("mscale_all_dim") or 0.0)
    return float(scale * (0.1 * over_all * math.log(factor) + 1.0) ** 2 if factor > 1 else scale)


def query_scale(config: Config, _layer: int) -> float:
    return math.pow(given(config, "query_pre_attn_scalar", default=256), -0.5)


def gemma3_slides(config: Config, layer: int) -> bool:
    pattern = int(given(config, "sliding_window_pattern", "_sliding_window_pattern", default=6))
    return slides(config, layer, (layer + 1) % pattern != 0)


def local_rope(slides: Callable[[Config, int], bool], theta: str = "rope_theta") -> PerLayerConfig:
    """Layers with a window have a rope without scaling, its base under the key `theta`."""

    def rope(config: Config, layer: int) -> Config:
        local = slides(config, layer)
        nested = (config.get("rope_parameters") or {}).get("sliding_attention" if local else "full_attention")
        if nested is not None:
            return {**config, "rope_scaling": None, "rope_parameters": nested}
        if not local:
            return config
        base = given(config, theta, default=10000.0)
        return {**config, "rope_scaling": None, "rope_parameters": None, "rope_theta": base}

    return rope


def olmo3_slides(config: Config, layer: int) -> bool:
    return slides(config, layer, (layer + 1) % 4 != 0)


def smollm3_rope(config: Config, layer: int) -> Config | None:
    interval = int(given(config, "no_rope_layer_interval", default=4))
    turning = config["no_rope_layers"][layer] if config.get("no_rope_layers") else (layer + 1) % interval
    return config if turning else None


def falcon_heads(config: Config) -> int:
    if config.get("new_decoder_architecture"):
        return int(given(config, "num_kv_heads", "num_attention_heads"))
    return 1 if given(config, "multi_query", default=True) else int(given(config, "num_attention_heads", "n_head"))


def falcon_variant(config: Config) -> Mapping[str, Any]:
    if config.get("new_decoder_architecture") and given(config, "num_ln_in_parallel_attn", default=2) == 2:
        return {"attention_norm": "ln_attn", "feed_norm": "ln_mlp"}
    return {}


def dense_after(config: Config, layer: int) -> bool:
    return layer >= int(given(config, "first_k_dense_replace", default=0))


def qwen_has_experts(config: Config, layer: int) -> bool:
    step = int(given(config, "decoder_sparse_step", default=1))
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def deepseek_groups(config: Config) -> tuple[int, int]:
    if config.get("topk_method") == "greedy":
        return 1, 1
    return int(given(config, "n_group", default=1)), int(given(config, "topk_group", default=1))
