"""OLMo 2 and 3: norms after attention and MLP, and over all queries and all keys together.

Shape of the GGUF: llama.cpp's `olmo2` architecture (src/models/olmo2.cpp). OLMo 3 adds a window to some
layers. YaRN stretches the rotation of the other layers only.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS, local_rope, slides, window

_AT, _TO = "model.layers.{layer}", "blk.{layer}"

QK_NORMS = (
    Rule(f"{_AT}.self_attn.q_norm.weight", f"{_TO}.attn_q_norm.weight", ("q",)),
    Rule(f"{_AT}.self_attn.k_norm.weight", f"{_TO}.attn_k_norm.weight", ("kv",)),
)
_NORMS = (
    Rule(f"{_AT}.post_attention_layernorm.weight", f"{_TO}.post_attention_norm.weight", ("hidden",)),
    Rule(f"{_AT}.post_feedforward_layernorm.weight", f"{_TO}.post_ffw_norm.weight", ("hidden",)),
)

# transformers' Olmo2Config and Olmo3Config.
_OLMO2 = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
DEFAULTS: dict[str, dict[str, Any]] = {"olmo2": _OLMO2, "olmo3": {**_OLMO2, "sliding_window": 4096}}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that llama.cpp's graph does not have."""
    for name, allowed in (("hidden_act", SILU), ("attention_bias", (False,)), ("tie_word_embeddings", (False,))):
        only(config, name, *allowed, family="OLMo 2")
    only(config, "head_dim", size(config, "hidden_size") // size(config, "num_attention_heads"), family="OLMo 2")
    plain_yarn(config, "OLMo 2")
    return config


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """What every architecture has; for OLMo 3 the window, and which layers have it (three of four unless stated)."""
    result = base_keys(arch, sizes)
    if sizes.config.get("sliding_window") is None:
        return result
    kinds = sizes.config.get("layer_types")
    windowed = (
        [kind == "sliding_attention" for kind in kinds]
        if kinds is not None
        else [(layer + 1) % 4 != 0 for layer in range(sizes.n_layer)]
    )
    return [
        *result,
        Key(f"{arch}.attention.sliding_window", "u32", size(sizes.config, "sliding_window")),
        Key(f"{arch}.attention.sliding_window_pattern", "bools", windowed),
    ]


def _slides(config: Config, layer: int) -> bool:
    return slides(config, layer, (layer + 1) % 4 != 0)


_FORWARD = Architecture(
    attention_norm=None,
    after_attention="post_attention_layernorm",
    feed_norm=None,
    after_feed="post_feedforward_layernorm",
    attention=Attention(norms=HEAD_NORMS, normed="all"),
)
_FORWARD_3 = replace(_FORWARD, attention=replace(_FORWARD.attention, rope=local_rope(_slides), window=window(_slides)))

FAMILY = Family(
    name="OLMo 2",
    models="OLMo 2, OLMo 3",
    architectures=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    gguf_arch="olmo2",
    rules=PROJECTIONS + QK_NORMS + _NORMS + PLAIN_MLP + ENDS,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rope_kinds=ROPE_KINDS,
    forward={"Olmo2ForCausalLM": _FORWARD, "Olmo3ForCausalLM": _FORWARD_3},
    traits=Traits(sliding_every=4),
)
