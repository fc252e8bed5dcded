"""gpt-oss: attention with sinks and a window in every other layer, experts in MXFP4 blocks or unpacked.

Shape of the GGUF: llama.cpp's `gpt-oss` architecture (src/models/openai-moe.cpp). The experts' gate and up projections
are the even and the odd rows of one tensor. Published weights are in MXFP4 (OCP Microscaling Formats 1.0), which ggml
has as a type: the same bits in another order, without loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.sliding import pattern_keys, sliding_layers
from quantkit.families.base.traits import Traits
from quantkit.families.llama import ENDS
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import window

_LAYER, _ATTENTION = "model.layers.{layer}", "model.layers.{layer}.self_attn"
_EXPERTS = "model.layers.{layer}.mlp.experts"
_BLOCK_VALUES, _BLOCK_BYTES = 32, 16
# The window alternates, with the first layer sliding (llama.cpp's load_swa_pattern).
_PATTERN = 2
# SwiGLU's limit and alpha in llama.cpp's graph (LLM_FFN_SWIGLU_OAI_MOE).
_LIMIT = 7.0
_ALPHA = 1.702


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {
        "gate_up": 2 * sizes.ffn,
        # for rows that are not whole blocks, the shape check of the blocks fails
        "hidden_blocks": sizes.hidden // _BLOCK_VALUES,
        "ffn_blocks": sizes.ffn // _BLOCK_VALUES,
        "block": _BLOCK_BYTES,
    }


def _every_other(sizes: Hyperparameters, half: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Row indices of the gate (0) or the up projection (1) in the fused tensor."""
    return np.arange(half, 2 * sizes.ffn, 2, dtype=np.int64)


def _packed_half(half: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    """Rows of (experts, 2 ffn, hidden)."""
    return lambda sizes: tuple(
        Take(expert * 2 * sizes.ffn + _every_other(sizes, half)) for expert in range(sizes.n_expert)
    )


def _unpacked(rows: int, expert: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.arange(expert * rows, (expert + 1) * rows, dtype=np.int64)


def _unpacked_half(half: int) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    """Columns of (experts, hidden, 2 ffn), transposed."""
    return lambda sizes: tuple(
        Take(_unpacked(sizes.hidden, expert), _every_other(sizes, half), transposed=True)
        for expert in range(sizes.n_expert)
    )


def _unpacked_down(sizes: Hyperparameters) -> tuple[Take, ...]:
    """(experts, ffn, hidden), transposed."""
    return tuple(Take(_unpacked(sizes.ffn, expert), transposed=True) for expert in range(sizes.n_expert))


def _bias_half(half: int) -> Callable[[Hyperparameters], Take]:
    return lambda sizes: Take(columns=_every_other(sizes, half))


def _projection(name: str, target: str, rows: str, columns: str) -> tuple[Rule, Rule]:
    source, to = f"{_ATTENTION}.{name}", f"blk.{{layer}}.{target}"
    return (
        Rule(f"{source}.weight", f"{to}.weight", (rows, columns)),
        Rule(f"{source}.bias", f"{to}.bias", (rows,)),
    )


def _gate_or_up(half: int, name: str) -> tuple[Rule, Rule, Rule]:
    source, target = f"{_EXPERTS}.gate_up_proj", f"blk.{{layer}}.ffn_{name}_exps"
    blocks = ("n_expert", "gate_up", "hidden_blocks", "block")
    return (
        Rule(f"{source}_blocks", f"{target}.weight", blocks, take=_packed_half(half), scales=f"{source}_scales"),
        Rule(source, f"{target}.weight", ("n_expert", "hidden", "gate_up"), take=_unpacked_half(half)),
        Rule(f"{source}_bias", f"{target}.bias", ("n_expert", "gate_up"), take=_bias_half(half)),
    )


_DOWN, _TO_DOWN = f"{_EXPERTS}.down_proj", "blk.{layer}.ffn_down_exps"
RULES = (
    Rule(f"{_LAYER}.input_layernorm.weight", "blk.{layer}.attn_norm.weight", ("hidden",)),
    *_projection("q_proj", "attn_q", "q", "hidden"),
    *_projection("k_proj", "attn_k", "kv", "hidden"),
    *_projection("v_proj", "attn_v", "kv", "hidden"),
    *_projection("o_proj", "attn_output", "hidden", "q"),
    Rule(f"{_ATTENTION}.sinks", "blk.{layer}.attn_sinks.weight", ("n_head",)),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "blk.{layer}.post_attention_norm.weight", ("hidden",)),
    Rule(f"{_LAYER}.mlp.router.weight", "blk.{layer}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    Rule(f"{_LAYER}.mlp.router.bias", "blk.{layer}.ffn_gate_inp.bias", ("n_expert",)),
    *_gate_or_up(0, "gate"),
    *_gate_or_up(1, "up"),
    Rule(
        f"{_DOWN}_blocks", f"{_TO_DOWN}.weight", ("n_expert", "hidden", "ffn_blocks", "block"), scales=f"{_DOWN}_scales"
    ),
    Rule(_DOWN, f"{_TO_DOWN}.weight", ("n_expert", "ffn", "hidden"), take=_unpacked_down),
    Rule(f"{_DOWN}_bias", f"{_TO_DOWN}.bias", ("n_expert", "hidden")),
    *ENDS,
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that differ from the constants of llama.cpp's graph."""
    only(config, "hidden_act", *SILU, family="gpt-oss")
    only(config, "swiglu_limit", _LIMIT, family="gpt-oss")
    only(config, "swiglu_alpha", _ALPHA, family="gpt-oss")
    only(config, "attention_bias", True, family="gpt-oss")
    only(config, "tie_word_embeddings", False, family="gpt-oss")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, Mapping):
        # published with "truncate": false; llama.cpp still rounds the ends of YaRN's ramp to whole dimensions
        plain_yarn({"rope_scaling": {name: value for name, value in rope.items() if name != "truncate"}}, "gpt-oss")
    return config


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, the window, and its layers if they differ from llama.cpp's pattern."""
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.attention.sliding_window", "u32", size(sizes.config, "sliding_window")),
        Key(f"{arch}.expert_feed_forward_length", "u32", sizes.ffn),
        *pattern_keys(arch, sliding_layers(sizes.config, sizes.n_layer, _PATTERN), _PATTERN),
    ]


# transformers' GptOssConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "rope_theta": 150000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "num_experts_per_tok": 4,
    }
}


def _cautions(sizes: Hyperparameters) -> list[str]:
    if sizes.rope.get("rope_type") != "yarn" or sizes.rope.get("truncate", True):
        return []
    return ["llama.cpp rounds the ends of YaRN's ramp to whole dimensions; the model does not (truncate is false)"]


FORWARD = Architecture(
    attention=Attention(sinks="sinks", window=window(lambda _, layer: layer % 2 == 0)),
    experts=Experts(
        router="mlp.router",
        stacked=FeedForward(
            at="mlp.experts.", fused="gate_up_proj", alternating=True, clamped=True, form=Form("", "_bias", turned=True)
        ),
    ),
)

FAMILY = Family(
    name="gpt-oss",
    models="gpt-oss 20B/120B",
    architectures=("GptOssForCausalLM",),
    gguf_arch="gpt-oss",
    rules=RULES,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dimensions=_dimensions,
    rope_kinds=("default", "yarn"),
    cautions=_cautions,
    forward=FORWARD,
    traits=Traits(
        sliding_every=2,
        output_last=True,
        expert_weights_summed_to_one=False,
        softmax_of_chosen=True,
        feed_norm="post_attention_norm",
    ),
)
