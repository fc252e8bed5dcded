"""Qwen 3: no biases, a norm on each head of q and k, a head size that is independent of the width.

Shape of the GGUF: llama.cpp's `qwen3` architecture (src/models/qwen3.cpp).
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import BARE_PREFIX
from quantkit.families.base.pooling import as_bare_model
from quantkit.families.base.refusals import SILU, only, plain_yarn
from quantkit.families.base.reranker import ANSWER_ROWS, keeps_head, reranker_keys
from quantkit.families.llama import ENDS
from quantkit.families.qwen2 import NORMS, PLAIN_MLP, PROJECTIONS, ROPE_KINDS, no_window, window
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS

HEAD_NORM_RULES = (
    Rule("model.layers.{layer}.self_attn.q_norm.weight", "blk.{layer}.attn_q_norm.weight", ("head_dim",)),
    Rule("model.layers.{layer}.self_attn.k_norm.weight", "blk.{layer}.attn_k_norm.weight", ("head_dim",)),
)

# transformers' Qwen3Config.
DEFAULTS = {
    "qwen3": {
        "attention_bias": False,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *SILU, family="Qwen3")
    only(config, "attention_bias", False, family="Qwen3")
    no_window(config, "Qwen3", by_layer=True)
    plain_yarn(config, "Qwen3")
    as_bare_model(config)
    return config


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys, and those of an embedding model or a reranker."""
    return [*base_keys(arch, sizes), *reranker_keys(arch, sizes)]


FORWARD = Architecture(attention=Attention(window=window, norms=HEAD_NORMS))

FAMILY = Family(
    name="Qwen3",
    models="Qwen3, Qwen3-Embedding, Qwen3-Reranker",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    gguf_arch="qwen3",
    rules=(
        *(NORMS + PROJECTIONS + HEAD_NORM_RULES + PLAIN_MLP + ENDS[:-1]),
        replace(ENDS[-1], when=keeps_head),
        *ANSWER_ROWS,
    ),
    keys=keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=ROPE_KINDS,
    rename=BARE_PREFIX,
    rerankers=("qwen3-reranker",),
    forward={"Qwen3ForCausalLM": FORWARD},
)
