"""NomicBERT: BERT with rotary positions and a gated feed-forward; version 2 has experts in every other layer.

Shape of the GGUF: llama.cpp's `nomic-bert` and `nomic-bert-moe` architectures (src/models/bert.cpp). The experts of
version 2 share one bias, which is not in llama.cpp's graph.
"""

from typing import Any

import numpy as np

from quantkit.families.base.encoder import (
    ENCODER_ROLES,
    as_encoder,
    encoder_cautions,
    encoder_dimensions,
    encoder_keys,
)
from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, optional_size, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.bert import EMBEDDINGS, MASKED_HEAD, POSITION_NUMBERS
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, Experts, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import LAYER_NORM, size_of

# The published code's NomicBertConfig, and transformers' for the rest.
DEFAULTS: dict[str, dict[str, Any]] = {
    "nomic_bert": {
        "vocab_size": 30528,
        "type_vocab_size": 2,
        "rotary_emb_base": 1000.0,
        "max_trained_positions": 2048,
        "moe_every_n_layers": 0,
        "pad_token_id": 0,
    }
}
# The published configs state positions to which the rotation is stretched; llama.cpp does not stretch it.
_TRAINED = 2048
_TRAINED_WITH_EXPERTS = 512

_AT, _TO = "encoder.layers.{layer}", "blk.{layer}"


def _every(config: Config) -> int:
    return int(config.get("moe_every_n_layers") or 0)


def _is_mixture(sizes: Hyperparameters) -> bool:
    return bool(_every(sizes.config))


def _is_dense(sizes: Hyperparameters) -> bool:
    return not _is_mixture(sizes)


def _has_experts(config: Config, layer: int) -> bool:
    every = _every(config)
    return every > 0 and layer % every == 1


def _expert_layers(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if _has_experts(sizes.config, layer)]


def _dense_layers(sizes: Hyperparameters) -> list[int]:
    return [layer for layer in range(sizes.n_layer) if not _has_experts(sizes.config, layer)]


