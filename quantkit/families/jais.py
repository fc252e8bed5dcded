"""Jais and the Jais family: GPT-2's graph with ALiBi and a gated feed-forward, its ends and scores scaled (muP).

Shape of the GGUF: llama.cpp's `jais` architecture (src/models/jais.cpp). The scales of the embedding and of the head
are in the weights. transformers has no class; the source is the published modeling_jais.py.
"""

from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, head_dim
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Form
from quantkit.forward.settings import LAYER_NORM

_H, _TO = "transformer.h.{layer}", "blk.{layer}"
_FAMILY = "Jais"
_NORMS = (
    (f"{_H}.ln_1", f"{_TO}.attn_norm"),
    (f"{_H}.ln_2", f"{_TO}.ffn_norm"),
    ("transformer.ln_f", "output_norm"),
)
_LINEARS = (
    ("attn.c_attn", "attn_qkv", ("hidden", "qkv")),
    ("attn.c_proj", "attn_output", ("hidden", "hidden")),
    ("mlp.c_fc", "ffn_up", ("hidden", "ffn")),
    ("mlp.c_fc2", "ffn_gate", ("hidden", "ffn")),
    ("mlp.c_proj", "ffn_down", ("ffn", "hidden")),
)
# modeling_jais.py computes the slopes of every model from this bias.
_LONGEST_BIAS = 8.0


def _turned(sizes: Hyperparameters) -> Take:
    del sizes
    return Take(transposed=True)


def embedding_scale(config: Config) -> float:
    """The factor of the embedding, under the name of either release; CheckpointError without one."""
    scale = number(config, "mup_embeddings_scale", "embeddings_scale")
    if scale is None:
        raise CheckpointError("config.json has neither mup_embeddings_scale nor embeddings_scale; add the scale")
    return scale


def head_scale(config: Config) -> float:
    """The factor of the logits, under the names of either release; CheckpointError without one."""
    alpha = number(config, "mup_output_alpha")
    scale = number(config, "width_scale") if alpha is None else number(config, "mup_width_scale")
    if scale is None:
        missing = "width_scale" if alpha is None else "mup_width_scale"
        raise CheckpointError(f"config.json has no {missing}; add the scale of the logits")
    return scale if alpha is None else alpha * scale


RULES = (
    Rule(
        "transformer.wte.weight",
        "token_embd.weight",
        ("vocab", "hidden"),
        factors=lambda sizes: (embedding_scale(sizes.config),),
    ),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    *(
        Rule(f"{_H}.{source}.weight", f"{_TO}.{target}.weight", shape, take=_turned)
        for source, target, shape in _LINEARS
    ),
    *(Rule(f"{_H}.{source}.bias", f"{_TO}.{target}.bias", shape[1:]) for source, target, shape in _LINEARS),
    # llama.cpp does not tie the head, because its scale differs from the embedding's
    *(
        Rule(source, "output.weight", ("vocab", "hidden"), factors=lambda sizes: (head_scale(sizes.config),))
        for source in ("lm_head.weight", "transformer.wte.weight")
    ),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Rename GPT-2's settings; refuse what differs from llama.cpp's graph."""
    only(config, "activation_function", "swiglu", family=_FAMILY)
    only(config, "position_embedding_type", "alibi", family=_FAMILY)
    only(config, "alibi_scaling", family=_FAMILY)
    only(config, "scale_attn_weights", True, family=_FAMILY)
    only(config, "scale_attn_by_inverse_layer_idx", False, family=_FAMILY)
    by_width = config.get("mup_scale_qk_dot_by_d", config.get("scale_qk_dot_by_d"))
    only({"scale_qk_dot_by_d": bool(by_width)}, "scale_qk_dot_by_d", True, family=_FAMILY)
    embedding_scale(config)
    head_scale(config)
    hidden, heads = size(config, "n_embd", "hidden_size"), size(config, "n_head", "num_attention_heads")
    return {
        **config,
        "hidden_size": hidden,
        "intermediate_size": size(config, "n_inner"),
        "max_position_embeddings": size(config, "n_positions"),
        "num_attention_heads": heads,
        "num_hidden_layers": size(config, "n_layer", "num_hidden_layers"),
        "num_key_value_heads": heads,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/jais.py), which writes ALiBi's bias with the tensors."""
    return [
        Key(f"{arch}.attention.max_alibi_bias", "f32", _LONGEST_BIAS, first=True),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon") or 1e-5),
    ]


_FORM = Form(turned=True)
FORWARD = Architecture(
    base="transformer.",
    embedding="wte",
    embedding_scale=embedding_scale,
    layer="h.{}.",
    norm=LAYER_NORM,
    attention_norm="ln_1",
    feed_norm="ln_2",
    attention=Attention(
        at="attn.",
        fused="c_attn",
        out="c_proj",
        form=_FORM,
        alibi=lambda _: True,
        scale=lambda config, _: 1.0 / head_dim(config),
    ),
    feed=FeedForward(
        gate="c_fc2",
        up="c_fc",
        down="c_proj",
        form=_FORM,
        inner=lambda config: int(config["n_inner"]),
        activation=(),
    ),
    last_norm="ln_f",
    tied=True,
    logit_scale=head_scale,
    unpacked=lambda _: "transformers has no class of Jais",
)

FAMILY = Family(
    name=_FAMILY,
    models="Jais 13B and 30B, Jais family 590M to 70B",
    architectures=("JAISLMHeadModel",),
    gguf_arch="jais",
    rules=RULES,
    keys=_keys,
    # JAISConfig of the published code
    defaults={
        "jais": {
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "n_positions": 1024,
            "position_embedding_type": "learned",
            "tie_word_embeddings": True,
        }
    },
    prepare=_prepare,
    dropped=(Dropped(r"transformer\.(relative_pe\.slopes|h\.\d+\.attn\.(bias|masked_bias))"),),
    dimensions=lambda sizes: {"qkv": 3 * sizes.hidden},
    forward=FORWARD,
    traits=Traits(layer_norm=True, positions="stated"),
)
