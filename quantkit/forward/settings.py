"""What config.json says of a layer, in each architecture's own keys: windows, scales, rope, which layers have experts.

What it leaves out is what transformers' config classes take.
"""

import math
from collections.abc import Callable

from quantkit.forward.description import Config, FeedForward, Form, Norm, given

PerLayerConfig = Callable[[Config, int], Config]


def number_of(key: str, default: float = 1.0) -> Callable[[Config], float]:
    return lambda config: float(given(config, key, default=default))


def size_of(*keys: str) -> Callable[[Config], int]:
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


def latent_scale(config: Config, _layer: int) -> float:
    """Long contexts by YaRN sharpen the softmax too, which cos and sin do not show where both mscales are equal."""
    scale = float(config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, over_all = float(rope.get("factor") or 1.0), float(rope.get("mscale_all_dim") or 0.0)
    return float(scale * (0.1 * over_all * math.log(factor) + 1.0) ** 2 if factor > 1 else scale)


def query_scale(config: Config, _layer: int) -> float:
    return math.pow(given(config, "query_pre_attn_scalar", default=256), -0.5)


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


def dense_after(config: Config, layer: int) -> bool:
    return layer >= int(given(config, "first_k_dense_replace", default=0))


LAYER_NORM = Norm("layer")
HEAD_NORMS = ("q_norm", "k_norm")
EXPERT = FeedForward(at="mlp.experts.{}.", inner=size_of("moe_intermediate_size"))
FUSED_EXPERTS = FeedForward(
    at="mlp.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias"), inner=size_of("moe_intermediate_size")
)
