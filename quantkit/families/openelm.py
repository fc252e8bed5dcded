"""OpenELM: layers that differ in heads and in the width of the feed-forward, norms of queries and keys, one embedding.

Shape of the GGUF: llama.cpp's `openelm` architecture (src/models/openelm.cpp). transformers has no class; the source is
the published modeling_openelm.py. Its checkpoints have no tokenizer and use Llama 2's.
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.refusals import SILU, only
from quantkit.forward.config_keys import Config
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import HEAD_NORMS

_AT, _TO = "transformer.layers.{layer}", "blk.{layer}"
_FAMILY = "OpenELM"
_EPS = 1e-6

RULES = (
    Rule("transformer.token_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule(f"{_AT}.attn_norm.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.attn.qkv_proj.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_AT}.attn.q_norm.weight", f"{_TO}.attn_q_norm.weight", ("head_dim",)),
    Rule(f"{_AT}.attn.k_norm.weight", f"{_TO}.attn_k_norm.weight", ("head_dim",)),
    Rule(f"{_AT}.attn.out_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "q")),
    Rule(f"{_AT}.ffn_norm.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.ffn.proj_1.weight", f"{_TO}.ffn_gate.weight", ("gate_up", "hidden"), half=0),
    Rule(f"{_AT}.ffn.proj_1.weight", f"{_TO}.ffn_up.weight", ("gate_up", "hidden"), half=1),
    Rule(f"{_AT}.ffn.proj_2.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule("transformer.norm.weight", "output_norm.weight", ("hidden",)),
)


def _width(config: Config, layer: int) -> int:
    """The width of a layer's feed-forward: a multiple of the divisor, at least 0.9 of the stated width."""
    divisor, scaled = int(config["ffn_dim_divisor"]), config["ffn_multipliers"][layer] * config["model_dim"]
    width = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return width + divisor if width < 0.9 * scaled else width


def _per_layer(config: Config, layer: int) -> Config:
    return {
        **config,
        "intermediate_size": _width(config, layer),
        "num_attention_heads": int(config["num_query_heads"][layer]),
        "num_key_value_heads": int(config["num_kv_heads"][layer]),
    }


def _layer_dimensions(sizes: Hyperparameters, layer: int) -> dict[str, int]:
    layer_config = _per_layer(sizes.config, layer)
    heads, kv, ffn = (layer_config[key] for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"))
    return {
        "ffn": ffn,
        "gate_up": 2 * ffn,
        "q": heads * sizes.head_dim,
        "qkv": (heads + 2 * kv) * sizes.head_dim,
    }


def _numbers(config: dict[str, Any], name: str, layers: int, kinds: tuple[type, ...]) -> None:
    values = config.get(name)
    valid = isinstance(values, list) and len(values) == layers
    if not valid or not all(type(value) in kinds and 0 < value < 10_000 for value in values or ()):
        raise CheckpointError(
            f"config.json: {name} must list a positive number for each of {layers} layers; correct it"
        )


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "activation_fn_name", *SILU, family=_FAMILY)
    only(config, "ffn_with_glu", True, family=_FAMILY)
    only(config, "normalization_layer_name", "rms_norm", family=_FAMILY)
    only(config, "normalize_qk_projections", True, family=_FAMILY)
    only(config, "share_input_output_layers", True, family=_FAMILY)
    layers = size(config, "num_transformer_layers")
    size(config, "ffn_dim_divisor")
    hidden = size(config, "model_dim")
    for name, kinds in (("num_query_heads", (int,)), ("num_kv_heads", (int,)), ("ffn_multipliers", (int, float))):
        _numbers(config, name, layers, kinds)
    for layer, (heads, kv) in enumerate(zip(config["num_query_heads"], config["num_kv_heads"], strict=True)):
        if heads % kv:
            raise CheckpointError(
                f"config.json: num_kv_heads {kv} of layer {layer} does not divide num_query_heads {heads}; correct one"
            )
    return {
        **_per_layer(config, 0),
        "hidden_size": hidden,
        "max_position_embeddings": size(config, "max_context_length"),
        "num_hidden_layers": layers,
        "rms_norm_eps": _EPS,
        "rope_theta": number(config, "rope_freq_constant"),
        "tie_word_embeddings": True,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/openelm.py)."""
    layers = [_per_layer(sizes.config, layer) for layer in range(sizes.n_layer)]
    return [
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "i32s", [layer["intermediate_size"] for layer in layers]),
        Key(f"{arch}.attention.head_count", "i32s", [layer["num_attention_heads"] for layer in layers]),
        Key(f"{arch}.attention.head_count_kv", "i32s", [layer["num_key_value_heads"] for layer in layers]),
        Key(f"{arch}.rope.freq_base", "f32", sizes.rope["rope_theta"]),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", _EPS),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
        Key(f"{arch}.attention.key_length", "u32", sizes.head_dim),
        Key(f"{arch}.attention.value_length", "u32", sizes.head_dim),
    ]


FORWARD = Architecture(
    base="transformer.",
    embedding="token_embeddings",
    attention_norm="attn_norm",
    feed_norm="ffn_norm",
    attention=Attention(at="attn.", fused="qkv_proj", out="out_proj", norms=HEAD_NORMS),
    feed=FeedForward(at="ffn.", fused="proj_1", down="proj_2", activation=("activation_fn_name",)),
    tied=True,
    per_layer=_per_layer,
)

FAMILY = Family(
    name=_FAMILY,
    models="OpenELM 270M to 3B",
    architectures=("OpenELMForCausalLM",),
    gguf_arch="openelm",
    rules=RULES,
    keys=_keys,
    # OpenELMConfig of the published code
    defaults={
        "openelm": {
            "ffn_dim_divisor": 256,
            "head_dim": 128,
            "max_context_length": 2048,
            "rope_freq_constant": 10000,
            "share_input_output_layers": True,
            "vocab_size": 32000,
        }
    },
    prepare=_prepare,
    layer_dimensions=_layer_dimensions,
    rope_kinds=("default",),
    forward=FORWARD,
)
