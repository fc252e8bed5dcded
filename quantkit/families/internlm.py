"""InternLM 1: Llama with biases on q, k, v and o in the 7B; written as llama.cpp's `llama`.

llama.cpp's converter dropped it; the `llama` graph still supports its biases.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Canonical, Family, Rule
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import ATTENTION, ENDS, MLP, llama_keys
from quantkit.tokenizer.roles import LLAMA_ROLES

_RULES = (
    *ATTENTION,
    *(rule for rule in MLP if rule.required),
    *(rule for rule in ENDS if rule.required),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """`rotary` of the published code is {"base": ..., "type": "origin" or "dynamic"}; dynamic has no key in a GGUF."""
    only(config, "hidden_act", *SILU, family="InternLM")
    rotary = config.pop("rotary", None)
    if isinstance(rotary, Mapping):
        if rotary.get("type", "origin") not in ("origin", "dynamic"):
            raise UnsupportedError(
                f"config.json: rotary type {rotary['type']!r} is not supported; InternLM has 'origin' or 'dynamic'"
            )
        config.setdefault("rope_theta", rotary.get("base", 10000))
    return config


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return as_llama(config, attention_bias=bool(config.get("bias")))


FAMILY = Family(
    name="InternLM",
    models="InternLM 7B/20B",
    architectures=("InternLMForCausalLM",),
    gguf_arch="llama",
    rules=_RULES,
    keys=llama_keys,
    # InternLMConfig of the published code.
    defaults={"internlm": {"bias": True, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}},
    prepare=_prepare,
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(
        _native_config, tuple(Rule(rule.source, rule.source, rule.shape, required=rule.required) for rule in _RULES)
    ),
    token_roles=LLAMA_ROLES,
)
