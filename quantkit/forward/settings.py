"""Functions and parts that family files share: a layer's window, scale and rope from config.json, usual names.

Defaults are those of transformers' config classes.
"""

import math
from collections.abc import Callable

from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import FeedForward
from quantkit.forward.parts import Form, Norm

PerLayerConfig = Callable[[Config, int], Config]


def number_of(key: str, default: float = 1.0) -> Callable[[Config], float]:
    """The number under `key`."""
    return lambda config: float(given(config, key, default=default))


def size_of(*keys: str) -> Callable[[Config], int]:
    """The size under the first of `keys` that config.json has, else 0."""
    return lambda config: int(given(config, *keys, default=0))


def flag(key: str, default: bool = False) -> Callable[[Config], bool]:
    """Whether `key` is true."""
    return lambda config: bool(given(config, key, default=default))


def slides(config: Config, layer: int, otherwise: bool) -> bool:
    """Whether a layer has the sliding window: by `layer_types`, else `otherwise`."""
    kinds = config.get("layer_types")
    return bool(kinds[layer] == "sliding_attention") if kinds else otherwise


def window(otherwise: Callable[[Config, int], bool]) -> Callable[[Config, int], int | None]:
    """The window of a layer: by `layer_types`, else of the layers for which `otherwise` holds."""
    return lambda config, layer: (
        config.get("sliding_window") if slides(config, layer, otherwise(config, layer)) else None
    )


def every_layer(config: Config, _layer: int) -> int | None:
    """The window, in every layer."""
    return config.get("sliding_window")


def if_used(config: Config, _layer: int) -> int | None:
    """The window, in every layer, if `use_sliding_window` is true."""
    return config.get("sliding_window") if config.get("use_sliding_window") else None


def latent_scale(config: Config, _layer: int) -> float:
    """The scale of latent attention; YaRN multiplies it if both mscales are equal, because cos and sin then lack it."""
    scale = float(config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, over_all = float(rope.get("factor") or 1.0), float(rope.get("mscale_all_dim") or 0.0)
    return float(scale * (0.1 * over_all * math.log(factor) + 1.0) ** 2 if factor > 1 else scale)


def query_scale(config: Config, _layer: int) -> float:
    """1 / sqrt(query_pre_attn_scalar)."""
    return math.pow(given(config, "query_pre_attn_scalar", default=256), -0.5)


def local_rope(slides: Callable[[Config, int], bool], theta: str = "rope_theta") -> PerLayerConfig:
    """Rope of a layer: layers with a window have no scaling, and their base is under the key `theta`."""

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
    """Whether a layer comes after the first `first_k_dense_replace` ones, which have no experts."""
    return layer >= int(given(config, "first_k_dense_replace", default=0))


LAYER_NORM = Norm("layer")
HEAD_NORMS = ("q_norm", "k_norm")
EXPERT = FeedForward(at="mlp.experts.{}.", inner=size_of("moe_intermediate_size"))
FUSED_EXPERTS = FeedForward(
    at="mlp.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias"), inner=size_of("moe_intermediate_size")
)
