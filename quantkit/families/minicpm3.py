"""MiniCPM3: DeepSeek-V2's latent attention with half-split rotary pairs, and MiniCPM's factors.

Shape of the GGUF: llama.cpp's `minicpm3` architecture (src/models/minicpm3.cpp). It keeps kv_b_proj whole, and has the
factors of the published model in its code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Computed, Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import ATTENTION, dimensions, matrix
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import number_of

_SCALE_EMB, _SCALE_DEPTH, _MODEL_BASE = 12, 1.4, 256
_KV = "model.layers.{layer}.self_attn.kv_b_proj"

# transformers' MiniCPM3Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "minicpm3": {
        "dim_model_base": _MODEL_BASE,
        "kv_lora_rank": 256,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 40,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "scale_depth": _SCALE_DEPTH,
        "scale_emb": _SCALE_EMB,
        "tie_word_embeddings": True,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's code has with one value; set head_dim to the rotary width."""
    family = "MiniCPM3"
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mlp_bias", False, family=family)
    only(config, "num_key_value_heads", heads, family=family)
    only(config, "scale_emb", _SCALE_EMB, family=family)
    only(config, "scale_depth", _SCALE_DEPTH, family=family)
    only(config, "dim_model_base", _MODEL_BASE, family=family)
    only(config, "v_head_dim", hidden // heads, family=family)
    size(config, "q_lora_rank")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    only({"rope_theta": rope.get("rope_theta", config.get("rope_theta"))}, "rope_theta", 10000.0, family=family)
    return {**config, "head_dim": size(config, "qk_rope_head_dim"), "v_head_dim": hidden // heads}


def _table(name: str) -> Callable[[Hyperparameters], NDArray[np.float32] | None]:
    """The divisors of the rotary frequencies, float32 (rotated values / 2,); None without LongRoPE.

    llama.cpp compares a context with the trained one and has no factor on queries and keys.
    """

    def values(sizes: Hyperparameters) -> NDArray[np.float32] | None:
        if sizes.rope["rope_type"] == "default":
            return None
        original = sizes.rope.get("original_max_position_embeddings") or sizes.context
        if original != sizes.context:
            raise UnsupportedError(
                f"config.json: original_max_position_embeddings is {original}, but llama.cpp runs MiniCPM3 only with"
                f" max_position_embeddings, which is {sizes.context}; a GGUF cannot express this setting"
            )
        factors, half = sizes.rope.get(name), sizes.head_dim // 2
        numeric = isinstance(factors, list) and all(type(factor) in (int, float) for factor in factors)
        if not numeric or not isinstance(factors, list) or len(factors) != half:
            raise CheckpointError(f"config.json: rope_scaling's {name} must be a list of {half} numbers")
        return np.array(factors, dtype=np.float32)

    return values


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/minicpm.py)."""
    config = sizes.config
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", number(config, "rms_norm_eps")),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.attention.q_lora_rank", "u32", size(config, "q_lora_rank")),
        Key(f"{arch}.attention.kv_lora_rank", "u32", size(config, "kv_lora_rank")),
        Key(f"{arch}.attention.key_length", "u32", size(config, "qk_nope_head_dim") + sizes.head_dim),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
    ]


def _scale(config: Config, _layer: int) -> float:
    scale: float = float(config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    return scale


def _model_scale(config: Config) -> float:
    scale: float = number_of("dim_model_base", _MODEL_BASE)(config) / float(config["hidden_size"])
    return scale


def _with_value_width(config: Config, _layer: int) -> Config:
    """The config with the width of a head's values, which the class derives."""
    return {"v_head_dim": config["hidden_size"] // config["num_attention_heads"], **config}


FORWARD = Architecture(
    per_layer=_with_value_width,
    embedding_scale=number_of("scale_emb", _SCALE_EMB),
    residual_scale=lambda config: float(
        number_of("scale_depth", _SCALE_DEPTH)(config) / config["num_hidden_layers"] ** 0.5
    ),
    attention=Attention(latent=True, scale=_scale),
    logit_scale=_model_scale,
    tied=True,
)

FAMILY = Family(
    name="MiniCPM3",
    models="MiniCPM3 4B",
    architectures=("MiniCPM3ForCausalLM",),
    gguf_arch="minicpm3",
    rules=(
        *(rule for rule in ATTENTION if rule.source != f"{_KV}.weight"),
        matrix(_KV, "attn_kv_b", "keys_and_values", "latent"),
        *PLAIN_MLP,
        *ENDS,
    ),
    keys=_keys,
    computed=(
        Computed("rope_factors_long.weight", _table("long_factor")),
        Computed("rope_factors_short.weight", _table("short_factor")),
    ),
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=dimensions,
    rope_kinds=("default", "longrope"),
    no_effect=("head_dim", "qk_head_dim"),
    forward=FORWARD,
    traits=Traits(scaled_embedding=True, scaled_parts=True),
)
