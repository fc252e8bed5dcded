"""RWKV 7 (Goose): a state for each head that a token decays, rewrites and reads, and values mixed with the first
layer's.

Shape of the GGUF: llama.cpp's `rwkv7` architecture (src/models/rwkv7.cpp, rwkv7-base.cpp). Two layouts are published:
flash-linear-attention's (`attn.w_lora.lora.0.weight`) and the original one (`attention.w1`, stored the other way
round). The method is in arXiv 2503.14456.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.rwkv6 import CONTEXT, NOT_LOADED, heads_of, one_epsilon
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm
from quantkit.forward.recurrent_mixers import ChannelMix, Goose, TimeMix

_FAMILY = "RWKV 7"
_MIXED = ("r", "w", "k", "v", "a", "g")
_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_TIME = f"{_AT}.attn"
_FIRST = ("1", "1", "hidden")
# Name of a low-rank part -> its names in config.json, and exponent and factor of the width where none is stated.
_RANKS = {
    "w": ("lora_rank_decay", "decay_low_rank_dim", 0.5, 1.8),
    "a": ("lora_rank_iclr", "a_low_rank_dim", 0.5, 1.8),
    "v": ("lora_rank_value_residual_mix", "v_low_rank_dim", 0.5, 1.3),
    "g": ("lora_rank_gate", "gate_low_rank_dim", 0.8, 0.6),
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {"head_width": sizes.head_dim, **{f"{part}_rank": _rank(sizes.config, part) for part in _RANKS}}


def _rank(config: Mapping[str, Any], part: str) -> int:
    original, of_fla, exponent, factor = _RANKS[part]
    stated = optional_size(config, original, of_fla)
    return stated or max(1, round(int(config["hidden_size"]) ** exponent * factor / 32)) * 32


def _width(config: Mapping[str, Any]) -> int:
    return size(config, "head_size", "head_dim")


def _heads(config: Mapping[str, Any]) -> int:
    return size(config, "hidden_size") // _width(config)


def _inner(config: Mapping[str, Any]) -> int:
    return optional_size(config, "intermediate_size") or 4 * size(config, "hidden_size")


def _turned(_sizes: Hyperparameters) -> Take:
    return Take(transposed=True)


def _later(sizes: Hyperparameters) -> range:
    return range(1, sizes.n_layer)


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{source}.{part}", f"{target}.{part}", ("hidden",)) for part in ("weight", "bias"))


def _vector(source: str, target: str, **more: Any) -> tuple[Rule, ...]:
    """A vector, which some checkpoints store with two axes of one in front."""
    return (
        Rule(source, target, ("hidden",), **more),
        Rule(source, target, _FIRST, reshaped=("hidden",), **more),
    )


def _low_rank(part: str, target: str | None = None, **more: Any) -> tuple[Rule, ...]:
    """Two matrices in either layout, and the vector that is added."""
    rank, to = f"{part}_rank", f"{_TO}.time_mix_{target or part}"
    return (
        Rule(f"{_TIME}.{part}_lora.lora.0.weight", f"{to}1.weight", (rank, "hidden"), **more),
        Rule(f"{_TIME}.{part}1", f"{to}1.weight", ("hidden", rank), take=_turned, **more),
        Rule(f"{_TIME}.{part}_lora.lora.2.weight", f"{to}2.weight", ("hidden", rank), **more),
        Rule(f"{_TIME}.{part}2", f"{to}2.weight", (rank, "hidden"), take=_turned, **more),
        *(
            ()
            if part == "g"
            else (
                Rule(f"{_TIME}.{part}_lora.lora.2.bias", f"{to}0.weight", ("hidden",), **more),
                *_vector(f"{_TIME}.{part}0", f"{to}0.weight", **more),
            )
        ),
    )


def _first_layer(_sizes: Hyperparameters) -> range:
    return range(1)


def _mixed(source: str, shape: tuple[str, ...], parts: tuple[str, ...] = ()) -> Rule:
    """How much of the token before each of six mixtures takes."""
    target, reshaped = f"{_TO}.time_mix_lerp_fused.weight", ("6", "1", "1", "hidden")
    return Rule(f"{_TIME}.{source}", target, shape, parts=parts, reshaped=reshaped)


RULES = (
    Rule("model.embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    *_norm("model.layers.0.pre_norm", "token_embd_norm"),
    *_norm(f"{_AT}.attn_norm", f"{_TO}.attn_norm"),
    *_norm(f"{_AT}.ffn_norm", f"{_TO}.attn_norm_2"),
    *_low_rank("w"),
    *_low_rank("a"),
    # the first layer has no values to mix with, and llama.cpp wants the tensors all the same
    *_low_rank("a", target="v", layers=_first_layer),
    *_low_rank("v", layers=_later),
    *_low_rank("g"),
    _mixed("x_{part}", _FIRST, _MIXED),
    _mixed("x_{part}", ("hidden",), _MIXED),
    _mixed("x_x", ("6", "hidden")),
    *_vector(f"{_TIME}.k_k", f"{_TO}.time_mix_k_k.weight"),
    *_vector(f"{_TIME}.k_a", f"{_TO}.time_mix_k_a.weight"),
    Rule(f"{_TIME}.r_k", f"{_TO}.time_mix_r_k.weight", ("n_head", "head_width"), reshaped=("hidden",)),
    *(
        Rule(f"{_TIME}.{source}.weight", f"{_TO}.time_mix_{name}.weight", ("hidden", "hidden"))
        for source, name in (("r_proj", "receptance"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output"))
    ),
    *_norm(f"{_TIME}.g_norm", f"{_TO}.time_mix_ln"),
    *_vector(f"{_AT}.ffn.x_k", f"{_TO}.channel_mix_lerp_k.weight"),
    Rule(f"{_AT}.ffn.key.weight", f"{_TO}.channel_mix_key.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.ffn.value.weight", f"{_TO}.channel_mix_value.weight", ("hidden", "ffn")),
    *_norm("model.norm", "output_norm"),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)
# Both layouts under flash-linear-attention's names.
_RENAME = (
    (r"^model\.blocks\.", "model.layers."),
    (r"^(model\.layers\.\d+\.)(self_attn|attention)\.", r"\1attn."),
    (r"\.attn\.time_mixer\.", ".attn."),
    (r"^(model\.layers\.\d+\.)feed_forward\.", r"\1ffn."),
    (r"\.attn\.ln_x\.", ".attn.g_norm."),
    (r"\.attn\.receptance\.", ".attn.r_proj."),
    (r"\.attn\.key\.", ".attn.k_proj."),
    (r"\.attn\.value\.", ".attn.v_proj."),
    (r"\.attn\.output\.", ".attn.o_proj."),
    (r"^(model\.layers\.\d+\.)ln1\.", r"\1attn_norm."),
    (r"^(model\.layers\.\d+\.)ln2\.", r"\1ffn_norm."),
    (r"^model\.(layers\.0\.)?pre_ln\.", "model.layers.0.pre_norm."),
    (r"^model\.ln_out\.", "model.norm."),
    (r"^head\.", "lm_head."),
)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    width, hidden = _width(config), size(config, "hidden_size")
    for name in ("attention_hidden_size", "key_dim"):
        only(config, name, hidden, family=_FAMILY)
    for width_of_values in set(_listed(config.get("value_dim"))):
        only({"value_dim": width_of_values}, "value_dim", hidden, family=_FAMILY)
    only(config, "hidden_act", "sqrelu", family=_FAMILY)
    only(config, "norm_bias", True, family=_FAMILY)
    only(config, "wkv_has_gate", True, family=_FAMILY)
    # some layers with attention
    only(config, "attn", False, family=_FAMILY)
    eps = number(config, "layer_norm_epsilon", "norm_eps") or 1e-5
    one_epsilon(width * eps, _FAMILY, "the width of a head and norm_eps")
    return {**heads_of(config, width), "intermediate_size": _inner(config), "layer_norm_epsilon": eps}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/rwkv.py)."""
    ranks = (("decay", "w"), ("iclr", "a"), ("value_residual_mix", "v"), ("gate", "g"))
    return [
        Key(f"{arch}.context_length", "u32", CONTEXT),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", sizes.config["layer_norm_epsilon"]),
        Key(f"{arch}.wkv.head_size", "u32", sizes.head_dim),
        *(Key(f"{arch}.attention.{name}_lora_rank", "u32", _rank(sizes.config, part)) for name, part in ranks),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", 0),
    ]


