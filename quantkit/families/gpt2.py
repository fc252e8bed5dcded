"""GPT-2: learned positions, layer norms, and linear layers stored as (inputs, outputs), which a GGUF has transposed.

Shape of the GGUF: llama.cpp's `gpt2` architecture (src/models/gpt2.cpp).
"""

from typing import Any

from quantkit.families.base.family import Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import LAYER_NORM

_H = "transformer.h.{layer}"
_NORMS = (
    (f"{_H}.ln_1", "blk.{layer}.attn_norm"),
    (f"{_H}.ln_2", "blk.{layer}.ffn_norm"),
    ("transformer.ln_f", "output_norm"),
)
_LINEARS = (
    ("attn.c_attn", "attn_qkv", ("hidden", "qkv")),
    ("attn.c_proj", "attn_output", ("hidden", "hidden")),
    ("mlp.c_fc", "ffn_up", ("hidden", "ffn")),
    ("mlp.c_proj", "ffn_down", ("ffn", "hidden")),
)


def _turned(sizes: Hyperparameters) -> Take:
    del sizes
    return Take(transposed=True)


RULES = (
    Rule("transformer.wte.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("transformer.wpe.weight", "position_embd.weight", ("context", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *(
        Rule(f"{_H}.{source}.weight", f"blk.{{layer}}.{target}.weight", shape, take=_turned)
        for source, target, shape in _LINEARS
    ),
    *(Rule(f"{_H}.{source}.bias", f"blk.{{layer}}.{target}.bias", shape[1:]) for source, target, shape in _LINEARS),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Rename GPT-2's settings (n_embd, n_positions, n_inner...); refuse settings that llama.cpp does not support.

    The table of positions has n_positions rows. Older files also state n_ctx, which transformers ignores.
    """
    for name, allowed in (
        ("activation_function", GELU),
        ("scale_attn_weights", (True,)),
        ("scale_attn_by_inverse_layer_idx", (False,)),
        ("add_cross_attention", (False,)),
    ):
        only(config, name, *allowed, family="GPT-2")
    hidden = size(config, "n_embd", "hidden_size")
    heads = size(config, "n_head", "num_attention_heads")
    return {
        **config,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": size(config, "n_layer", "num_hidden_layers"),
        "intermediate_size": optional_size(config, "n_inner") or 4 * hidden,
        "max_position_embeddings": size(config, "n_positions", "max_position_embeddings", "n_ctx"),
    }


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/gpt2.py), with the inner width that the checkpoint has."""
    return [
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon") or 1e-5),
    ]


def _scale(config: Config, layer: int) -> float:
    scale = head_dim(config) ** -0.5 if given(config, "scale_attn_weights", default=True) else 1.0
    return float(scale / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx") else scale)


FORWARD = Architecture(
    base="transformer.",
    embedding="wte",
    positions="wpe",
    layer="h.{}.",
    norm=LAYER_NORM,
    attention_norm="ln_1",
    feed_norm="ln_2",
    attention=Attention(
        at="attn.",
        fused="c_attn",
        out="c_proj",
        form=Form(turned=True),
        rope=lambda _config, _layer: None,
        scale=_scale,
    ),
    feed=FeedForward(
        gate=None,
        up="c_fc",
        down="c_proj",
        form=Form(turned=True),
        inner=lambda config: int(given(config, "n_inner", default=4 * given(config, "n_embd", "hidden_size"))),
        activation=("activation_function",),
        default_activation="gelu_new",
    ),
    last_norm="ln_f",
    tied=True,
)

FAMILY = Family(
    name="GPT-2",
    models="GPT-2, DistilGPT-2 and their finetunes",
    architectures=("GPT2LMHeadModel",),
    gguf_arch="gpt2",
    rules=RULES,
    keys=keys,
    # transformers' GPT2Config
    defaults={"gpt2": {"layer_norm_epsilon": 1e-5, "n_positions": 1024, "tie_word_embeddings": True}},
    prepare=prepare,
    rename=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    dimensions=lambda sizes: {"qkv": 3 * sizes.hidden},
    # precision, and heads for other tasks
    no_effect=(
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
    forward=FORWARD,
    traits=Traits(layer_norm=True, positions="learned"),
)
