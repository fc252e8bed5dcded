"""ModernBERT: norms before each part, rotary positions, a gated feed-forward, a window in two of three layers.

Shape of the GGUF: llama.cpp's `modern-bert` architecture (src/models/modern-bert.cpp). A classifier pools the hidden
states before its head, as `classifier_pooling` states.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.encoder import (
    as_encoder,
    encoder_cautions,
    encoder_dimensions,
    encoder_keys,
    has_classifier,
)
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.layer_kinds import layer_kinds
from quantkit.families.base.refusals import GELU, SILU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM, slides
from quantkit.tokenizer.roles import TokenRoles

# transformers' ModernBertConfig.
_GLOBAL_BASE, _LOCAL_BASE, _PATTERN = 160000.0, 10000.0, 3
DEFAULTS: dict[str, dict[str, Any]] = {
    "modernbert": {
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "pad_token_id": 50283,
        "bos_token_id": 50281,
        "eos_token_id": 50282,
        "cls_token_id": 50281,
        "sep_token_id": 50282,
        "local_attention": 128,
        "classifier_pooling": "cls",
        "classifier_activation": "gelu",
    }
}
# llama.cpp's llama_pooling_type
_CLASSIFIER_POOLING = {"mean": 1, "cls": 2}
_KINDS = {"sliding_attention": True, "full_attention": False}

_ROLES = TokenRoles(adds={"bos": True, "eos": True, "sep": True}, adds_first=True)

_AT, _TO = "layers.{layer}", "blk.{layer}"
RULES = (
    Rule("embeddings.tok_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("embeddings.norm.weight", "token_embd_norm.weight", ("hidden",)),
    Rule(f"{_AT}.attn_norm.weight", f"{_TO}.attn_norm.weight", ("hidden",), layers=lambda s: range(1, s.n_layer)),
    Rule(f"{_AT}.attn.Wqkv.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_AT}.attn.Wo.weight", f"{_TO}.attn_output.weight", ("hidden", "hidden")),
    Rule(f"{_AT}.mlp_norm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.mlp.Wi.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden")),
    Rule(f"{_AT}.mlp.Wo.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule("final_norm.weight", "output_norm.weight", ("hidden",)),
    # the converter keeps this head of a masked model too; only a classifier's is run
    Rule("head.dense.weight", "cls.weight", ("hidden", "hidden"), required=False),
    Rule("head.norm.weight", "cls.norm.weight", ("hidden",), required=False),
    Rule("classifier.weight", "cls.output.weight", ("labels", "hidden"), when=has_classifier),
    Rule("classifier.bias", "cls.output.bias", ("labels",), when=has_classifier),
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary bases and the epsilon under their usual names; refuse what llama.cpp does not run."""
    family = "ModernBERT"
    only(config, "hidden_activation", *GELU, *SILU, family=family)
    for key in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"):
        only(config, key, False, family=family)
    only(config, "classifier_pooling", *_CLASSIFIER_POOLING, family=family)
    only(config, "classifier_activation", "gelu", "silu", "tanh", family=family)
    as_encoder(config, "ModernBertModel")
    stated = config.get("rope_parameters")
    ropes = {kind: _rope_of(stated, kind) for kind in _KINDS}
    for kind, rope in ropes.items():
        if rope.get("rope_type", "default") != "default":
            raise UnsupportedError(
                f"config.json: {kind} has rope scaling {rope['rope_type']!r}; llama.cpp runs ModernBERT without scaling"
            )
    bases = {
        "rope_theta": number(ropes["full_attention"], "rope_theta")
        or number(config, "global_rope_theta")
        or _GLOBAL_BASE,
        "local_rope_theta": number(ropes["sliding_attention"], "rope_theta")
        or number(config, "local_rope_theta")
        or _LOCAL_BASE,
    }
    return {**config, **bases, "rope_parameters": None, "layer_norm_eps": config.get("norm_eps")}


