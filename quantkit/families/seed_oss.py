"""Seed-OSS: Qwen 2's graph with an independent head size; llama.cpp calls the feed-forward's norm post_attention_norm.

Shape of the GGUF: llama.cpp's `seed_oss` architecture (src/models/seed-oss.cpp), which has no bias on attn_output.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.forward.description import Architecture

_ATTENTION_NORM, _FEED_NORM = NORMS

RULES = (
    _ATTENTION_NORM,
    *PROJECTIONS,
    *(replace(rule, required=False) for rule in BIASES),
    replace(_FEED_NORM, target="blk.{layer}.post_attention_norm.weight"),
    *PLAIN_MLP,
    *ENDS,
)

# transformers' SeedOssConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "seed_oss": {
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Seed-OSS")
    only(config, "attention_out_bias", False, family="Seed-OSS")
    only(config, "mlp_bias", False, family="Seed-OSS")
    plain_yarn(config, "Seed-OSS")
    return config


FAMILY = Family(
    name="Seed-OSS",
    models="Seed-OSS-36B",
    architectures=("SeedOssForCausalLM",),
    gguf_arch="seed_oss",
    rules=RULES,
    keys=base_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=ROPE_KINDS,
    forward=Architecture(),
    traits=Traits(feed_norm="post_attention_norm"),
)