def _rows_of(sizes: Hyperparameters, expert: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.arange(expert * sizes.ffn, (expert + 1) * sizes.ffn, dtype=np.int64)


def _up(sizes: Hyperparameters) -> tuple[Take, ...]:
    """(experts * ffn, hidden) by expert."""
    return tuple(Take(_rows_of(sizes, expert)) for expert in range(sizes.n_expert))


def _down(sizes: Hyperparameters) -> tuple[Take, ...]:
    """(experts * ffn, hidden) by expert, transposed."""
    return tuple(Take(_rows_of(sizes, expert), transposed=True) for expert in range(sizes.n_expert))


def _dense(name: str, target: str, shape: tuple[str, str]) -> tuple[Rule, Rule]:
    """A linear of the layers without experts, which has a bias in a model with experts."""
    source, to = f"{_AT}.mlp.{name}", f"{_TO}.{target}"
    return (
        Rule(f"{source}.weight", f"{to}.weight", shape, layers=_dense_layers),
        Rule(f"{source}.bias", f"{to}.bias", shape[:1], layers=_dense_layers, when=_is_mixture),
    )


RULES = (
    *EMBEDDINGS,
    Rule("emb_ln.weight", "token_embd_norm.weight", ("hidden",)),
    Rule("emb_ln.bias", "token_embd_norm.bias", ("hidden",)),
    *(
        Rule(f"{_AT}.{name}.{kind}", f"{_TO}.{target}.{kind}", ("hidden",))
        for name, target in (("norm1", "attn_output_norm"), ("norm2", "layer_output_norm"))
        for kind in ("weight", "bias")
    ),
    Rule(f"{_AT}.attn.Wqkv.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_AT}.attn.Wqkv.bias", f"{_TO}.attn_qkv.bias", ("qkv",), when=_is_mixture),
    Rule(f"{_AT}.attn.out_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "hidden")),
    Rule(f"{_AT}.attn.out_proj.bias", f"{_TO}.attn_output.bias", ("hidden",), when=_is_mixture),
    Rule(f"{_AT}.mlp.fc11.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden"), when=_is_dense),
    Rule(f"{_AT}.mlp.fc12.weight", f"{_TO}.ffn_gate.weight", ("ffn", "hidden"), when=_is_dense),
    Rule(f"{_AT}.mlp.fc1.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden"), layers=_dense_layers, when=_is_mixture),
    Rule(f"{_AT}.mlp.fc1.bias", f"{_TO}.ffn_up.bias", ("ffn",), layers=_dense_layers, when=_is_mixture),
    *_dense("fc2", "ffn_down", ("hidden", "ffn")),
    *(
        Rule(source, target, shape, layers=_expert_layers, when=_is_mixture, take=take)
        for source, target, shape, take in (
            (f"{_AT}.mlp.router.layer.weight", f"{_TO}.ffn_gate_inp.weight", ("n_expert", "hidden"), None),
            (f"{_AT}.mlp.experts.mlp.w1", f"{_TO}.ffn_up_exps.weight", ("expert_rows", "hidden"), _up),
            (f"{_AT}.mlp.experts.mlp.w2", f"{_TO}.ffn_down_exps.weight", ("expert_rows", "hidden"), _down),
        )
    ),
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes under their usual names; refuse what llama.cpp's graph has built in otherwise."""
    mixture = bool(_every(config))
    name = "NomicBERT"
    only(config, "activation_function", "gelu" if mixture else "swiglu", family=name)
    only(config, "hidden_act", "silu", "swish", family=name)
    only(config, "causal", False, family=name)
    only(config, "prenorm", False, family=name)
    only(config, "use_rms_norm", False, family=name)
    only(config, "parallel_block", False, family=name)
    only(config, "rotary_emb_fraction", 1.0, family=name)
    only(config, "rotary_emb_interleaved", False, family=name)
    only(config, "num_shared_experts", 0, family=name)
    only(config, "moe_normalize_expert_weights", False, family=name)
    only(config, "expert_choice_router", False, family=name)
    for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"):
        only(config, key, mixture, family=name)
    as_encoder(config, "NomicBertModel")
    sizes = {
        "hidden_size": size(config, "n_embd", "hidden_size"),
        "num_hidden_layers": size(config, "n_layer", "num_hidden_layers"),
        "num_attention_heads": size(config, "n_head", "num_attention_heads"),
        "intermediate_size": size(config, "n_inner", "intermediate_size"),
        "layer_norm_eps": config.get("layer_norm_epsilon") or config.get("layer_norm_eps") or 1e-12,
        "max_position_embeddings": _positions(config, mixture=mixture),
    }
    experts = {"num_experts_per_tok": size(config, "moe_top_k")} if mixture else {}
    return {**config, **sizes, **experts}


def _positions(config: dict[str, Any], *, mixture: bool) -> int:
    stated = size(config, "max_position_embeddings", "n_positions")
    trained = optional_size(config, "max_trained_positions") or _TRAINED
    return min(stated, trained, _TRAINED_WITH_EXPERTS) if mixture else min(stated, trained)


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The encoder's keys; with experts, the layers that have them and the number of experts per token."""
    used = f"{arch}.expert_used_count"
    common = [key for key in encoder_keys(arch, sizes) if key.name != used]
    if _is_dense(sizes):
        return common
    return [
        *common,
        Key(f"{arch}.moe_every_n_layers", "u32", _every(sizes.config)),
        Key(used, "u32", sizes.n_expert_used),
    ]


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {
        **encoder_dimensions(sizes),
        "qkv": 3 * sizes.hidden,
        "expert_rows": sizes.n_expert * sizes.ffn,
    }


_INNER = size_of("intermediate_size", "n_inner")


def _rope(config: Config, _layer: int) -> Config:
    stated = config.get("rope_parameters") or {}
    return {**config, "rope_theta": given(config, "rope_theta", "rotary_emb_base", default=1000.0), **stated}


def _feed(config: Config) -> dict[str, Any]:
    if not _every(config):
        return {}
    feed = FeedForward(gate=None, up="fc1", down="fc2", inner=_INNER, default_activation="gelu")
    return {"feed": feed, "experts": _EXPERTS}


_EXPERTS = Experts(
    router="mlp.router.layer",
    used=("num_experts_per_tok", "moe_top_k"),
    stacked=FeedForward(
        at="mlp.experts.mlp.",
        gate=None,
        up="w1",
        down="w2",
        form=Form(weight="", bias=".bias"),
        down_turned=True,
        inner=_INNER,
        default_activation="gelu",
    ),
    normalised=lambda _: False,
    layers=_has_experts,
)

FORWARD = Architecture(
    base="",
    embedding="embeddings.word_embeddings",
    embedding_norm="emb_ln",
    token_types="embeddings.token_type_embeddings",
    layer="encoder.layers.{}.",
    norm=LAYER_NORM,
    attention_norm=None,
    feed_norm=None,
    sum_norms=("norm1", "norm2"),
    attention=Attention(causal=False, at="attn.", fused="Wqkv", out="out_proj", rope=_rope),
    feed=FeedForward(gate="fc12", up="fc11", down="fc2", inner=_INNER),
    variant=_feed,
    last_norm="",
    head="",
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
)

FAMILY = Family(
    name="NomicBERT",
    models="nomic-embed-text v1, v1.5 and v2-moe",
    architectures=("NomicBertModel", "NomicBertForPreTraining", "NomicBertForMaskedLM"),
    gguf_arch="nomic-bert",
    arch_of=lambda sizes: "nomic-bert-moe" if _is_mixture(sizes) else "nomic-bert",
    other_archs=("nomic-bert-moe",),
    rules=RULES,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^(bert|nomic_bert)\.", ""),),
    dropped=(
        Dropped(r"(cls|lm_head)\..*", MASKED_HEAD),
        Dropped(r".*\.mlp\.experts\.bias", "llama.cpp adds no bias after the experts"),
        POSITION_NUMBERS,
    ),
    dimensions=_dimensions,
    cautions=encoder_cautions,
    rope_kinds=("default",),
    forward={"NomicBertModel": FORWARD},
    traits=Traits(encoder=True, layer_norm=True, expert_weights_summed_to_one=False),
    token_roles=ENCODER_ROLES,
)
