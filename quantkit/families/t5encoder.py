"""T5's encoder alone: relative positions as biases of attention, RMS norms before each part, no scale of the scores.

Shape of the GGUF: llama.cpp's `t5encoder` architecture (src/models/t5encoder.cpp). Every layer of UMT5 has its own
table of relative positions; the layers of the others use the first layer's.
"""

from collections.abc import Iterable
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.encoder import encoder_cautions
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import head_dim_keys
from quantkit.families.base.pooling import pooling_keys
from quantkit.families.base.traits import Traits
from quantkit.tokenizer.roles import TokenRoles

# transformers' T5Config, MT5Config and UMT5Config.
_COMMON: dict[str, Any] = {
    "d_model": 512,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_SMALL = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {
        **_COMMON,
        "vocab_size": 32128,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
    },
    "mt5": {**_COMMON, **_SMALL, "tie_word_embeddings": False},
    "umt5": {**_COMMON, **_SMALL, "tie_word_embeddings": False},
}
_ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new"}
_BUCKET_DISTANCE = 128
_NO_LENGTH = 512

ROLES = TokenRoles(t5=True)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes under their usual names; refuse what llama.cpp's graph has built in otherwise."""
    if config.get("feed_forward_proj") not in _ACTIVATIONS:
        raise UnsupportedError(
            f"config.json: feed_forward_proj is {config.get('feed_forward_proj')!r}, but llama.cpp runs T5 only with"
            f" {' or '.join(_ACTIVATIONS)}"
        )
    _check_activation(config)
    if config.get("relative_attention_max_distance") != _BUCKET_DISTANCE:
        raise UnsupportedError(
            f"config.json: relative_attention_max_distance is {config.get('relative_attention_max_distance')}, but"
            f" llama.cpp runs T5 only with {_BUCKET_DISTANCE}"
        )
    return {
        **config,
        "hidden_size": size(config, "d_model"),
        "intermediate_size": size(config, "d_ff"),
        "num_hidden_layers": size(config, "num_layers"),
        "num_attention_heads": size(config, "num_heads"),
        "head_dim": size(config, "d_kv"),
        "max_position_embeddings": config.get("n_positions") or _NO_LENGTH,
    }


def _check_activation(config: dict[str, Any]) -> None:
    """Refuse dense_act_fn and is_gated_act if they contradict feed_forward_proj, as they win in transformers."""
    projection = str(config["feed_forward_proj"])
    implied = {"dense_act_fn": _ACTIVATIONS[projection], "is_gated_act": projection.startswith("gated")}
    for name, value in implied.items():
        if config.get(name, value) != value:
            raise UnsupportedError(
                f"config.json: {name} is {config[name]!r}, but llama.cpp runs T5 with feed_forward_proj {projection!r}"
                f" only with {value!r}"
            )


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The keys in the converter's order, and the pooling if the checkpoint states one."""
    config = sizes.config
    eps = number(config, "layer_norm_epsilon")
    return [
        *length_keys(arch, sizes),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        *head_dim_keys(arch, sizes),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", eps),
        Key(f"{arch}.attention.relative_buckets_count", "u32", size(config, "relative_attention_num_buckets")),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", eps),
        *pooling_keys(arch, sizes),
    ]


def length_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """Context, widths and the number of layers."""
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
    ]


def is_gated(sizes: Hyperparameters) -> bool:
    """Whether the feed-forward has a gate (T5 1.1, Flan-T5, mT5, UMT5)."""
    return str(sizes.config.get("feed_forward_proj")).startswith("gated")


def is_plain(sizes: Hyperparameters) -> bool:
    """Whether the feed-forward has no gate (the first T5)."""
    return not is_gated(sizes)


def layers_with_table(sizes: Hyperparameters) -> Iterable[int]:
    """The layers that have a table of relative positions."""
    return range(sizes.n_layer if sizes.config.get("model_type") == "umt5" else 1)


def dimensions(sizes: Hyperparameters) -> dict[str, int]:
    """The buckets of relative positions."""
    return {"buckets": size(sizes.config, "relative_attention_num_buckets")}


_AT, _TO = "encoder.block.{layer}.layer", "enc.blk.{layer}"
EMBEDDINGS = tuple(
    Rule(f"{name}.weight", "token_embd.weight", ("vocab", "hidden"))
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
)
ENCODER = (
    Rule(f"{_AT}.0.layer_norm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    *(Rule(f"{_AT}.0.SelfAttention.{x}.weight", f"{_TO}.attn_{x}.weight", ("q", "hidden")) for x in "qkv"),
    Rule(f"{_AT}.0.SelfAttention.o.weight", f"{_TO}.attn_o.weight", ("hidden", "q")),
    Rule(
        f"{_AT}.0.SelfAttention.relative_attention_bias.weight",
        f"{_TO}.attn_rel_b.weight",
        ("buckets", "n_head"),
        layers=layers_with_table,
    ),
    Rule(f"{_AT}.1.layer_norm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.1.DenseReluDense.wi.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden"), when=is_plain),
    Rule(f"{_AT}.1.DenseReluDense.wi_0.weight", f"{_TO}.ffn_gate.weight", ("ffn", "hidden"), when=is_gated),
    Rule(f"{_AT}.1.DenseReluDense.wi_1.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden"), when=is_gated),
    Rule(f"{_AT}.1.DenseReluDense.wo.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule("encoder.final_layer_norm.weight", "enc.output_norm.weight", ("hidden",)),
)
SAME_EMBEDDING = Dropped(r"(encoder|decoder)\.embed_tokens\.weight")

FAMILY = Family(
    name="T5 encoder",
    models="encoders of T5, Flan-T5, mT5 and UMT5; gtr-t5 and sentence-t5 without Dense modules",
    architectures=("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"),
    gguf_arch="t5encoder",
    rules=(*EMBEDDINGS, *ENCODER),
    keys=keys,
    defaults=DEFAULTS,
    prepare=prepare,
    dropped=(SAME_EMBEDDING,),
    no_effect=("decoder_start_token_id", "num_decoder_layers", "scale_decoder_outputs"),
    dimensions=dimensions,
    cautions=encoder_cautions,
    traits=Traits(
        causal=False, encoder=True, unused_cache=True, positions="stated", relative_positions=True, layer_prefix="enc."
    ),
    token_roles=ROLES,
)
