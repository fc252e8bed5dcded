"""EXAONE 3 and 3.5: Llama's graph under GPT-2's tensor names, in the layout of its remote code.

Shape of the GGUF: llama.cpp's `exaone` architecture (src/models/exaone.cpp).
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Canonical, Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.llama import llama3_rope_factors

_H, _TO, _NATIVE = "transformer.h.{layer}", "blk.{layer}", "model.layers.{layer}"
# published name, GGUF name, Llama's name, shape
_TENSORS = (
    (f"{_H}.ln_1", f"{_TO}.attn_norm", f"{_NATIVE}.input_layernorm", ("hidden",)),
    (f"{_H}.attn.attention.q_proj", f"{_TO}.attn_q", f"{_NATIVE}.self_attn.q_proj", ("q", "hidden")),
    (f"{_H}.attn.attention.k_proj", f"{_TO}.attn_k", f"{_NATIVE}.self_attn.k_proj", ("kv", "hidden")),
    (f"{_H}.attn.attention.v_proj", f"{_TO}.attn_v", f"{_NATIVE}.self_attn.v_proj", ("kv", "hidden")),
    (f"{_H}.attn.attention.out_proj", f"{_TO}.attn_output", f"{_NATIVE}.self_attn.o_proj", ("hidden", "q")),
    (f"{_H}.ln_2", f"{_TO}.ffn_norm", f"{_NATIVE}.post_attention_layernorm", ("hidden",)),
    (f"{_H}.mlp.c_fc_0", f"{_TO}.ffn_gate", f"{_NATIVE}.mlp.gate_proj", ("ffn", "hidden")),
    (f"{_H}.mlp.c_fc_1", f"{_TO}.ffn_up", f"{_NATIVE}.mlp.up_proj", ("ffn", "hidden")),
    (f"{_H}.mlp.c_proj", f"{_TO}.ffn_down", f"{_NATIVE}.mlp.down_proj", ("hidden", "ffn")),
    ("transformer.wte", "token_embd", "model.embed_tokens", ("vocab", "hidden")),
    ("transformer.ln_f", "output_norm", "model.norm", ("hidden",)),
)


# transformers' attribute_map.
_RENAMED = {
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
    "num_layers": "num_hidden_layers",
}


def _rules(column: int) -> tuple[Rule, ...]:
    head = ("lm_head", "output", "lm_head", ("vocab", "hidden"))
    return (
        *(Rule(f"{row[0]}.weight", f"{row[column]}.weight", row[3]) for row in _TENSORS),
        Rule(f"{head[0]}.weight", f"{head[column]}.weight", head[3], required=False, tied_to_embedding=True),
    )


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "activation_function", *SILU, family="EXAONE")
    return {_RENAMED.get(key, key): value for key, value in config.items()}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/exaone.py)."""
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.hidden // sizes.n_head),
    ]


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return as_llama(config, tie_word_embeddings=bool(config.get("tie_word_embeddings")))


FAMILY = Family(
    name="EXAONE",
    models="EXAONE 3, 3.5, Deep",
    architectures=("ExaoneForCausalLM",),
    gguf_arch="exaone",
    rules=_rules(1),
    keys=_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    # ExaoneConfig of the published code.
    defaults={
        "exaone": {
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 2048,
            "num_key_value_heads": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }
    },
    prepare=_prepare,
    rope_kinds=("default", "llama3"),
    canonical=lambda sizes: Canonical(_native_config, _rules(2)),
)
