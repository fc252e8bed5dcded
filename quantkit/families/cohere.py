"""Command R, Aya 23: one layer norm without biases before attention and feed-forward, which run side by side.

Shape of the GGUF: llama.cpp's `command-r` architecture (src/models/command-r.cpp). It rotates neighbouring values.
A model of 64 layers or more (Command R+) has norms of queries and keys. The embedding is the head.
"""

from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS, LAYER_NORM, flag, number_of

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_LAYERS_WITH_NORMS = 64


def _has_norms(sizes: Hyperparameters) -> bool:
    return bool(sizes.config.get("use_qk_norm"))


ENDS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
)
LAYER = (Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)), *PROJECTIONS, *PLAIN_MLP)
NORMS = (
    Rule(f"{_AT}.self_attn.q_norm.weight", f"{_TO}.attn_q_norm.weight", ("n_head", "head_dim"), when=_has_norms),
    Rule(f"{_AT}.self_attn.k_norm.weight", f"{_TO}.attn_k_norm.weight", ("n_head_kv", "head_dim"), when=_has_norms),
)

# transformers' CohereConfig.
CONFIG: dict[str, Any] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "num_key_value_heads": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def prepare(config: dict[str, Any], family: str) -> dict[str, Any]:
    """Refuse settings that llama.cpp does not support for Cohere's models.

    Raises:
        UnsupportedError: another activation, biases, or an output that is not the embedding.
    """
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "tie_word_embeddings", True, family=family)
    return config


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    prepare(config, "Cohere")
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and (layers >= _LAYERS_WITH_NORMS) != bool(config.get("use_qk_norm")):
        raise UnsupportedError(
            f"config.json: use_qk_norm is {str(bool(config.get('use_qk_norm'))).lower()} with {layers} layers;"
            f" llama.cpp expects norms of queries and keys from {_LAYERS_WITH_NORMS} layers on and only there"
        )
    # the model was trained for this length; max_position_embeddings is shorter
    longest = config.get("model_max_length")
    return {**config, "max_position_embeddings": longest} if longest is not None else config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.logit_scale", "f32", number(sizes.config, "logit_scale")),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
    ]


FORWARD = Architecture(
    norm=LAYER_NORM,
    feed_norm=None,
    parallel=True,
    attention=Attention(
        pairs="neighbours", norms=HEAD_NORMS, has_norms=flag("use_qk_norm"), normed="by_head", norm=LAYER_NORM
    ),
    tied=True,
    logit_scale=number_of("logit_scale", 0.0625),
)

FAMILY = Family(
    name="Cohere",
    models="Command R, Command R+, Aya 23",
    architectures=("CohereForCausalLM",),
    gguf_arch="command-r",
    rules=(*ENDS, *LAYER, *NORMS),
    keys=_keys,
    defaults={"cohere": CONFIG},
    prepare=_prepare,
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(layer_norm=True, parallel=True),
)
