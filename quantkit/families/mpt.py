"""MPT: LayerNorms without biases, ALiBi in place of rotary positions, queries, keys and values in one matrix.

Shape of the GGUF: llama.cpp's `mpt` architecture (src/models/mpt.cpp). Published checkpoints name their class
MPTForCausalLM, transformers MptForCausalLM.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

_AT, _TO = "transformer.blocks.{layer}", "blk.{layer}"
_FAMILY = "MPT"
_LONGEST_BIAS = 8

RULES = (
    Rule("transformer.wte.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule(f"{_AT}.norm_1.weight", f"{_TO}.attn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.attn.Wqkv.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden")),
    Rule(f"{_AT}.attn.out_proj.weight", f"{_TO}.attn_output.weight", ("hidden", "hidden")),
    Rule(f"{_AT}.norm_2.weight", f"{_TO}.ffn_norm.weight", ("hidden",)),
    Rule(f"{_AT}.ffn.up_proj.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.ffn.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule("transformer.norm_f.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Rename MPT's settings; refuse attention without ALiBi, which needs learned positions, and its other variants."""
    attention = config.get("attn_config")
    attention = dict(attention) if isinstance(attention, Mapping) else {}
    only(config, "expansion_ratio", 4, family=_FAMILY)
    only(config, "no_bias", True, family=_FAMILY)
    only(config, "norm_type", "low_precision_layernorm", "layernorm", family=_FAMILY)
    only(attention, "attn_type", "multihead_attention", family=_FAMILY)
    only(attention, "alibi", True, family=_FAMILY)
    only(attention, "alibi_bias_max", _LONGEST_BIAS, family=_FAMILY)
    only(attention, "prefix_lm", False, family=_FAMILY)
    only(attention, "qk_ln", False, family=_FAMILY)
    only(attention, "softmax_scale", family=_FAMILY)
    scale = config.get("logit_scale")
    if scale is not None:
        raise UnsupportedError(
            f"config.json: logit_scale is {scale!r}, but llama.cpp runs {_FAMILY} only without one; a GGUF cannot"
            " express this setting"
        )
    hidden, heads = size(config, "d_model"), size(config, "n_heads")
    return {
        **config,
        "clip_qkv": number(attention, "clip_qkv") or None,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": size(config, "max_seq_len"),
        "num_attention_heads": heads,
        "num_hidden_layers": size(config, "n_layers"),
        "num_key_value_heads": heads,
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/mpt.py)."""
    clip = sizes.config.get("clip_qkv")
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(sizes.config, "layer_norm_epsilon") or 1e-5),
        *([] if clip is None else [Key(f"{arch}.attention.clamp_kqv", "f32", clip)]),
        Key(f"{arch}.attention.max_alibi_bias", "f32", float(_LONGEST_BIAS)),
    ]


FORWARD = Architecture(
    base="transformer.",
    embedding="wte",
    layer="blocks.{}.",
    norm=LAYER_NORM,
    attention_norm="norm_1",
    feed_norm="norm_2",
    attention=Attention(at="attn.", fused="Wqkv", out="out_proj", clip="clip_qkv", alibi=lambda _: True),
    feed=FeedForward(
        at="ffn.", gate=None, inner=lambda config: 4 * int(config["d_model"]), activation=(), default_activation="gelu"
    ),
    last_norm="norm_f",
    tied=True,
    per_layer=lambda config, _: {**config, "clip_qkv": (config.get("attn_config") or {}).get("clip_qkv")},
)

FAMILY = Family(
    name=_FAMILY,
    models="MPT 7B and 30B",
    architectures=("MPTForCausalLM", "MptForCausalLM"),
    gguf_arch="mpt",
    rules=RULES,
    keys=_keys,
    # transformers' MptConfig
    defaults={
        "mpt": {"expansion_ratio": 4, "layer_norm_epsilon": 1e-5, "max_seq_len": 2048, "tie_word_embeddings": True}
    },
    prepare=_prepare,
    dimensions=lambda sizes: {"qkv": 3 * sizes.hidden},
    # training, and learned positions, which a model with ALiBi does not have
    no_effect=("emb_pdrop", "embedding_fraction", "init_device", "learned_pos_emb"),
    forward=FORWARD,
    traits=Traits(layer_norm=True, positions="stated"),
)