FORWARD = Architecture(
    embedding="embeddings",
    embedding_norm="layers.0.pre_norm",
    norm=Norm("layer"),
    attention_norm="attn_norm",
    feed_norm="ffn_norm",
    # the first layer's values, which later layers use
    attention=Attention(kv_heads=_heads, shared_from=lambda _config, layer: 0 if layer else None),
    time_mix=TimeMix(
        width=_width,
        at="attn.",
        separate=("r_proj", "k_proj", "v_proj"),
        out="o_proj",
        norm="g_norm",
        goose=Goose(_rank),
    ),
    channel_mix=ChannelMix(at="ffn.", inner=_inner),
    unpacked=lambda _: NOT_LOADED,
    not_mlx="mlx-lm has not been compared with it",
)

FAMILY = Family(
    name=_FAMILY,
    models="RWKV-7 World and Goose 0.1B to 13B",
    architectures=("RWKV7ForCausalLM", "Rwkv7ForCausalLM"),
    gguf_arch="rwkv7",
    rules=RULES,
    keys=_keys,
    # RWKV7Config of flash-linear-attention
    defaults={
        "rwkv7": {
            "head_dim": 64,
            "intermediate_size": None,
            "norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "vocab_size": 65536,
        }
    },
    prepare=_prepare,
    rename=_RENAME,
    dropped=(Dropped(r"model\.(layers|blocks)\.0\.(self_attn|attn|attention)\.v(0|1|2|_lora\..*)"),),
    dimensions=_dimensions,
    forward=FORWARD,
    traits=Traits(time_mix=True, layer_norm=True, positions="stated"),
)
