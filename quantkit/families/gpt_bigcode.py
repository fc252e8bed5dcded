"""StarCoder and SantaCoder: GPT-2's graph in which all queries share one key and one value.

Shape of the GGUF: llama.cpp's `starcoder` architecture (src/models/starcoder.cpp).
"""

from typing import Any

from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

_H, _TO = "transformer.h.{layer}", "blk.{layer}"
_NORMS = ((f"{_H}.ln_1", f"{_TO}.attn_norm"), (f"{_H}.ln_2", f"{_TO}.ffn_norm"), ("transformer.ln_f", "output_norm"))
_LINEARS = (
    ("attn.c_attn", "attn_qkv", ("qkv", "hidden")),
    ("attn.c_proj", "attn_output", ("hidden", "hidden")),
    ("mlp.c_fc", "ffn_up", ("ffn", "hidden")),
    ("mlp.c_proj", "ffn_down", ("hidden", "ffn")),
)

RULES = (
    Rule("transformer.wte.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("transformer.wpe.weight", "position_embd.weight", ("context", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *(Rule(f"{_H}.{source}.weight", f"{_TO}.{target}.weight", shape) for source, target, shape in _LINEARS),
    *(Rule(f"{_H}.{source}.bias", f"{_TO}.{target}.bias", shape[:1]) for source, target, shape in _LINEARS),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)

# transformers' GPTBigCodeConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt_bigcode": {
        "activation_function": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "n_positions": 1024,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    for name, allowed in (
        ("activation_function", GELU),
        ("multi_query", (True,)),
        ("scale_attn_weights", (True,)),
        ("add_cross_attention", (False,)),
    ):
        only(config, name, *allowed, family="StarCoder")
    hidden = size(config, "n_embd", "hidden_size")
    only(config, "n_inner", 4 * hidden, family="StarCoder")
    return {
        **config,
        "hidden_size": hidden,
        "num_attention_heads": size(config, "n_head", "num_attention_heads"),
        "num_key_value_heads": 1,
        "num_hidden_layers": size(config, "n_layer", "num_hidden_layers"),
        "intermediate_size": optional_size(config, "n_inner") or 4 * hidden,
        "max_position_embeddings": size(config, "n_positions", "max_position_embeddings"),
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/starcoder.py)."""
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.head_count_kv", "u32", 1),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon") or 1e-5),
    ]


def _inner(config: Config) -> int:
    return int(given(config, "n_inner", default=4 * int(given(config, "n_embd", "hidden_size"))))


FORWARD = Architecture(
    base="transformer.",
    embedding="wte",
    positions="wpe",
    layer="h.{}.",
    norm=LAYER_NORM,
    attention_norm="ln_1",
    feed_norm="ln_2",
    attention=Attention(
        at="attn.", fused="c_attn", out="c_proj", kv_heads=lambda _: 1, rope=lambda _config, _layer: None
    ),
    feed=FeedForward(
        gate=None,
        up="c_fc",
        down="c_proj",
        inner=_inner,
        activation=("activation_function",),
        default_activation="gelu_pytorch_tanh",
    ),
    last_norm="ln_f",
    tied=True,
)

FAMILY = Family(
    name="StarCoder",
    models="StarCoder 1B/3B/7B/15B, SantaCoder",
    architectures=("GPTBigCodeForCausalLM",),
    gguf_arch="starcoder",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rename=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    dropped=(Dropped(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),),
    dimensions=lambda sizes: {"qkv": sizes.hidden + 2 * sizes.head_dim},
    # precision; multi_query decides the number of key heads
    no_effect=("attention_softmax_in_fp32", "num_key_value_heads", "scale_attention_softmax_in_fp32"),
    forward=FORWARD,
    traits=Traits(layer_norm=True, positions="learned"),
)
