"""Qwen 1.5, 2 and 2.5: Llama's shape with biases on q, k and v, and rotary halves left as they are.

Shape of the GGUF: llama.cpp's `qwen2` architecture (src/models/qwen2.cpp), which has no window and no other biases.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import BARE_PREFIX
from quantkit.families.base.pooling import as_bare_model, pooling_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS, MLP
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import if_used, slides

_AT, _TO = "model.layers.{layer}", "blk.{layer}"

NORMS = (
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.post_attention_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
)
PROJECTIONS = (
    Rule(f"{_AT}.self_attn.q_proj.weight", f"{_TO}.attn_q.weight", ("q", "hidden")),
    Rule(f"{_AT}.self_attn.k_proj.weight", f"{_TO}.attn_k.weight", ("kv", "hidden")),
    Rule(f"{_AT}.self_attn.v_proj.weight", f"{_TO}.attn_v.weight", ("kv", "hidden")),
    Rule(f"{_AT}.self_attn.o_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
)
BIASES = (
    Rule(f"{_AT}.self_attn.q_proj.bias", f"{_TO}.attn_q.bias", ("q",)),
    Rule(f"{_AT}.self_attn.k_proj.bias", f"{_TO}.attn_k.bias", ("kv",)),
    Rule(f"{_AT}.self_attn.v_proj.bias", f"{_TO}.attn_v.bias", ("kv",)),
)
PLAIN_MLP = tuple(rule for rule in MLP if rule.source.endswith(".weight"))

# llama.cpp does not read a frequency table for these architectures, so a GGUF cannot hold llama3's scaling.
ROPE_KINDS = ("default", "linear", "yarn", "dynamic")

# transformers' Qwen2Config.
DEFAULTS = {
    "qwen2": {
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
}


def no_window(config: Mapping[str, Any], family: str, *, by_layer: bool) -> None:
    """Refuse a sliding window shorter than the context; llama.cpp's Qwen architectures attend to all tokens.

    `by_layer`: `layer_types` lists the layers with a window; else those from `max_window_layers` have one.

    Raises:
        UnsupportedError: a layer has a window shorter than the context.
    """
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    if not config.get("use_sliding_window") or window is None:
        return
    n_layer, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    if by_layer and isinstance(n_layer, int):
        kinds = config.get("layer_types")
        full = "sliding_attention" not in kinds if kinds else isinstance(first, int) and first >= n_layer
        if full:
            return
    if not isinstance(window, int) or not isinstance(context, int) or window < context:
        raise UnsupportedError(
            f"config.json: use_sliding_window is true with a window of {window!r} tokens, but llama.cpp runs {family}"
            " with full attention only; a GGUF cannot express this setting"
        )


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Qwen2")
    no_window(config, "Qwen2", by_layer=True)
    plain_yarn(config, "Qwen2")
    as_bare_model(config)
    return config


def _cautions(sizes: Hyperparameters) -> list[str]:
    """The caution for Qwen2.5-1M: beyond the stated length its attention is chunked. transformers ignores this too."""
    chunks = sizes.config.get("dual_chunk_attention_config")
    length = chunks.get("original_max_position_embeddings") if isinstance(chunks, Mapping) else None
    if chunks is None:
        return []
    return [f"llama.cpp has no dual chunk attention; outputs differ for texts of more than {length or 262144} tokens"]


def window(config: Config, layer: int) -> int | None:
    """The sliding window of a layer: by `layer_types`, else of the layers from `max_window_layers` on."""
    late = layer >= int(given(config, "max_window_layers", default=28))
    return if_used(config, layer) if slides(config, layer, late) else None


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, and the pooling of an embedding model."""
    return [*base_keys(arch, sizes), *pooling_keys(arch, sizes)]


FORWARD = Architecture(attention=Attention(window=window))

FAMILY = Family(
    name="Qwen2",
    models="Qwen1.5, Qwen2, Qwen2.5, QwQ",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    gguf_arch="qwen2",
    rules=NORMS + PROJECTIONS + BIASES + PLAIN_MLP + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    cautions=_cautions,
    rope_kinds=ROPE_KINDS,
    rename=BARE_PREFIX,
    forward={"Qwen2ForCausalLM": FORWARD},
)
