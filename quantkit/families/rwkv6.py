"""RWKV 6 (Finch): a state for each head that decays by what a token says, and mixtures of a token with the one before.

Shape of the GGUF: llama.cpp's `rwkv6` architecture (src/models/rwkv6.cpp, rwkv6-base.cpp). Names and settings are those
of the published code for transformers; the method is in "Eagle and Finch" (arXiv 2404.05892).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture
from quantkit.forward.parts import Norm
from quantkit.forward.recurrent_mixers import ChannelMix, TimeMix

CONTEXT = 1 << 20
GROUP_NORM_EPS = 64e-5
"""What llama.cpp's norm of the heads' outputs adds to their variance."""
NOT_LOADED = "transformers has no class of this RWKV"
_MIXED = ("w", "k", "v", "r", "g")
_FAMILY = "RWKV 6"
# Blocks of `rescale_every` layers that a model may have.
_MAX_RESCALED = 64

_AT, _TO = "rwkv.blocks.{layer}", "blk.{layer}"
_FIRST = ("1", "1", "hidden")


def _low_ranks(config: Mapping[str, Any]) -> tuple[int, int]:
    """The widths of the low-rank parts for mixtures and decays."""
    return (64, 128) if size(config, "hidden_size") == 4096 else (32, 64)


def _dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """The widths of the low-rank parts, which the converter takes from the hidden size."""
    rank, decay_rank = _low_ranks(sizes.config)
    return {"mixed": 5 * rank, "mix_rank": rank, "decay_rank": decay_rank, "head_width": sizes.head_dim}


def _second_matrices(sizes: Hyperparameters) -> tuple[Take, ...]:
    """For each of the five mixtures, its matrix from the low rank to the hidden size, turned."""
    rank = _dimensions(sizes)["mix_rank"]
    return tuple(Take(np.arange(rank, dtype=np.int64) + part * rank, transposed=True) for part in range(5))


def _turned(_sizes: Hyperparameters) -> Take:
    return Take(transposed=True)


def _block(number: int) -> Callable[[Hyperparameters], Iterable[int]]:
    """The layers whose outputs are divided by 2 to the power of `number`."""

    def layers(sizes: Hyperparameters) -> Iterable[int]:
        every = _rescale_every(sizes) or sizes.n_layer
        return range(min(number * every, sizes.n_layer), min((number + 1) * every, sizes.n_layer))

    return layers


def _rescaled(rule: Rule) -> tuple[Rule, ...]:
    """A layer's output for the halved hidden states of later layers: llama.cpp halves them after every few layers."""
    return (
        replace(rule, layers=_block(0)),
        *(
            replace(rule, layers=_block(block), factors=_power(block), when=lambda sizes: bool(_rescale_every(sizes)))
            for block in range(1, _MAX_RESCALED)
        ),
    )


def _power(block: int) -> Callable[[Hyperparameters], tuple[float]]:
    return lambda _sizes: (0.5**block,)


def _rescale_every(sizes: Hyperparameters) -> int:
    return int(sizes.config.get("rescale_every") or 0)


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{source}.{part}", f"{target}.{part}", ("hidden",)) for part in ("weight", "bias"))


