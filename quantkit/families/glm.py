"""GLM-4-9B in transformers' names: half of each head rotated in neighbouring pairs, gate and up in one matrix.

Shape of the GGUF: llama.cpp's `chatglm` architecture (src/models/chatglm.cpp), which keeps the fused matrix as
`ffn_up`. Its converter reads the settings of the first, remote code only and writes other values for this layout; the
keys here have the values of config.json.
"""

from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import BIASES, NORMS, PROJECTIONS
from quantkit.forward.config_keys import partial_rotary
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.tokenizer.roles import TokenRoles

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_ROTATED = 0.5

RULES = (
    *NORMS,
    *PROJECTIONS,
    *BIASES,
    Rule(f"{_AT}.mlp.gate_up_proj.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden")),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    *ENDS,
)

# transformers' GlmConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "glm": {
        "attention_bias": True,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": _ROTATED,
        "rms_norm_eps": 1.5625e-7,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="GLM")
    only(config, "attention_bias", True, family="GLM")
    only(config, "head_dim", size(config, "hidden_size") // size(config, "num_attention_heads"), family="GLM")
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", sizes.norm_eps),
        Key(
            f"{arch}.rope.dimension_count",
            "u32",
            int(sizes.head_dim * sizes.rope.get("partial_rotary_factor", _ROTATED)),
        ),
        Key(f"{arch}.rope.freq_base", "f32", sizes.rope.get("rope_theta", 10000.0)),
    ]


FORWARD = Architecture(
    attention=Attention(pairs="neighbours", rotary=partial_rotary), feed=FeedForward(fused="gate_up_proj")
)

_END = "<|endoftext|>"

FAMILY = Family(
    name="GLM",
    models="GLM-4-9B, GLM-Edge",
    architectures=("GlmForCausalLM",),
    gguf_arch="chatglm",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=lambda sizes: {"gate_up": 2 * sizes.ffn},
    rope_kinds=("default",),
    forward=FORWARD,
    token_roles=TokenRoles(also={"eos": _END, "eot": "<|user|>", "unk": _END}),
)