def _rope_of(stated: Any, kind: str) -> Mapping[str, Any]:
    rope = stated.get(kind) if isinstance(stated, Mapping) else None
    return rope if isinstance(rope, Mapping) else {}


def _pattern(config: Config) -> int:
    return optional_size(config, "global_attn_every_n_layers") or _PATTERN


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The encoder's keys, the window and its layers, and the activation."""
    config = sizes.config
    common = encoder_keys(arch, sizes)
    labels = [key for key in common if key.name.endswith(".output_labels")]
    kinds = layer_kinds(config, sizes.n_layer, _KINDS)
    regular = [bool(layer % _pattern(config)) for layer in range(sizes.n_layer)]
    layers = regular if kinds is None else [_KINDS[kind] for kind in kinds]
    pattern = f"{arch}.attention.sliding_window_pattern"
    result = [
        *(key for key in common if key not in labels),
        Key(f"{arch}.classifier.pooling_type", "u32", _CLASSIFIER_POOLING[config["classifier_pooling"]]),
        Key(f"{arch}.classifier.activation", "str", config["classifier_activation"]),
        *labels,
        Key(f"{arch}.attention.sliding_window", "u32", size(config, "local_attention")),
    ]
    if layers != regular:
        result.append(Key(pattern, "bools", layers))
    elif config.get("global_attn_every_n_layers") is not None:
        result.append(Key(pattern, "u32", _pattern(config)))
    return [
        *result,
        Key(f"{arch}.rope.scaling.type", "str", "none"),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.hidden_activation", "str", config["hidden_activation"]),
    ]


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {**encoder_dimensions(sizes), "qkv": 3 * sizes.hidden, "gate_up": 2 * sizes.ffn}


def _slides(config: Config, layer: int) -> bool:
    return slides(config, layer, bool(layer % _pattern(config)))


def _rope(config: Config, layer: int) -> Config:
    kind, key, base = (
        ("sliding_attention", "local_rope_theta", _LOCAL_BASE)
        if _slides(config, layer)
        else ("full_attention", "global_rope_theta", _GLOBAL_BASE)
    )
    stated = _rope_of(config.get("rope_parameters"), kind)
    theta = given(stated, "rope_theta", default=given(config, key, "rope_theta", default=base))
    return {**config, "rope_parameters": None, "rope_theta": theta}


FORWARD = Architecture(
    base="",
    embedding="embeddings.tok_embeddings",
    embedding_norm="embeddings.norm",
    layer="layers.{}.",
    norm=LAYER_NORM,
    attention_norm="attn_norm",
    first_normed=False,
    feed_norm="mlp_norm",
    attention=Attention(
        causal=False,
        at="attn.",
        fused="Wqkv",
        out="Wo",
        rope=_rope,
        window=lambda config, layer: config.get("local_attention", 128) if _slides(config, layer) else None,
    ),
    feed=FeedForward(gate=None, fused="Wi", down="Wo", activation=("hidden_activation",), default_activation="gelu"),
    last_norm="final_norm",
    head="",
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run decoders, and this model is an encoder",
)

FAMILY = Family(
    name="ModernBERT",
    models="ModernBERT, gte-modernbert, modernbert-embed, granite-embedding R2; rerankers made of it",
    architectures=("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"),
    gguf_arch="modern-bert",
    rules=RULES,
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    rename=((r"^model\.", ""),),
    dropped=(Dropped(r"decoder\..*", "they predict masked tokens; the GGUF gives embeddings"),),
    dimensions=_dimensions,
    cautions=encoder_cautions,
    rope_kinds=("default",),
    no_effect=(
        *("cls_token_id", "decoder_bias", "deterministic_flash_attn", "initializer_cutoff_factor", "mlp_dropout"),
        *("sparse_pred_ignore_index", "sparse_prediction"),
    ),
    forward={"ModernBertModel": FORWARD},
    traits=Traits(encoder=True, layer_norm=True, sliding_every=3),
    token_roles=_ROLES,
)
