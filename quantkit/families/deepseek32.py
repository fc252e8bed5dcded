"""DeepSeek-V3.2: V3's graph, in which an indexer chooses the tokens that a query attends to.

Shape of the GGUF: llama.cpp's `deepseek32` architecture (src/models/deepseek32.cpp). It keeps the layer that predicts a
later token as a block after the model's own.
"""

from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.layers import nextn_keys, nextn_rules, observe_nextn
from quantkit.families.base.refusals import only
from quantkit.families.deepseek import (
    ATTENTION,
    FEED_FORWARD,
    V3_FORWARD,
    expert_layers,
    matrix,
)
from quantkit.families.deepseek import dimensions as deepseek_dimensions
from quantkit.families.deepseek import keys as deepseek_keys
from quantkit.families.deepseek_config import DEFAULTS as DEEPSEEK_DEFAULTS
from quantkit.families.deepseek_config import prepare_attention, prepare_experts
from quantkit.families.llama import ENDS
from quantkit.forward.mixers import Indexer

_INDEXER = "model.layers.{layer}.self_attn.indexer"

INDEXER = (
    matrix(f"{_INDEXER}.k_norm", "indexer.k_norm", "index_width"),
    Rule(f"{_INDEXER}.k_norm.bias", "blk.{layer}.indexer.k_norm.bias", ("index_width",)),
    matrix(f"{_INDEXER}.weights_proj", "indexer.proj", "index_heads", "hidden"),
    matrix(f"{_INDEXER}.wk", "indexer.attn_k", "index_width", "hidden"),
    matrix(f"{_INDEXER}.wq_b", "indexer.attn_q_b", "index_queries", "q_latent"),
)
EXPERTS = tuple(rule for rule in FEED_FORWARD if rule.layers is expert_layers)

# transformers' DeepseekV32Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v32": {
        **{key: value for key, value in DEEPSEEK_DEFAULTS["deepseek_v3"].items() if key != "rope_interleave"},
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 2048,
        "max_position_embeddings": 163840,
    }
}


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    heads, width = size(sizes.config, "index_n_heads"), size(sizes.config, "index_head_dim")
    return {
        **deepseek_dimensions(sizes),
        "index_heads": heads,
        "index_width": width,
        "index_queries": heads * width,
        "two_hidden": 2 * sizes.hidden,
    }


def prepare_indexed(config: dict[str, Any], family: str) -> dict[str, Any]:
    """Refuse settings that llama.cpp's graphs of V3 with an indexer do not have."""
    prepare_attention(config, family)
    prepare_experts(config, family)
    size(config, "q_lora_rank")
    # a power of two, for the Hadamard rotation of index queries and keys, and no narrower than what rotates
    only(
        config,
        "index_head_dim",
        *(1 << n for n in range(6, 12) if 1 << n >= size(config, "qk_rope_head_dim")),
        family=family,
    )
    layers = size(config, "num_hidden_layers")
    dense = min(int(number(config, "first_k_dense_replace") or 0), layers)
    only(config, "layer_types", ["indexed_attention"] * layers, family=family)
    only(config, "mlp_layer_types", ["dense"] * dense + ["sparse"] * (layers - dense), family=family)
    return config


def indexer_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    config = sizes.config
    return [
        Key(f"{arch}.attention.indexer.head_count", "u32", size(config, "index_n_heads")),
        Key(f"{arch}.attention.indexer.key_length", "u32", size(config, "index_head_dim")),
        Key(f"{arch}.attention.indexer.top_k", "u32", size(config, "index_topk")),
    ]


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """V3's keys, then those of the later token and of the indexer (conversion/deepseek.py)."""
    return [*deepseek_keys(arch, sizes), *nextn_keys(arch, sizes), *indexer_keys(arch, sizes)]


FORWARD = replace(V3_FORWARD, attention=replace(V3_FORWARD.attention, indexer=Indexer()))

FAMILY = Family(
    name="DeepSeek-V3.2",
    models="DeepSeek-V3.2, V3.2-Exp, V3.2-Speciale",
    architectures=("DeepseekV32ForCausalLM",),
    gguf_arch="deepseek32",
    rules=(*ATTENTION, *INDEXER, *FEED_FORWARD, *nextn_rules((*ATTENTION, *INDEXER, *EXPERTS)), *ENDS),
    keys=keys,
    defaults=DEFAULTS,
    observe=observe_nextn,
    prepare=lambda config: prepare_indexed(config, "DeepSeek-V3.2"),
    dimensions=dimensions,
    rope_kinds=("default", "yarn"),
    # the widths follow from the others
    no_effect=("head_dim", "qk_head_dim"),
    forward=FORWARD,
)
