"""Jais 2: Llama's graph with layer norms, biases, and a feed-forward of two matrices with the square of ReLU between.

Shape of the GGUF: llama.cpp's `jais2` architecture (src/models/jais2.cpp).
"""

from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.qwen2 import BIASES, PROJECTIONS
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.settings import LAYER_NORM

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_NORMS = (
    (f"{_AT}.input_layernorm", f"{_TO}.attn_norm"),
    (f"{_AT}.post_attention_layernorm", f"{_TO}.ffn_norm"),
    ("model.norm", "output_norm"),
)

RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *PROJECTIONS,
    *BIASES,
    Rule(f"{_AT}.self_attn.o_proj.bias", f"{_TO}.attn_output.bias", ("hidden",)),
    Rule(f"{_AT}.mlp.up_proj.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.mlp.up_proj.bias", f"{_TO}.ffn_up.bias", ("ffn",)),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule(f"{_AT}.mlp.down_proj.bias", f"{_TO}.ffn_down.bias", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)

# transformers' Jais2Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "jais2": {
        "attention_bias": True,
        "head_dim": None,
        "hidden_act": "relu2",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "mlp_bias": True,
        "num_key_value_heads": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", "relu2", family="Jais 2")
    only(config, "attention_bias", True, family="Jais 2")
    only(config, "mlp_bias", True, family="Jais 2")
    plain_yarn(config, "Jais 2")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [*base_keys(arch, sizes), Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim)]


FORWARD = Architecture(norm=LAYER_NORM, feed=FeedForward(gate=None))

FAMILY = Family(
    name="Jais 2",
    models="Jais 2 8B/70B",
    architectures=("Jais2ForCausalLM",),
    gguf_arch="jais2",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default", "linear", "yarn", "dynamic"),
    forward=FORWARD,
    traits=Traits(layer_norm=True),
)
