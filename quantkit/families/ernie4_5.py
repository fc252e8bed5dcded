"""ERNIE 4.5, dense: Llama's shape with rotary positions over neighbouring values.

Shape of the GGUF: llama.cpp's `ernie4_5` architecture (src/models/ernie4-5.cpp), which has no biases.
"""

from typing import Any

from quantkit.families.base.family import Family
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention

RULES = NORMS + PROJECTIONS + PLAIN_MLP + ENDS

# transformers' Ernie4_5Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ernie4_5": {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    }
}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that llama.cpp's graph does not have."""
    only(config, "hidden_act", *SILU, family="ERNIE 4.5")
    only(config, "use_bias", False, family="ERNIE 4.5")
    plain_yarn(config, "ERNIE 4.5")
    return config


FAMILY = Family(
    name="ERNIE 4.5",
    models="ERNIE-4.5-0.3B",
    architectures=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    gguf_arch="ernie4_5",
    rules=RULES,
    keys=base_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rope_kinds=ROPE_KINDS,
    forward=Architecture(tied=True, attention=Attention(pairs="neighbours")),
)