_TIME, _CHANNEL = f"{_AT}.attention", f"{_AT}.feed_forward"
RULES = (
    Rule("rwkv.embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    *_norm("rwkv.blocks.0.pre_ln", "token_embd_norm"),
    *_norm(f"{_AT}.ln1", f"{_TO}.attn_norm"),
    *_norm(f"{_AT}.ln2", f"{_TO}.attn_norm_2"),
    Rule(f"{_TIME}.time_maa_x", f"{_TO}.time_mix_lerp_x.weight", _FIRST, reshaped=("hidden",)),
    Rule(
        f"{_TIME}.time_maa_{{part}}",
        f"{_TO}.time_mix_lerp_fused.weight",
        _FIRST,
        parts=_MIXED,
    ),
    Rule(f"{_TIME}.time_maa_w1", f"{_TO}.time_mix_w1.weight", ("hidden", "mixed"), take=_turned),
    Rule(f"{_TIME}.time_maa_w2", f"{_TO}.time_mix_w2.weight", ("5", "mix_rank", "hidden"), take=_second_matrices),
    Rule(f"{_TIME}.time_decay", f"{_TO}.time_mix_decay.weight", _FIRST, reshaped=("hidden",)),
    Rule(f"{_TIME}.time_decay_w1", f"{_TO}.time_mix_decay_w1.weight", ("hidden", "decay_rank"), take=_turned),
    Rule(f"{_TIME}.time_decay_w2", f"{_TO}.time_mix_decay_w2.weight", ("decay_rank", "hidden"), take=_turned),
    Rule(f"{_TIME}.time_faaaa", f"{_TO}.time_mix_first.weight", ("n_head", "head_width")),
    *(
        Rule(f"{_TIME}.{name}.weight", f"{_TO}.time_mix_{name}.weight", ("hidden", "hidden"))
        for name in ("receptance", "key", "value", "gate")
    ),
    *_rescaled(Rule(f"{_TIME}.output.weight", f"{_TO}.time_mix_output.weight", ("hidden", "hidden"))),
    *_norm(f"{_TIME}.ln_x", f"{_TO}.time_mix_ln"),
    *(
        Rule(f"{_CHANNEL}.time_maa_{part}", f"{_TO}.channel_mix_lerp_{part}.weight", _FIRST, reshaped=("hidden",))
        for part in "kr"
    ),
    Rule(f"{_CHANNEL}.key.weight", f"{_TO}.channel_mix_key.weight", ("ffn", "hidden")),
    Rule(f"{_CHANNEL}.receptance.weight", f"{_TO}.channel_mix_receptance.weight", ("hidden", "hidden")),
    *_rescaled(Rule(f"{_CHANNEL}.value.weight", f"{_TO}.channel_mix_value.weight", ("hidden", "ffn"))),
    *_norm("rwkv.ln_out", "output_norm"),
    Rule("head.weight", "output.weight", ("vocab", "hidden")),
)


def heads_of(config: dict[str, Any], width: int) -> dict[str, Any]:
    """The sizes that every model must have, from the width of a head.

    Raises UnsupportedError: heads do not divide the hidden size.
    """
    hidden = size(config, "hidden_size")
    if hidden % width:
        raise UnsupportedError(
            f"config.json: hidden_size {hidden} does not divide by the width of a head, {width}; correct one of them"
        )
    return {
        **config,
        "head_dim": width,
        "num_attention_heads": hidden // width,
        "num_key_value_heads": hidden // width,
    }


def one_epsilon(eps: float, family: str, setting: str) -> None:
    """Refuse another epsilon for the norm of the heads' outputs than llama.cpp's.

    Raises UnsupportedError.
    """
    if abs(eps - GROUP_NORM_EPS) > 1e-3 * GROUP_NORM_EPS:
        raise UnsupportedError(
            f"config.json: {setting} makes the epsilon of the heads' norm {eps:g}, but llama.cpp runs {family} only"
            f" with {GROUP_NORM_EPS:g}; a GGUF cannot express this setting"
        )


def _inner(config: Mapping[str, Any]) -> int:
    return optional_size(config, "intermediate_size") or int(size(config, "hidden_size") * 3.5) // 32 * 32


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    width, hidden = size(config, "head_size"), size(config, "hidden_size")
    only(config, "attention_hidden_size", hidden, family=_FAMILY)
    divisor = number(config, "head_size_divisor") or 8.0
    one_epsilon(1e-5 * divisor**2, _FAMILY, "head_size_divisor")
    return {**heads_of(config, width), "intermediate_size": _inner(config)}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/rwkv.py)."""
    own = _dimensions(sizes)
    return [
        Key(f"{arch}.context_length", "u32", CONTEXT),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon")),
        Key(f"{arch}.rescale_every_n_layers", "u32", _rescale_every(sizes)),
        Key(f"{arch}.wkv.head_size", "u32", sizes.head_dim),
        Key(f"{arch}.time_mix_extra_dim", "u32", own["mix_rank"]),
        Key(f"{arch}.time_decay_extra_dim", "u32", own["decay_rank"]),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", 0),
    ]


FORWARD = Architecture(
    base="rwkv.",
    embedding="embeddings",
    embedding_norm="blocks.0.pre_ln",
    layer="blocks.{}.",
    norm=Norm("layer"),
    attention_norm="ln1",
    feed_norm="ln2",
    time_mix=TimeMix(
        width=lambda config: int(config["head_size"]),
        rank=lambda config: _low_ranks(config)[0],
        decay_rank=lambda config: _low_ranks(config)[1],
    ),
    channel_mix=ChannelMix(key_mix="time_maa_k", receptance=("receptance", "time_maa_r"), inner=_inner),
    last_norm="ln_out",
    head="head",
    unpacked=lambda _: NOT_LOADED,
    not_mlx="mlx-lm has no RWKV 6",
)

FAMILY = Family(
    name=_FAMILY,
    models="RWKV-6 Finch 1.6B to 14B",
    architectures=("Rwkv6ForCausalLM",),
    gguf_arch="rwkv6",
    rules=RULES,
    keys=_keys,
    # Rwkv6Config of the published code
    defaults={
        "rwkv6": {
            "head_size": 64,
            "head_size_divisor": 8,
            "intermediate_size": None,
            "layer_norm_epsilon": 1e-5,
            "rescale_every": 6,
            "tie_word_embeddings": False,
            "vocab_size": 65536,
        }
    },
    prepare=_prepare,
    dimensions=_dimensions,
    forward=FORWARD,
    traits=Traits(time_mix=True, layer_norm=True, positions="stated"),
)
