"""Ling-lite and Ling-plus: Llama's attention with queries, keys and values in one matrix, softmax-routed experts.

Shape of the GGUF: llama.cpp's `bailingmoe` architecture (src/models/bailingmoe.cpp): every layer has experts and
shared ones. transformers has no class; the source is the published modeling_bailing_moe.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from quantkit.families.bailingmoe2 import ENDS, prepare_bailing
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import only
from quantkit.families.base.rotary import interleave_rotary_rows
from quantkit.families.qwen2 import NORMS, ROPE_KINDS
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import EXPERT, flag

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_FAMILY = "Ling 1"


def _of_qkv(role: str) -> Callable[[Hyperparameters], Take]:
    """Queries (`q`), keys (`k`) or values (`v`) of the fused matrix: all queries, all keys, all values."""

    def take(sizes: Hyperparameters) -> Take:
        q, kv = sizes.n_head * sizes.head_dim, sizes.n_head_kv * sizes.head_dim
        start, count = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}[role]
        if role == "v":
            return Take(np.arange(start, start + count, dtype=np.int64))
        return Take(start + interleave_rotary_rows(count // sizes.head_dim, count), step=sizes.head_dim)

    return take


RULES = (
    *NORMS,
    *(
        Rule(
            f"{_AT}.attention.query_key_value.weight",
            f"{_TO}.attn_{role}.weight",
            ("qkv", "hidden"),
            take=_of_qkv(role),
        )
        for role in "qkv"
    ),
    Rule(f"{_AT}.attention.dense.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
    Rule(f"{_AT}.mlp.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    *expert_rules(f"{_AT}.mlp.experts"),
    *shared_rules(f"{_AT}.mlp.shared_experts"),
    *ENDS,
)

# BailingMoeConfig of the published code.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bailing_moe": {
        "first_k_dense_replace": 0,
        "max_position_embeddings": 16384,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_shared_experts": 0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    ffn = expert_width(sizes)
    qkv = (sizes.n_head + 2 * sizes.n_head_kv) * sizes.head_dim
    return {**expert_dimensions(ffn, ffn * size(sizes.config, "num_shared_experts")), "qkv": qkv}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
        Key(f"{arch}.leading_dense_block_count", "u32", 0),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.expert_weights_scale", "f32", 1.0),
        Key(f"{arch}.expert_shared_count", "u32", size(sizes.config, "num_shared_experts")),
        Key(f"{arch}.expert_weights_norm", "bool", bool(sizes.config.get("norm_topk_prob"))),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "first_k_dense_replace", 0, family=_FAMILY)
    only(config, "multi_gate", False, family=_FAMILY)
    only(config, "score_function", "softmax", family=_FAMILY)
    return prepare_bailing(config, _FAMILY)


FORWARD = Architecture(
    embedding="word_embeddings",
    attention=Attention(at="attention.", fused="query_key_value", out="dense"),
    experts=Experts(
        router="mlp.gate",
        expert=EXPERT,
        mlx="mlp.switch_mlp.",
        normalised=flag("norm_topk_prob", True),
        shared=FeedForward(
            at="mlp.shared_experts.",
            inner=lambda config: int(config["moe_intermediate_size"]) * int(config["num_shared_experts"]),
        ),
    ),
)

FAMILY = Family(
    name="Ling 1",
    models="Ling-lite-1.5, Ling-plus, Ring-lite",
    architectures=("BailingMoeForCausalLM",),
    gguf_arch="bailingmoe",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
)
