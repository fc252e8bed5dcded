"""DBRX: LayerNorms without biases, clipped queries, keys and values in one matrix, experts under one another.

Shape of the GGUF: llama.cpp's `dbrx` architecture (src/models/dbrx.cpp). A checkpoint has three tensors for the experts
of a layer, each (experts * inner width, hidden); the third one is the down projection, transposed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.refusals import SILU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import LAYER_NORM, size_of

_AT, _TO = "transformer.blocks.{layer}", "blk.{layer}"
_NORM, _FFN = f"{_AT}.norm_attn_norm", f"{_AT}.ffn"
_FAMILY = "DBRX"
_EPS = 1e-5


def _one_by_one(*, transposed: bool = False) -> Callable[[Hyperparameters], tuple[Take, ...]]:
    """Each expert's rows of a tensor that has all of them."""

    def take(sizes: Hyperparameters) -> tuple[Take, ...]:
        cuts = (rows(expert * sizes.ffn, sizes.ffn) for expert in range(sizes.n_expert))
        return tuple(Take(cut.rows, transposed=transposed) for cut in cuts)

    return take


RULES = (
    Rule("transformer.wte.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule(f"{_NORM}.norm_1.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_NORM}.attn.Wqkv.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_NORM}.attn.out_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "hidden")),
    Rule(f"{_NORM}.norm_2.weight", f"{_TO}.attn_output_norm.weight", ("hidden",)),
    Rule(f"{_FFN}.router.layer.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden")),
    *(
        Rule(
            f"{_FFN}.experts.mlp.{source}",
            f"{_TO}.ffn_{target}_exps.weight",
            ("all_experts", "hidden"),
            take=_one_by_one(transposed=target == "down"),
        )
        for source, target in (("w1", "gate"), ("v1", "up"), ("w2", "down"))
    ),
    Rule("transformer.norm_f.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the settings of attention and experts under the usual names.

    transformers 5 moves the rotary base into `rope_parameters`; published files have it with attention's settings.
    """
    attention, experts = _section(config, "attn_config"), _section(config, "ffn_config")
    flat = {
        **config,
        "clip_qkv": attention.get("clip_qkv"),
        "intermediate_size": experts.get("ffn_hidden_size", 3584),
        "num_experts_per_tok": experts.get("moe_top_k", 1),
        "num_key_value_heads": attention.get("kv_n_heads", 1),
        "num_local_experts": experts.get("moe_num_experts", 4),
    }
    rope = {**_section(config, "rope_scaling"), **_section(config, "rope_parameters")}
    theta = attention.get("rope_theta")
    if theta is None:
        theta = rope.get("rope_theta", 10000.0)
    return {**flat, "rope_parameters": {**rope, "rope_theta": theta}}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that differ from llama.cpp's graph: experts whose weights do not sum to one, no clipping."""
    experts, flat = _section(config, "ffn_config"), _flat(config)
    only(_section(experts, "ffn_act_fn"), "name", *SILU, family=_FAMILY)
    only(config, "tie_word_embeddings", False, family=_FAMILY)
    if (power := experts.get("moe_normalize_expert_weights", 1.0)) != 1:
        raise UnsupportedError(
            f"config.json: moe_normalize_expert_weights is {power}, but llama.cpp runs {_FAMILY} only with 1; a GGUF"
            " cannot express this setting"
        )
    if not (number(flat, "clip_qkv") or 0.0) > 0:
        raise UnsupportedError(
            f"config.json: clip_qkv is {flat['clip_qkv']}, but llama.cpp runs {_FAMILY} only with a positive limit; a"
            " GGUF cannot express this setting"
        )
    used, count = size(flat, "num_experts_per_tok"), size(flat, "num_local_experts")
    if used > count:
        raise CheckpointError(f"config.json: moe_top_k {used} is more than moe_num_experts {count}")
    return {
        **flat,
        "hidden_size": size(config, "d_model"),
        "max_position_embeddings": size(config, "max_seq_len"),
        "num_attention_heads": size(config, "n_heads"),
        "num_hidden_layers": size(config, "n_layers"),
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/dbrx.py)."""
    return [
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", sizes.n_head_kv),
        Key(f"{arch}.rope.freq_base", "f32", sizes.rope["rope_theta"]),
        Key(f"{arch}.attention.clamp_kqv", "f32", sizes.config["clip_qkv"]),
        Key(f"{arch}.expert_count", "u32", sizes.n_expert),
        Key(f"{arch}.expert_used_count", "u32", sizes.n_expert_used),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", _EPS),
    ]


def _per_layer(config: Config, _layer: int) -> Config:
    return _flat(config)


FORWARD = Architecture(
    base="transformer.",
    embedding="wte",
    layer="blocks.{}.",
    norm=LAYER_NORM,
    attention_norm="norm_attn_norm.norm_1",
    feed_norm="norm_attn_norm.norm_2",
    attention=Attention(at="norm_attn_norm.attn.", fused="Wqkv", out="out_proj", clip="clip_qkv"),
    experts=Experts(
        router="ffn.router.layer",
        stacked=FeedForward(
            at="ffn.experts.mlp.",
            gate="w1",
            up="v1",
            down="w2",
            form=Form(weight="", bias="_bias"),
            down_turned=True,
            inner=size_of("intermediate_size"),
            activation=(),
        ),
    ),
    last_norm="norm_f",
    per_layer=_per_layer,
)

FAMILY = Family(
    name=_FAMILY,
    models="DBRX base and instruct",
    architectures=("DbrxForCausalLM",),
    gguf_arch="dbrx",
    rules=RULES,
    keys=_keys,
    # transformers' DbrxConfig
    defaults={
        "dbrx": {"d_model": 2048, "max_seq_len": 2048, "n_heads": 16, "n_layers": 24, "tie_word_embeddings": False}
    },
    prepare=_prepare,
    dimensions=lambda sizes: {
        "all_experts": sizes.n_expert * sizes.ffn,
        "qkv": sizes.hidden + 2 * sizes.n_head_kv * sizes.head_dim,
    },
    rope_kinds=("default",),
    # training, and what the class computes from the settings of attention
    no_effect=("emb_pdrop", "num_key_value_heads"),
    forward=FORWARD,
    traits=Traits(layer_norm=True, feed_norm="attn_output_norm"),
)
