"""DeepSeek-V4: compressed attention, hyper-connections, and experts in MXFP4, which some layers choose by token.

Shape of the GGUF: llama.cpp's `deepseek4` architecture (src/models/deepseek4.cpp). The checkpoint has the names of
DeepSeek's own code. Published experts are in MXFP4 (OCP Microscaling Formats 1.0), which ggml has as a type: the same
bits in another order, without loss.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek4_config import HEAVY, NAME, SPARSE, STREAMS, positive, prepare
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward, HyperConnections
from quantkit.forward.mixers import CompressedAttention
from quantkit.forward.parts import Form
from quantkit.forward.settings import number_of

_AT, _TO = "layers.{layer}", "blk.{layer}"
_BLOCK_VALUES, _BLOCK_BYTES = 32, 16

# transformers' DeepseekV4Config.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v4": {
        "compress_rope_theta": 160000.0,
        "hc_eps": 1e-6,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 512,
        "hidden_size": 4096,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 512,
        "max_position_embeddings": 1048576,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 43,
        "num_key_value_heads": 1,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "q_lora_rank": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 128,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "vocab_size": 129280,
    }
}


def _hashed(sizes: Hyperparameters) -> Iterable[int]:
    """The first layers, whose experts a table chooses by token."""
    return range(min(int(number(sizes.config, "num_hash_layers") or 0), sizes.n_layer))


def _scored(sizes: Hyperparameters) -> Iterable[int]:
    return range(len(list(_hashed(sizes))), sizes.n_layer)


def _with_ratio(*ratios: int) -> Callable[[Hyperparameters], Iterable[int]]:
    return lambda sizes: [n for n in range(sizes.n_layer) if sizes.config["compress_ratios"][n] in ratios]


def _matrix(source: str, target: str, *shape: str, **more: Any) -> Rule:
    return Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", shape, **more)


def _bare(source: str, target: str, *shape: str, **more: Any) -> Rule:
    return Rule(f"{_AT}.{source}", f"{_TO}.{target}.weight", shape, **more)


def _streams(part: str) -> tuple[Rule, ...]:
    return (
        _bare(f"hc_{part}_fn", f"hc_{part}_fn", "stream_mix", "streams"),
        _bare(f"hc_{part}_base", f"hc_{part}_base", "stream_mix"),
        _bare(f"hc_{part}_scale", f"hc_{part}_scale", "3"),
    )


def _compressor(at: str, to: str, width: str, channels: str, ratios: tuple[int, ...]) -> tuple[Rule, ...]:
    layers = _with_ratio(*ratios)
    return (
        _bare(f"{at}.ape", f"{to}_ape", "ratio", channels, layers=layers),
        _matrix(f"{at}.wkv", f"{to}_kv", channels, "hidden", layers=layers),
        _matrix(f"{at}.wgate", f"{to}_gate", channels, "hidden", layers=layers),
        _matrix(f"{at}.norm", f"{to}_norm", width, layers=layers),
    )


def _experts(name: str, target: str, rows: str, columns: str) -> tuple[Rule, ...]:
    """An expert's linear in MXFP4 blocks, which the checkpoint shows as gpt-oss has them, or unpacked."""
    source, to = f"{_AT}.ffn.experts.{{expert}}.{name}", f"{_TO}.{target}.weight"
    blocks = (rows, f"{columns}_blocks", "block")
    return (
        Rule(f"{source}_blocks", to, blocks, scales=f"{source}_scales"),
        Rule(f"{source}.weight", to, (rows, columns)),
    )


