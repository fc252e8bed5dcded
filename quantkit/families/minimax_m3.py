"""MiniMax M3: attention to blocks of keys that an indexer chooses, gpt-oss's activation, a shared expert.

Shape of the GGUF: llama.cpp's `minimax-m3` architecture (src/models/minimax-m3.cpp). The layers with experts are those
with an indexer; the first layers have neither.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.adjust import plus_one
from quantkit.families.base.experts import expert_dimensions, expert_rules, expert_width, shared_rules
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.refusals import only, plain_yarn
from quantkit.families.gemma import norm
from quantkit.families.llama import ENDS
from quantkit.families.minimax_m2 import check_rotary, rotary
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS, ROPE_KINDS
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention, BlockIndexer
from quantkit.forward.parts import Form, Norm
from quantkit.forward.settings import HEAD_NORMS, number_of, size_of

_FAMILY = "MiniMax M3"
_TEXT, _WITH_IMAGES = "MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"
_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_MOE = f"{_AT}.block_sparse_moe"
# constants of llama.cpp's LLM_FFN_SWIGLU_OAI_MOE
_ALPHA, _LIMIT = 1.702, 7.0
_INDEX = {
    "sparse_num_index_heads": "index_n_heads",
    "sparse_index_dim": "index_head_dim",
    "sparse_topk_blocks": "index_topk_blocks",
    "sparse_block_size": "index_block_size",
    "sparse_local_block": "index_local_blocks",
}
"""The hub's names of the indexer's settings -> transformers'."""


def _dense(sizes: Hyperparameters) -> range:
    return range(int(sizes.config["first_k_dense_replace"]))


def _routed(sizes: Hyperparameters) -> range:
    return range(len(_dense(sizes)), sizes.n_layer)


def _is_routed(config: Config, layer: int) -> bool:
    return layer >= int(config["first_k_dense_replace"])


RULES = (
    norm("input_layernorm", "attn_norm"),
    norm("post_attention_layernorm", "ffn_norm"),
    *PROJECTIONS,
    norm("self_attn.q_norm", "attn_q_norm", "head_dim"),
    norm("self_attn.k_norm", "attn_k_norm", "head_dim"),
    *(
        replace(rule, layers=_routed)
        for rule in (
            Rule(f"{_AT}.self_attn.index_q_proj.weight", f"{_TO}.indexer.q_proj.weight", ("index_queries", "hidden")),
            Rule(f"{_AT}.self_attn.index_k_proj.weight", f"{_TO}.indexer.k_proj.weight", ("index_width", "hidden")),
            norm("self_attn.index_q_norm", "indexer.q_norm", "index_width"),
            norm("self_attn.index_k_norm", "indexer.k_norm", "index_width"),
        )
    ),
    *(replace(rule, layers=_dense) for rule in PLAIN_MLP),
    Rule(f"{_MOE}.gate.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), layers=_routed),
    Rule(f"{_MOE}.e_score_correction_bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=_routed),
    *expert_rules(f"{_MOE}.experts", names=("w1", "w3", "w2"), layers=_routed),
    *shared_rules(f"{_MOE}.shared_experts", layers=_routed),
    *(replace(rule, adjust=plus_one) if rule.target == "output_norm.weight" else rule for rule in ENDS),
)

# transformers' MiniMaxM3VLTextConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "minimax_m3_vl_text": {
        "dense_intermediate_size": 12288,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "rotary_dim": 64,
        "routed_scaling_factor": 2.0,
        "shared_intermediate_size": 3072,
        "swiglu_alpha": _ALPHA,
        "swiglu_limit": _LIMIT,
        "tie_word_embeddings": False,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The usual names of sizes; refuse what llama.cpp's graph does not have.

    Raises:
        CheckpointError: a list does not have an entry for each layer, or sizes contradict each other.
        UnsupportedError: layers with experts are not those with an indexer, or do not follow all others.
    """
    n_layer = size(config, "num_hidden_layers")
    only(config, "hidden_act", "swigluoai", "silu", family=_FAMILY)
    only(config, "scoring_func", "sigmoid", family=_FAMILY)
    only(config, "swiglu_alpha", _ALPHA, family=_FAMILY)
    only(config, "swiglu_limit", _LIMIT, family=_FAMILY)
    only(config, "tie_word_embeddings", False, family=_FAMILY)
    for name in ("use_gemma_norm", "use_qk_norm", "use_routing_bias"):
        only(config, name, True, family=_FAMILY)
    only(config, "qk_norm_type", "per_head", family=_FAMILY)
    plain_yarn(config, _FAMILY)
    check_rotary(config)
    config["scoring_func"] = "sigmoid"
    config["moe_intermediate_size"] = size(config, "intermediate_size")
    config["intermediate_size"] = size(config, "dense_intermediate_size")
    shared = size(config, "shared_intermediate_size")
    if shared % config["moe_intermediate_size"]:
        raise UnsupportedError(
            f"config.json: shared_intermediate_size is {shared}, but llama.cpp runs {_FAMILY} only with a multiple of"
            f" intermediate_size {config['moe_intermediate_size']}; a GGUF cannot express this setting"
        )
    config["n_shared_experts"] = shared // config["moe_intermediate_size"]
    sparse = config.get("sparse_attention_config") or {}
    if not isinstance(sparse, Mapping):
        raise CheckpointError(f"config.json: sparse_attention_config must be an object, not {sparse!r}; correct it")
    for on_hub, name in _INDEX.items():
        config[name] = size({**config, **sparse}, on_hub, name)
    if config["index_n_heads"] != size(config, "num_key_value_heads"):
        raise UnsupportedError(
            f"config.json: {config['index_n_heads']} index heads for {config['num_key_value_heads']} key heads, but"
            f" llama.cpp runs {_FAMILY} only with as many; a GGUF cannot express this setting"
        )
    feeds = _flags(config, "moe_layer_freq", "mlp_layer_types", "sparse", n_layer)
    indexed = _flags({**config, **sparse}, "sparse_attention_freq", "layer_types", "minimax_m3_sparse", n_layer)
    dense = feeds.index(True) if True in feeds else n_layer
    if feeds != [layer >= dense for layer in range(n_layer)] or indexed != feeds:
        raise UnsupportedError(
            f"config.json: the layers with experts are not the last ones or not those with sparse attention, but"
            f" llama.cpp runs {_FAMILY} only so; a GGUF cannot express this setting"
        )
    config["first_k_dense_replace"] = dense
    used, experts = size(config, "num_experts_per_tok"), optional_size(config, "num_local_experts") or 0
    if used > experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {used} is more than num_local_experts {experts}")
    return config


def _flags(config: Config, on_hub: str, name: str, kind: str, n_layer: int) -> list[bool]:
    """For each layer, whether the list `on_hub` has 1, or the list `name` that `kind`."""
    stated = config.get(name) or config.get(on_hub)
    if not isinstance(stated, list) or len(stated) != n_layer:
        raise CheckpointError(f"config.json: {on_hub} must list 0 or 1 for {n_layer} layers, not {stated!r}")
    return [entry in (1, kind) for entry in stated]


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/minimax.py)."""
    config, index = sizes.config, f"{arch}.attention.indexer"
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.expert_feed_forward_length", "u32", expert_width(sizes)),
        Key(f"{arch}.rope.dimension_count", "u32", rotary(config)),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "n_shared_experts")),
        Key(f"{arch}.expert_weights_scale", "f32", config["routed_scaling_factor"]),
        Key(f"{arch}.expert_weights_norm", "bool", True),
        Key(f"{index}.head_count", "u32", size(config, "index_n_heads")),
        Key(f"{index}.key_length", "u32", size(config, "index_head_dim")),
        Key(f"{index}.top_k", "u32", size(config, "index_topk_blocks")),
        Key(f"{index}.block_size", "u32", size(config, "index_block_size")),
        Key(f"{index}.local_blocks", "u32", size(config, "index_local_blocks")),
        Key(f"{arch}.leading_dense_block_count", "u32", len(_dense(sizes))),
    ]


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    config = sizes.config
    width = size(config, "index_head_dim")
    return {
        **expert_dimensions(expert_width(sizes), size(config, "shared_intermediate_size")),
        "index_queries": size(config, "index_n_heads") * width,
        "index_width": width,
    }


