"""RWKV 7 (Goose): a state for each head that a token decays, rewrites and reads, and values mixed with the first
layer's.

Shape of the GGUF: llama.cpp's `rwkv7` architecture (src/models/rwkv7.cpp, rwkv7-base.cpp). Two layouts are published:
flash-linear-attention's (`attn.w_lora.lora.0.weight`) and the original one (`attention.w1`, stored the other way
round). The method is in arXiv 2503.14456.
"""

from typing import Any

from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.rwkv6 import CONTEXT, heads_of, one_epsilon

_FAMILY = "RWKV 7"
_MIXED = ("r", "w", "k", "v", "a", "g")
_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_TIME = f"{_AT}.attention"
_FIRST = ("1", "1", "hidden")
# Name of a low-rank part -> its names in config.json, and exponent and factor of the width where none is stated.
_RANKS = {
    "w": ("lora_rank_decay", "decay_low_rank_dim", 0.5, 1.8),
    "a": ("lora_rank_iclr", "a_low_rank_dim", 0.5, 1.8),
    "v": ("lora_rank_value_residual_mix", "v_low_rank_dim", 0.5, 1.3),
    "g": ("lora_rank_gate", "gate_low_rank_dim", 0.8, 0.6),
}


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    return {"head_width": sizes.head_dim, **{f"{part}_rank": _rank(sizes, part) for part in _RANKS}}


def _rank(sizes: Hyperparameters, part: str) -> int:
    original, of_fla, exponent, factor = _RANKS[part]
    stated = optional_size(sizes.config, original, of_fla)
    return stated or max(1, round(sizes.hidden**exponent * factor / 32)) * 32


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
    *_norm("model.pre_ln", "token_embd_norm"),
    *_norm(f"{_AT}.ln1", f"{_TO}.attn_norm"),
    *_norm(f"{_AT}.ln2", f"{_TO}.attn_norm_2"),
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
        for name, sources in {
            "receptance": ("r_proj", "receptance"),
            "key": ("k_proj", "key"),
            "value": ("v_proj", "value"),
            "output": ("o_proj", "output"),
        }.items()
        for source in sources
    ),
    *_norm(f"{_TIME}.ln_x", f"{_TO}.time_mix_ln"),
    *_vector(f"{_AT}.feed_forward.x_k", f"{_TO}.channel_mix_lerp_k.weight"),
    Rule(f"{_AT}.feed_forward.key.weight", f"{_TO}.channel_mix_key.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.feed_forward.value.weight", f"{_TO}.channel_mix_value.weight", ("hidden", "ffn")),
    *_norm("model.norm", "output_norm"),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)
# Both layouts under one set of names.
_RENAME = (
    (r"^model\.blocks\.", "model.layers."),
    (r"^(model\.layers\.\d+\.)(self_attn|attn)\.", r"\1attention."),
    (r"\.attention\.time_mixer\.", ".attention."),
    (r"^(model\.layers\.\d+\.)ffn\.", r"\1feed_forward."),
    (r"\.attention\.g_norm\.", ".attention.ln_x."),
    (r"\.attn_norm\.", ".ln1."),
    (r"\.ffn_norm\.", ".ln2."),
    (r"^model\.layers\.0\.(pre_norm|pre_ln)\.", "model.pre_ln."),
    (r"^model\.ln_out\.", "model.norm."),
    (r"^head\.", "lm_head."),
)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    width, hidden = size(config, "head_size", "head_dim"), size(config, "hidden_size")
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
    inner = optional_size(config, "intermediate_size") or 4 * hidden
    return {**heads_of(config, width), "intermediate_size": inner, "layer_norm_epsilon": eps}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/rwkv.py)."""
    ranks = (("decay", "w"), ("iclr", "a"), ("value_residual_mix", "v"), ("gate", "g"))
    return [
        Key(f"{arch}.context_length", "u32", CONTEXT),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", sizes.config["layer_norm_epsilon"]),
        Key(f"{arch}.wkv.head_size", "u32", sizes.head_dim),
        *(Key(f"{arch}.attention.{name}_lora_rank", "u32", _rank(sizes, part)) for name, part in ranks),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", 0),
    ]


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
    traits=Traits(plannable=False, positions="stated"),
)