RULES = (
    _matrix("attn_norm", "attn_norm", "hidden"),
    _bare("attn.attn_sink", "attn_sinks", "n_head"),
    _matrix("attn.wq_a", "attn_q_a", "q_latent", "hidden"),
    _matrix("attn.q_norm", "attn_q_a_norm", "q_latent"),
    _matrix("attn.wq_b", "attn_q_b", "q", "q_latent"),
    _matrix("attn.wkv", "attn_kv", "head_dim", "hidden"),
    _matrix("attn.kv_norm", "attn_kv_a_norm", "head_dim"),
    _matrix("attn.wo_a", "attn_output_a", "groups", "group"),
    _matrix("attn.wo_b", "attn_output_b", "hidden", "groups"),
    *_compressor("attn.compressor", "attn_compressor", "head_dim", "channels", (SPARSE, HEAVY)),
    _matrix("attn.indexer.weights_proj", "indexer.proj", "index_heads", "hidden", layers=_with_ratio(SPARSE)),
    _matrix("attn.indexer.wq_b", "indexer.attn_q_b", "index_queries", "q_latent", layers=_with_ratio(SPARSE)),
    *_compressor("attn.indexer.compressor", "indexer_compressor", "index_width", "index_channels", (SPARSE,)),
    *_streams("attn"),
    _matrix("ffn_norm", "ffn_norm", "hidden"),
    *_streams("ffn"),
    _matrix("ffn.gate", "ffn_gate_inp", "n_expert", "hidden"),
    Rule(f"{_AT}.ffn.gate.bias", f"{_TO}.exp_probs_b.bias", ("n_expert",), layers=_scored),
    Rule(f"{_AT}.ffn.gate.bias_vl", f"{_TO}.exp_probs_b_vl.bias", ("n_expert",), required=False),
    _bare("ffn.gate.tid2eid", "ffn_gate_tid2eid", "vocab", "n_expert_used", layers=_hashed),
    *_experts("w1", "ffn_gate_exps", "expert_ffn", "hidden"),
    *_experts("w2", "ffn_down_exps", "hidden", "expert_ffn"),
    *_experts("w3", "ffn_up_exps", "expert_ffn", "hidden"),
    _matrix("ffn.shared_experts.w1", "ffn_gate_shexp", "shared_ffn", "hidden"),
    _matrix("ffn.shared_experts.w2", "ffn_down_shexp", "hidden", "shared_ffn"),
    _matrix("ffn.shared_experts.w3", "ffn_up_shexp", "shared_ffn", "hidden"),
    Rule("embed.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("norm.weight", "output_norm.weight", ("hidden",)),
    Rule("head.weight", "output.weight", ("vocab", "hidden")),
    Rule("hc_head_fn", "output_hc_fn.weight", (str(STREAMS), "streams")),
    Rule("hc_head_base", "output_hc_base.weight", (str(STREAMS),)),
    Rule("hc_head_scale", "output_hc_scale.weight", ("1",)),
)


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    config = sizes.config
    expert, groups = size(config, "moe_intermediate_size"), size(config, "o_groups")
    heads, width = size(config, "index_n_heads"), size(config, "index_head_dim")
    return {
        "q_latent": size(config, "q_lora_rank"),
        "groups": groups * size(config, "o_lora_rank"),
        "group": sizes.n_head * sizes.head_dim // groups,
        "index_heads": heads,
        "index_width": width,
        "index_queries": heads * width,
        "index_channels": 2 * width,
        "streams": STREAMS * sizes.hidden,
        "stream_mix": (2 + STREAMS) * STREAMS,
        "expert_ffn": expert,
        "shared_ffn": expert * size(config, "n_shared_experts"),
        # for rows that are not whole blocks, the shape check of the blocks fails
        "hidden_blocks": sizes.hidden // _BLOCK_VALUES,
        "expert_ffn_blocks": expert // _BLOCK_VALUES,
        "block": _BLOCK_BYTES,
    }


def _layer_dimensions(sizes: Hyperparameters, layer: int) -> dict[str, int]:
    ratio = sizes.config["compress_ratios"][layer]
    return {"ratio": ratio, "channels": (2 if ratio == SPARSE else 1) * sizes.head_dim}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/deepseek.py)."""
    config, limit = sizes.config, positive(sizes.config, "swiglu_limit")
    attention, streams = f"{arch}.attention", f"{arch}.hyper_connection"
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.rope.dimension_count", "u32", config["qk_rope_head_dim"]),
        Key(f"{attention}.q_lora_rank", "u32", size(config, "q_lora_rank")),
        Key(f"{attention}.sliding_window", "u32", size(config, "sliding_window")),
        Key(f"{arch}.expert_feed_forward_length", "u32", size(config, "moe_intermediate_size")),
        Key(f"{arch}.expert_shared_count", "u32", size(config, "n_shared_experts")),
        Key(f"{arch}.expert_weights_scale", "f32", positive(config, "routed_scaling_factor")),
        Key(f"{arch}.expert_weights_norm", "bool", True),
        Key(f"{arch}.swiglu_clamp_exp", "f32s", [limit] * sizes.n_layer),
        Key(f"{arch}.swiglu_clamp_shexp", "f32s", [limit] * sizes.n_layer),
        Key(f"{attention}.indexer.head_count", "u32", size(config, "index_n_heads")),
        Key(f"{attention}.indexer.key_length", "u32", size(config, "index_head_dim")),
        Key(f"{attention}.indexer.top_k", "u32", size(config, "index_topk")),
        Key(f"{attention}.output_group_count", "u32", size(config, "o_groups")),
        Key(f"{attention}.output_lora_rank", "u32", size(config, "o_lora_rank")),
        Key(f"{attention}.compress_ratios", "i32s", config["compress_ratios"]),
        Key(f"{attention}.compress_rope_freq_base", "f32", positive(config, "compress_rope_theta")),
        Key(f"{streams}.count", "u32", STREAMS),
        Key(f"{streams}.sinkhorn_iterations", "u32", size(config, "hc_sinkhorn_iters")),
        Key(f"{streams}.epsilon", "f32", positive(config, "hc_eps")),
        Key(f"{arch}.hash_layer_count", "u32", config["num_hash_layers"]),
        Key(f"{arch}.embedding_length_out", "u32", STREAMS * sizes.hidden),
    ]


def _layer_rope(config: Config, layer: int) -> Config:
    """Layers that compress have a base of their own and the scaling, without its factor on cos and sin."""
    if not config["compress_ratios"][layer]:
        return {**config, "rope_scaling": None, "rope_parameters": None}
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    scaling |= {"rope_theta": config["compress_rope_theta"], "attention_factor": 1.0}
    return {**config, "rope_scaling": None, "rope_parameters": scaling}


_EXPERT = FeedForward(
    at="ffn.experts.{}.",
    gate="w1",
    up="w3",
    down="w2",
    limit_before="swiglu_limit",
    inner=lambda config: int(config["moe_intermediate_size"]),
)

FORWARD = Architecture(
    base="",
    embedding="embed",
    attention_norm="attn_norm",
    feed_norm="ffn_norm",
    compressed=CompressedAttention(rope=_layer_rope),
    hyper_connections=HyperConnections(),
    experts=Experts(
        router="ffn.gate",
        # the vector `ffn.gate.bias` is not the linear's
        router_form=Form(bias="_bias"),
        expert=_EXPERT,
        count=("n_routed_experts",),
        score="sqrt_softplus",
        table="ffn.gate.tid2eid",
        correction="ffn.gate.bias",
        scale=number_of("routed_scaling_factor"),
        shared=replace(
            _EXPERT,
            at="ffn.shared_experts.",
            inner=lambda config: int(config["moe_intermediate_size"]) * int(config["n_shared_experts"]),
        ),
    ),
    head="head",
    unpacked=lambda _: "transformers stacks DeepSeek-V4's experts in one tensor",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=NAME,
    models="DeepSeek-V4-Flash, V4-Pro",
    architectures=("DeepseekV4ForCausalLM",),
    gguf_arch="deepseek4",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=prepare,
    # as transformers saves them
    rename=(
        (r"^model\.", ""),
        (r"^embed_tokens\.", "embed."),
        (r"^lm_head\.", "head."),
        (r"^hc_head\.hc_", "hc_head_"),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
    ),
    dropped=(
        Dropped(r"(model\.)?mtp\..*", "llama.cpp's converter leaves the layers that predict a later token out"),
        Dropped(r"(aligner\.|image_|vision).*", "the vision tower is no part of the text model"),
        # the table chooses there
        Dropped(r"(model\.)?layers\.{layer}\.ffn\.gate\.bias", layers=_hashed),
    ),
    dimensions=_dimensions,
    layer_dimensions=_layer_dimensions,
    rope_kinds=("default", "yarn"),
    forward=FORWARD,
    traits=Traits(compressed=True),
)
