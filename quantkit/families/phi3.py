"""Phi-3, Phi-3.5 and Phi-4: q, k and v in one matrix, gate and up in another; two tables of rotary factors (LongRoPE).

Shape of the GGUF: llama.cpp's `phi3` architecture (src/models/phi3.cpp), which keeps both matrices fused. It takes the
short table up to the original training context and the long one for longer contexts.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Computed, Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import SILU, only, window_ignored
from quantkit.families.llama import ENDS
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import every_layer

_AT, _TO = "model.layers.{layer}", "blk.{layer}"

RULES = (
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.self_attn.qkv_proj.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_AT}.self_attn.o_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
    Rule(f"{_AT}.post_attention_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.mlp.gate_up_proj.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden")),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    *ENDS,
)

# transformers' Phi3Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "phi3": {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
}


def _rotated(sizes: Hyperparameters) -> int:
    """Rotated values per head, rounded like llama.cpp's converter."""
    return int(sizes.rope.get("partial_rotary_factor", 1.0) * sizes.hidden) // sizes.n_head


def _is_long(sizes: Hyperparameters) -> bool:
    return bool(sizes.rope["rope_type"] != "default")


def _original(sizes: Hyperparameters) -> int:
    return size(sizes.rope, "original_max_position_embeddings")


def attention_factor(sizes: Hyperparameters) -> float:
    """LongRoPE's factor of queries and keys: sqrt(1 + ln(stretch) / ln(original context)); 1 without a stretch.

    llama.cpp's converter (conversion/phi.py) and transformers' `_compute_longrope_parameters`.
    """
    original = _original(sizes)
    if original < 2:
        raise CheckpointError(f"config.json: original_max_position_embeddings is {original}; it must be at least 2")
    stretch = size(sizes.config, "max_position_embeddings") / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def table(name: str) -> Callable[[Hyperparameters], NDArray[np.float32] | None]:
    """The divisors of the rotary frequencies, float32 (rotated values / 2,); None without LongRoPE."""

    def values(sizes: Hyperparameters) -> NDArray[np.float32] | None:
        if not _is_long(sizes):
            return None
        factors, half = sizes.rope.get(name), _rotated(sizes) // 2
        numeric = isinstance(factors, list) and all(type(factor) in (int, float) for factor in factors)
        if not numeric or not isinstance(factors, list) or len(factors) != half:
            raise CheckpointError(f"config.json: rope_scaling's {name} must be a list of {half} numbers")
        return np.array(factors, dtype=np.float32)

    return values


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/phi.py); a window of 0 is its mark of Phi-4."""
    config, long = sizes.config, _is_long(sizes)
    return [
        Key(f"{arch}.context_length", "u32", size(config, "max_position_embeddings")),
        Key(f"{arch}.rope.scaling.original_context_length", "u32", _original(sizes)),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps or 1e-5),
        Key(f"{arch}.rope.dimension_count", "u32", _rotated(sizes)),
        Key(f"{arch}.rope.freq_base", "f32", sizes.rope.get("rope_theta", 10000.0)),
        Key(f"{arch}.attention.sliding_window", "u32", optional_size(config, "sliding_window") or 0),
        *([Key(f"{arch}.rope.scaling.attn_factor", "f32", attention_factor(sizes), first=True)] if long else []),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Phi-3")
    only(config, "head_dim", size(config, "hidden_size") // size(config, "num_attention_heads"), family="Phi-3")
    rope = config.get("rope_scaling")
    # first releases name it "su" or "yarn"; transformers reads both as longrope
    if isinstance(rope, dict) and rope.get("type") in ("su", "yarn"):
        config["rope_scaling"] = {**rope, "type": "longrope"}
    return config


FORWARD = Architecture(
    attention=Attention(fused="qkv_proj", window=every_layer), feed=FeedForward(fused="gate_up_proj")
)

FAMILY = Family(
    name="Phi-3",
    models="Phi-3, Phi-3.5, Phi-4, Phi-4-mini, Phi-4-reasoning-vision (text only)",
    architectures=("Phi3ForCausalLM", "Phi4ForCausalLMV"),
    gguf_arch="phi3",
    rules=RULES,
    keys=keys,
    computed=(
        Computed("rope_factors_long.weight", table("long_factor")),
        Computed("rope_factors_short.weight", table("short_factor")),
    ),
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=lambda sizes: {
        "gate_up": 2 * sizes.ffn,
        "qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim,
    },
    rope_kinds=("default", "longrope"),
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    cautions=window_ignored,
    forward=FORWARD,
)
