"""Phi 1, 1.5 and 2: one layer norm before attention and feed-forward, which run side by side; biases everywhere.

Shape of the GGUF: llama.cpp's `phi2` architecture (src/models/phi2.cpp).
"""

from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_ROTATED = 0.5
_LINEARS = (
    ("self_attn.q_proj", "attn_q", ("hidden", "hidden")),
    ("self_attn.k_proj", "attn_k", ("kv", "hidden")),
    ("self_attn.v_proj", "attn_v", ("kv", "hidden")),
    ("self_attn.dense", "attn_output", ("hidden", "hidden")),
    ("mlp.fc1", "ffn_up", ("ffn", "hidden")),
    ("mlp.fc2", "ffn_down", ("hidden", "ffn")),
)
_NORMS = ((f"{_AT}.input_layernorm", f"{_TO}.attn_norm"), ("model.final_layernorm", "output_norm"))

RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *(Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", shape) for source, target, shape in _LINEARS),
    *(Rule(f"{_AT}.{source}.bias", f"{_TO}.{target}.bias", shape[:1]) for source, target, shape in _LINEARS),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
    Rule("lm_head.bias", "output.bias", ("vocab",)),
)

# transformers' PhiConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "phi": {
        "hidden_act": "gelu_new",
        "intermediate_size": 8192,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "partial_rotary_factor": _ROTATED,
        "qk_layernorm": False,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def _rotated(config: Config) -> float:
    rope = config.get("rope_parameters") or {}
    return float(given(config, "partial_rotary_factor", default=rope.get("partial_rotary_factor", _ROTATED)))


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/phi.py), with the widths that the checkpoint has."""
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_eps") or 1e-5),
        Key(f"{arch}.rope.dimension_count", "u32", int(_rotated(sizes.config) * sizes.hidden) // sizes.n_head),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *GELU, family="Phi")
    only(config, "qk_layernorm", False, family="Phi")
    only(config, "tie_word_embeddings", False, family="Phi")
    rope = config.get("rope_parameters") or {}
    only({"rope_theta": rope.get("rope_theta", config.get("rope_theta"))}, "rope_theta", 10000.0, family="Phi")
    return config


FORWARD = Architecture(
    norm=LAYER_NORM,
    feed_norm=None,
    parallel=True,
    attention=Attention(out="dense", rotary=lambda config: int(head_dim(config) * _rotated(config))),
    feed=FeedForward(gate=None, up="fc1", down="fc2", default_activation="gelu_new"),
    last_norm="final_layernorm",
)

FAMILY = Family(
    name="Phi",
    models="Phi 1, 1.5, 2",
    architectures=("PhiForCausalLM",),
    gguf_arch="phi2",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(layer_norm=True, parallel=True, attention_first=True, scaled_query=True),
)
