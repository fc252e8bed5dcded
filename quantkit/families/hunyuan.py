"""Hunyuan 0.5B to 7B and HY-MT: Llama's shape with norms of queries and keys after the rotation.

Shape of the GGUF: llama.cpp's `hunyuan-dense` architecture (src/models/hunyuan-dense.cpp), which has no biases. The
published `dynamic` rope has a fixed alpha, so the GGUF holds the stretched base and no scaling.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.tokenizer.roles import TokenRoles

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
# config.json states 32k; the converter writes the 256k that the technical report gives for the published alphas
_STATED_CONTEXTS, _CONTEXT = (32768, 262144), 262144

HEAD_NORM_RULES = (
    Rule(f"{_AT}.self_attn.query_layernorm.weight", f"{_TO}.attn_q_norm.weight", ("head_dim",)),
    Rule(f"{_AT}.self_attn.key_layernorm.weight", f"{_TO}.attn_k_norm.weight", ("head_dim",)),
)
RULES = NORMS + PROJECTIONS + HEAD_NORM_RULES + PLAIN_MLP + ENDS

# transformers' HunYuanDenseV1Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def hunyuan_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys; a fixed alpha stretches rope's base by alpha^(d / (d - 2)), and the context is 256k."""
    keys, alpha = base_keys(arch, sizes), sizes.rope.get("alpha")
    if sizes.rope.get("rope_type") != "dynamic" or alpha is None:
        return keys
    dim = sizes.head_dim
    base = sizes.rope.get("rope_theta", 10000.0) * alpha ** (dim / (dim - 2))
    context = _CONTEXT if sizes.context in _STATED_CONTEXTS else sizes.context
    changed = {f"{arch}.rope.freq_base": base, f"{arch}.context_length": context}
    return [
        *(replace(key, value=changed.get(key.name, key.value)) for key in keys),
        Key(f"{arch}.rope.scaling.type", "str", "none"),
        Key(f"{arch}.rope.scaling.factor", "f32", 1.0),
        Key(
            f"{arch}.rope.scaling.original_context_length", "u32", changed.get(f"{arch}.context_length", sizes.context)
        ),
    ]


def prepare_hunyuan(config: dict[str, Any], family: str) -> dict[str, Any]:
    """Refuse what llama.cpp's graphs do not have, and a dynamic rope that depends on the length."""
    only(config, "hidden_act", *SILU, family=family)
    only(config, "attention_bias", False, family=family)
    only(config, "mlp_bias", False, family=family)
    only(config, "use_qk_norm", True, family=family)
    only(config, "use_cla", False, family=family)
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) == "dynamic":
        alpha = number(rope, "alpha")
        if alpha is None or alpha <= 0:
            raise UnsupportedError(
                f"config.json: rope scaling 'dynamic' has alpha {rope.get('alpha')!r}, but llama.cpp runs {family} only"
                " with a positive alpha; a GGUF cannot express this setting"
            )
    return config


FORWARD = Architecture(attention=Attention(norms=("query_layernorm", "key_layernorm"), norms_after_rope=True))

FAMILY = Family(
    name="Hunyuan",
    models="Hunyuan 0.5B/1.8B/4B/7B, HY-MT1.5",
    architectures=("HunYuanDenseV1ForCausalLM",),
    gguf_arch="hunyuan-dense",
    rules=RULES,
    keys=hunyuan_keys,
    defaults=DEFAULTS,
    prepare=lambda config: prepare_hunyuan(config, "Hunyuan"),
    rope_kinds=("default", "dynamic"),
    forward=FORWARD,
    # the published eos_token_id is another token's; the converter takes this key too
    token_roles=TokenRoles(stated={"eos": "eod_token_id"}),
)
