"""Hunyuan 4: latent attention with an indexer, sinks and a gate, experts, and independent hyper-connections.

Shape of the GGUF: llama.cpp's `hy_v4` architecture (src/models/hy-v4.cpp), which leaves out the layers that predict a
later token. Routed experts limit gate and up. Some layers use the choice of keys of a layer before.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.deepseek import ATTENTION, FEED_FORWARD, V3_FORWARD, matrix
from quantkit.families.deepseek import keys as deepseek_keys
from quantkit.families.deepseek32 import INDEXER, dimensions, indexer_keys
from quantkit.families.deepseek_config import prepare_attention
from quantkit.families.glm4moelite import dense_by_kinds
from quantkit.families.llama import ENDS
from quantkit.forward.config_keys import Config
from quantkit.forward.description import HyperConnections
from quantkit.forward.mixers import Indexer
from quantkit.forward.settings import FUSED_EXPERTS, number_of

_FAMILY = "Hunyuan 4"
_ATTENTION = "model.layers.{layer}.self_attn"
_FULL, _SHARED = "full", "shared"
_STREAM_PARTS = (("fn", ("stream_mix", "streams")), ("base", ("stream_mix",)), ("scale", ("2",)))
_HEAD_PARTS = (("fn", ("n_stream", "streams")), ("base", ("n_stream",)), ("scale", ("1",)))

# transformers' HYV4Config
DEFAULTS: dict[str, dict[str, Any]] = {
    "hy_v4": {
        "hc_eps": 1e-6,
        "hc_magnitude": 2.0,
        "hc_mult": 4,
        "hidden_size": 2816,
        "index_head_dim": 128,
        "index_n_heads": 16,
        "index_topk": 2048,
        "intermediate_size": 6912,
        "kv_lora_rank": 512,
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 768,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 34,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.827,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "v_head_dim": 256,
        "vocab_size": 120832,
    }
}


def _own_indexers(sizes: Hyperparameters) -> Iterable[int]:
    return [layer for layer in range(sizes.n_layer) if _chooses(sizes.config, layer)]


def _chooses(config: Config, layer: int) -> bool:
    return bool(config["indexer_types"][layer] == _FULL)


def _streams(source: str, target: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"model.layers.{{layer}}.{source}.hc_pre.hc_{part}", f"blk.{{layer}}.{target}_{part}.weight", shape)
        for part, shape in _STREAM_PARTS
    )


RULES = (
    *(replace(rule, when=None) for rule in ATTENTION if ".q_proj." not in rule.source),
    Rule(f"{_ATTENTION}.learnable_sink_param", "blk.{layer}.attn_sinks.weight", ("n_head",)),
    matrix(f"{_ATTENTION}.linear_gate", "attn_gate", "values", "hidden"),
    *(replace(rule, layers=_own_indexers) for rule in INDEXER),
    *_streams("hc_attn_layer", "hc_attn"),
    *_streams("hc_mlp_layer", "hc_ffn"),
    *(replace(rule, when=None) for rule in FEED_FORWARD),
    *(Rule(f"model.hc_head.hc_head_{part}", f"output_hc_{part}.weight", shape) for part, shape in _HEAD_PARTS),
    *ENDS,
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse what llama.cpp's graph does not have; state the dense layers, and which layers have an indexer.

    Raises:
        CheckpointError: a setting is missing, or lists of layers do not agree.
        UnsupportedError: a setting that llama.cpp does not run.
    """
    # published files have another number, which the model's class ignores
    optional_size(config, "num_key_value_heads")
    config["num_key_value_heads"] = size(config, "num_attention_heads")
    prepare_attention(config, _FAMILY)
    n_layer = size(config, "num_hidden_layers")
    for name, allowed in (("n_group", 1), ("topk_group", 1), ("tie_word_embeddings", False)):
        only(config, name, allowed, family=_FAMILY)
    only(
        config, "layer_types", ["indexed_attention"] * n_layer, ["deepseek_sparse_attention"] * n_layer, family=_FAMILY
    )
    for name in ("q_lora_rank", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "hc_mult"):
        size(config, name)
    kinds = layer_kinds(config, n_layer, (_FULL, _SHARED), name="indexer_types")
    if kinds is None:
        kinds = [_FULL if layer == 0 or layer % 4 == 1 else _SHARED for layer in range(n_layer)]
    if kinds[0] != _FULL:
        raise CheckpointError("config.json: indexer_types must begin with full; no layer before it has an indexer")
    if size(config, "index_head_dim") <= size(config, "qk_rope_head_dim"):
        raise CheckpointError(
            f"config.json: index_head_dim {config['index_head_dim']} must be more than qk_rope_head_dim"
            f" {config['qk_rope_head_dim']}; correct one of them"
        )
    dense = dense_by_kinds(config)
    only(config, "first_k_dense_replace", dense, family=f"{_FAMILY} of these mlp_layer_types")
    return {**config, "indexer_types": kinds, "first_k_dense_replace": dense}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/hy_v4.py)."""
    config, streams = sizes.config, f"{arch}.hyper_connection"
    limit = number(config, "swiglu_limit") or 0.0
    groups = f"{arch}.expert_group_"
    return [
        *(key for key in deepseek_keys(arch, sizes) if not key.name.startswith(groups)),
        Key(f"{arch}.expert_gating_func", "u32", 2),
        *([Key(f"{arch}.swiglu_clamp_exp", "f32s", [limit] * sizes.n_layer)] if limit > 0 else []),
        Key(f"{streams}.count", "u32", size(config, "hc_mult")),
        Key(f"{streams}.epsilon", "f32", number(config, "hc_eps")),
        Key(f"{streams}.magnitude", "f32", number(config, "hc_magnitude")),
        *indexer_keys(arch, sizes),
        Key(f"{arch}.attention.indexer.types", "bools", [_chooses(config, layer) for layer in range(sizes.n_layer)]),
    ]


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    count = size(sizes.config, "hc_mult")
    return {
        **dimensions(sizes),
        "n_stream": count,
        "stream_mix": 2 * count,
        "streams": count * sizes.hidden,
    }


_EXPERTS = V3_FORWARD.experts
assert _EXPERTS is not None
FORWARD = replace(
    V3_FORWARD,
    attention=replace(
        V3_FORWARD.attention,
        gate="linear_gate",
        sinks="learnable_sink_param",
        value_width=lambda config: int(config["v_head_dim"]),
        indexer=Indexer(pairs="neighbours", rotates_last=True, eps=number_of("rms_norm_eps"), own=_chooses),
    ),
    experts=replace(
        _EXPERTS,
        expert=None,
        stacked=replace(FUSED_EXPERTS, limit_before="swiglu_limit"),
        groups=lambda _: (1, 1),
        scale=number_of("routed_scaling_factor"),
    ),
    hyper_connections=HyperConnections(
        attention="hc_attn_layer.hc_pre.hc",
        feed="hc_mlp_layer.hc_pre.hc",
        head="hc_head.hc_head",
        mixed=False,
        magnitude=number_of("hc_magnitude", 2.0),
    ),
    unpacked=lambda _: "no loader of AWQ or GPTQ folders has been compared on Hunyuan 4",
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="Hy4 preview",
    architectures=("HYV4ForCausalLM",),
    gguf_arch="hy_v4",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=_dimensions,
    dropped=(Dropped(r"model\.mtp_layers\..*", "they predict a later token, which llama.cpp's hy_v4 does not use"),),
    rope_kinds=("default",),
    cautions=lambda _: (
        "llama.cpp rotates neighbouring values of a head, and transformers rotates halves; the published code has not"
        " been compared",
    ),
    # the width follows from the others; the value that a sink begins training with
    no_effect=("head_dim", "learnable_sink_init", "num_key_value_heads", "qk_head_dim"),
    forward=FORWARD,
    traits=Traits(independent_streams=True),
)
