"""Arcee AFM: Llama's graph with a feed-forward of two matrices and the square of ReLU between them.

Shape of the GGUF: llama.cpp's `arcee` architecture (src/models/arcee.cpp).
"""

from typing import Any

from quantkit.families.base.family import Family
from quantkit.families.base.refusals import only, plain_yarn
from quantkit.families.llama import ATTENTION, ENDS, MLP, llama_keys
from quantkit.forward.description import Architecture, FeedForward
from quantkit.tokenizer.roles import LLAMA_ROLES

# transformers' ArceeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "arcee": {
        "attention_bias": False,
        "head_dim": None,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", "relu2", family="Arcee")
    only(config, "attention_bias", False, family="Arcee")
    only(config, "mlp_bias", False, family="Arcee")
    plain_yarn(config, "Arcee")
    return config


FORWARD = Architecture(feed=FeedForward(gate=None))

FAMILY = Family(
    name="Arcee",
    models="Arcee AFM 4.5B",
    architectures=("ArceeForCausalLM",),
    gguf_arch="arcee",
    rules=(
        *(rule for rule in ATTENTION if rule.source.endswith(".weight")),
        *(rule for rule in MLP if rule.source.endswith(("up_proj.weight", "down_proj.weight"))),
        *ENDS,
    ),
    keys=llama_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default", "linear", "yarn", "dynamic"),
    forward=FORWARD,
    token_roles=LLAMA_ROLES,
)
