"""InternLM 2 and 2.5: Llama with q, k and v of each group of heads next to each other in one matrix.

Shape of the GGUF: llama.cpp's `internlm2` architecture (src/models/internlm2.cpp), which has no biases.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quantkit.families.base.family import Canonical, Family, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.native_config import as_llama
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.rotary import interleave_rotary_rows
from quantkit.tokenizer.roles import SpacePrefix, TokenRoles

_ROLES: dict[str, slice | int] = {"q": slice(None, -2), "k": -2, "v": -1}


def _grouped(role: str, *, rotary: bool) -> Callable[[Hyperparameters], Take]:
    """q, k or v from wqkv. Its rows are (group, queries of the group then key then value, head_dim)."""

    def take(sizes: Hyperparameters) -> Take:
        of_group = sizes.n_head // sizes.n_head_kv + 2
        rows = np.arange(sizes.n_head_kv * of_group * sizes.head_dim, dtype=np.int64)
        order = rows.reshape(sizes.n_head_kv, of_group, sizes.head_dim)[:, _ROLES[role]].reshape(-1)
        if not rotary:
            return Take(order)
        return Take(order[interleave_rotary_rows(len(order) // sizes.head_dim, len(order))], step=sizes.head_dim)

    return take


_LAYER = "model.layers.{layer}"
_WQKV = (f"{_LAYER}.attention.wqkv.weight", ("qkv", "hidden"))

# source, llama.cpp's name, Llama's name, shape
_AS_THEY_STAND = (
    (f"{_LAYER}.attention_norm", "blk.{layer}.attn_norm", f"{_LAYER}.input_layernorm", ("hidden",)),
    (f"{_LAYER}.attention.wo", "blk.{layer}.attn_output", f"{_LAYER}.self_attn.o_proj", ("hidden", "q")),
    (f"{_LAYER}.ffn_norm", "blk.{layer}.ffn_norm", f"{_LAYER}.post_attention_layernorm", ("hidden",)),
    (f"{_LAYER}.feed_forward.w1", "blk.{layer}.ffn_gate", f"{_LAYER}.mlp.gate_proj", ("ffn", "hidden")),
    (f"{_LAYER}.feed_forward.w2", "blk.{layer}.ffn_down", f"{_LAYER}.mlp.down_proj", ("hidden", "ffn")),
    (f"{_LAYER}.feed_forward.w3", "blk.{layer}.ffn_up", f"{_LAYER}.mlp.up_proj", ("ffn", "hidden")),
    ("model.tok_embeddings", "token_embd", "model.embed_tokens", ("vocab", "hidden")),
    ("model.norm", "output_norm", "model.norm", ("hidden",)),
    ("output", "output", "lm_head", ("vocab", "hidden")),
)

RULES = (
    Rule(_WQKV[0], "blk.{layer}.attn_q.weight", _WQKV[1], take=_grouped("q", rotary=True)),
    Rule(_WQKV[0], "blk.{layer}.attn_k.weight", _WQKV[1], take=_grouped("k", rotary=True)),
    Rule(_WQKV[0], "blk.{layer}.attn_v.weight", _WQKV[1], take=_grouped("v", rotary=False)),
    *(Rule(f"{source}.weight", f"{target}.weight", shape) for source, target, _, shape in _AS_THEY_STAND),
)

NATIVE_RULES = (
    *(
        Rule(_WQKV[0], f"{_LAYER}.self_attn.{role}_proj.weight", _WQKV[1], take=_grouped(role, rotary=False))
        for role in _ROLES
    ),
    *(Rule(f"{source}.weight", f"{native}.weight", shape) for source, _, native, shape in _AS_THEY_STAND),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="InternLM2")
    only(config, "bias", False, family="InternLM2")
    only(config, "tie_word_embeddings", False, family="InternLM2")
    return config


def _dimensions(sizes: Hyperparameters) -> Mapping[str, int]:
    return {"qkv": (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim}


FAMILY = Family(
    name="InternLM2",
    models="InternLM2, InternLM2.5",
    architectures=("InternLM2ForCausalLM",),
    gguf_arch="internlm2",
    rules=RULES,
    keys=base_keys,
    # InternLM2Config of the published code.
    defaults={
        "internlm2": {"bias": True, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    },
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=("default", "linear", "dynamic"),
    canonical=lambda sizes: Canonical(as_llama, NATIVE_RULES),
    # its chats end with a token that the configuration does not name as EOS
    token_roles=TokenRoles(instead={"eos": "<|im_end|>"}, space_prefix=SpacePrefix.MODEL_AFTER_TYPES),
)
