"""StarCoder2: LayerNorms and biases everywhere, rotary positions, a feed-forward without a gate.

Shape of the GGUF: llama.cpp's `starcoder2` architecture (src/models/starcoder2.cpp), which has no sliding window.
"""

from typing import Any

from quantkit.families.base.family import Family, Rule
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import GELU, only, plain_yarn, window_ignored
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PROJECTIONS, ROPE_KINDS
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM, every_layer

_LAYER, _TO = "model.layers.{layer}", "blk.{layer}"

RULES = (
    *NORMS,
    *(
        Rule(rule.source.replace(".weight", ".bias"), rule.target.replace(".weight", ".bias"), rule.shape)
        for rule in NORMS
    ),
    *PROJECTIONS,
    *BIASES,
    Rule(f"{_LAYER}.self_attn.o_proj.bias", f"{_TO}.attn_output.bias", ("hidden",)),
    Rule(f"{_LAYER}.mlp.c_fc.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_LAYER}.mlp.c_fc.bias", f"{_TO}.ffn_up.bias", ("ffn",)),
    Rule(f"{_LAYER}.mlp.c_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule(f"{_LAYER}.mlp.c_proj.bias", f"{_TO}.ffn_down.bias", ("hidden",)),
    *ENDS,
    Rule("model.norm.bias", "output_norm.bias", ("hidden",)),
)

# transformers' Starcoder2Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "starcoder2": {
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_bias": True,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *GELU, family="StarCoder2")
    only(config, "use_bias", True, family="StarCoder2")
    plain_yarn(config, "StarCoder2")
    return config


FAMILY = Family(
    name="StarCoder2",
    models="StarCoder2 3B/7B/15B",
    architectures=("Starcoder2ForCausalLM",),
    gguf_arch="starcoder2",
    rules=RULES,
    keys=base_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    cautions=window_ignored,
    rope_kinds=ROPE_KINDS,
    forward=Architecture(
        norm=LAYER_NORM,
        attention=Attention(window=every_layer),
        feed=FeedForward(gate=None, up="c_fc", down="c_proj", default_activation="gelu_pytorch_tanh"),
    ),
    traits=Traits(layer_norm=True),
)
