"""OLMo 1 and 1.7: Llama's shape with norms that have no weights, and queries, keys and values clipped if so trained.

Shape of the GGUF: llama.cpp's `olmo` architecture (src/models/olmo.cpp).
"""

from typing import Any

from quantkit.families.base.family import Family, Key
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ATTENTION, ENDS
from quantkit.families.qwen2 import PLAIN_MLP, ROPE_KINDS
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm

# transformers' OlmoLayerNorm; config.json does not state it.
_EPS = 1e-5

DEFAULTS = {"olmo": {"max_position_embeddings": 2048, "rope_theta": 10000.0}}


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that llama.cpp's graph does not have."""
    only(config, "hidden_act", *SILU, family="OLMo")
    only(config, "attention_bias", False, family="OLMo")
    plain_yarn(config, "OLMo")
    return config


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/olmo.py)."""
    result = [*base_keys(arch, sizes), Key(f"{arch}.attention.layer_norm_epsilon", "f32", _EPS)]
    if (clip := number(sizes.config, "clip_qkv")) is not None:
        result.append(Key(f"{arch}.attention.clamp_kqv", "f32", clip))
    return result


FORWARD = Architecture(norm=Norm("layer", weighted=False), attention=Attention(clip="clip_qkv"))

FAMILY = Family(
    name="OLMo",
    models="OLMo 1/1.7",
    architectures=("OlmoForCausalLM", "OLMoForCausalLM"),
    gguf_arch="olmo",
    rules=(
        *(rule for rule in ATTENTION if rule.source.endswith("_proj.weight")),
        *PLAIN_MLP,
        *(rule for rule in ENDS if rule.target != "output_norm.weight"),
    ),
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
    traits=Traits(layer_norm=True, unweighted_norms=True),
)
