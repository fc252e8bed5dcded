"""InternLM 3: Llama's tensors under Llama's names; its config states biases in its own way.

llama.cpp keeps it under the `llama` architecture.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Canonical, Family, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ATTENTION, ENDS, MLP, llama_keys
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

_RULES = ATTENTION + MLP + ENDS
_NATIVE_RULES = tuple(
    Rule(rule.source, rule.source, rule.shape, required=rule.required, tied_to_embedding=rule.tied_to_embedding)
    for rule in _RULES
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="InternLM3")
    plain_yarn(config, "InternLM3")
    return config


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(config.get("bias"))
    tied = bool(config.get("tie_word_embeddings", False))
    return as_llama(config, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied)


def _canonical(sizes: Hyperparameters) -> Canonical | None:
    """Llama if `bias` (o and the MLP) equals `qkv_bias` (q, k, v), else None: Llama has biases on all four or none."""
    if bool(sizes.config.get("bias")) != bool(sizes.config.get("qkv_bias")):
        return None
    return Canonical(_native_config, _NATIVE_RULES)


FAMILY = Family(
    name="InternLM3",
    models="InternLM3",
    architectures=("InternLM3ForCausalLM",),
    gguf_arch="llama",
    rules=_RULES,
    keys=llama_keys,
    # InternLM3Config of the published code.
    defaults={
        "internlm3": {"head_dim": None, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    },
    prepare=_prepare,
    rope_kinds=("default", "linear", "dynamic", "yarn"),
    canonical=_canonical,
    token_roles=TokenRoles(space_prefix=SpacePrefix.STATED_AFTER_TYPES),
)