_CENTERED = Norm(offset=1.0)
_EXPERT = size_of("moe_intermediate_size")
FORWARD = Architecture(
    norm=_CENTERED,
    attention=Attention(
        norms=HEAD_NORMS,
        norm=_CENTERED,
        rotary=rotary,
        blocks=BlockIndexer(
            layers=_is_routed,
            heads=size_of("index_n_heads"),
            width=size_of("index_head_dim"),
            block=size_of("index_block_size"),
            top=size_of("index_topk_blocks"),
            local=size_of("index_local_blocks"),
        ),
    ),
    feed=FeedForward(clamped=True),
    experts=Experts(
        router="block_sparse_moe.gate",
        expert=FeedForward(
            at="block_sparse_moe.experts.{}.", gate="w1", up="w3", down="w2", clamped=True, inner=_EXPERT
        ),
        stacked=FeedForward(
            at="block_sparse_moe.experts.",
            fused="gate_up_proj",
            form=Form(weight="", bias="_bias"),
            clamped=True,
            inner=_EXPERT,
        ),
        score="sigmoid",
        correction="block_sparse_moe.e_score_correction_bias",
        scale=number_of("routed_scaling_factor", 2.0),
        shared=FeedForward(
            at="block_sparse_moe.shared_experts.", clamped=True, inner=size_of("shared_intermediate_size")
        ),
        layers=_is_routed,
    ),
    unpacked=lambda _: "no loader of AWQ or GPTQ folders has been compared on MiniMax M3",
)

FAMILY = Family(
    name=_FAMILY,
    models="MiniMax-M3 (text only)",
    architectures=(_TEXT, _WITH_IMAGES),
    gguf_arch="minimax-m3",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    text_models={_WITH_IMAGES: (_TEXT, "minimax_m3_vl_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(rf"({TOWERS})|patch_merge_mlp\..*", TOWERS_LEFT_OUT),),
    dimensions=_dimensions,
    rope_kinds=ROPE_KINDS,
    forward=FORWARD,
)
