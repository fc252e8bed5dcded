"""GLM-4-0414 and GLM-Z1: four norms a layer, half of each head rotated in neighbouring pairs, gate and up fused.

Shape of the GGUF: llama.cpp's `glm4` architecture (src/models/glm4.cpp), which keeps the fused matrix as `ffn_up`.
"""

from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import PROJECTIONS, ROPE_KINDS
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.tokenizer.roles import TokenRoles

_AT, _TO = "model.layers.{layer}", "blk.{layer}"

RULES = (
    Rule(f"{_AT}.input_layernorm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    *PROJECTIONS,
    *(
        Rule(f"{_AT}.self_attn.{role}_proj.bias", f"{_TO}.attn_{role}.bias", (rows,), required=False)
        for role, rows in (("q", "q"), ("k", "kv"), ("v", "kv"))
    ),
    Rule(f"{_AT}.post_self_attn_layernorm.weight", f"{_TO}.post_attention_norm.weight", ("hidden",)),
    Rule(f"{_AT}.post_attention_layernorm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.mlp.gate_up_proj.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden")),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule(f"{_AT}.post_mlp_layernorm.weight", f"{_TO}.post_ffw_norm.weight", ("hidden",)),
    *ENDS,
)

# transformers' Glm4Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "glm4": {
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-7,
        "rope_theta": 10000.0,
    }
}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    rotated = int(sizes.head_dim * sizes.rope.get("partial_rotary_factor", 0.5))
    return [*base_keys(arch, sizes), Key(f"{arch}.rope.dimension_count", "u32", rotated)]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="GLM-4")
    plain_yarn(config, "GLM-4")
    return config


FORWARD = Architecture(
    after_attention="post_self_attn_layernorm",
    after_feed="post_mlp_layernorm",
    attention=Attention(pairs="neighbours"),
    feed=FeedForward(fused="gate_up_proj"),
)

_END = "<|endoftext|>"

FAMILY = Family(
    name="GLM-4",
    models="GLM-4-0414, GLM-Z1",
    architectures=("Glm4ForCausalLM",),
    gguf_arch="glm4",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=lambda sizes: {"gate_up": 2 * sizes.ffn},
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
    token_roles=TokenRoles(also={"eos": _END, "eot": "<|user|>", "unk": _END, "bos": _END}),
)
