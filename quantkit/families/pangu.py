"""openPangu Embedded: Llama's graph with biases on queries, keys, values and the output of attention.

Shape of the GGUF: llama.cpp's `pangu-embedded` architecture (src/models/pangu-embed.cpp), whose rotary halves stay as
they are.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Canonical, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys, head_dim_keys
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PLAIN_MLP, PROJECTIONS

_RULES = (
    *NORMS,
    *PROJECTIONS,
    *BIASES,
    Rule("model.layers.{layer}.self_attn.o_proj.bias", "blk.{layer}.attn_output.bias", ("hidden",)),
    *PLAIN_MLP,
    *ENDS,
)
_NATIVE_RULES = tuple(
    Rule(rule.source, rule.source, rule.shape, required=rule.required, tied_to_embedding=rule.tied_to_embedding)
    for rule in _RULES
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="openPangu")
    only(config, "bias", True, family="openPangu")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/pangu.py)."""
    result = [
        *base_keys(arch, sizes),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
    ]
    return result if sizes.head_dim_given else [*result, *head_dim_keys(arch, sizes)]


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    tied = bool(config.get("tie_word_embeddings"))
    return as_llama(config, attention_bias=True, tie_word_embeddings=tied)


FAMILY = Family(
    name="openPangu Embedded",
    models="openPangu-Embedded 1B/7B",
    architectures=("PanguEmbeddedForCausalLM",),
    gguf_arch="pangu-embedded",
    rules=_RULES,
    keys=_keys,
    # PanguEmbeddedConfig of the published code.
    defaults={
        "PanguEmbedded": {
            "bias": True,
            "max_position_embeddings": 32768,
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 16000000.0,
            "tie_word_embeddings": False,
        }
    },
    prepare=_prepare,
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(_native_config, _NATIVE_RULES),
)
