"""Nemotron and Minitron: layer norms with weights stored less one, half of each head rotated, the square of ReLU.

Shape of the GGUF: llama.cpp's `nemotron` architecture (src/models/nemotron.cpp).
"""

from typing import Any

from quantkit.families.base.adjust import plus_one
from quantkit.families.base.family import Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.keys import base_keys
from quantkit.families.base.refusals import only
from quantkit.families.base.traits import Traits
from quantkit.families.qwen2 import PROJECTIONS
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.parts import Norm

_AT, _TO = "model.layers.{layer}", "blk.{layer}"
_ROTATED = 0.5


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.weight", f"{target}.weight", ("hidden",), adjust=plus_one),
        Rule(f"{source}.bias", f"{target}.bias", ("hidden",)),
    )


RULES = (
    *_norm(f"{_AT}.input_layernorm", f"{_TO}.attn_norm"),
    *PROJECTIONS,
    Rule(f"{_AT}.self_attn.o_proj.bias", f"{_TO}.attn_output.bias", ("hidden",), required=False),
    *(
        Rule(f"{_AT}.self_attn.{role}_proj.bias", f"{_TO}.attn_{role}.bias", (rows,), required=False)
        for role, rows in (("q", "q"), ("k", "kv"), ("v", "kv"))
    ),
    *_norm(f"{_AT}.post_attention_layernorm", f"{_TO}.ffn_norm"),
    Rule(f"{_AT}.mlp.up_proj.weight", f"{_TO}.ffn_up.weight", ("ffn", "hidden")),
    Rule(f"{_AT}.mlp.up_proj.bias", f"{_TO}.ffn_up.bias", ("ffn",), required=False),
    Rule(f"{_AT}.mlp.down_proj.weight", f"{_TO}.ffn_down.weight", ("hidden", "ffn")),
    Rule(f"{_AT}.mlp.down_proj.bias", f"{_TO}.ffn_down.bias", ("hidden",), required=False),
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    *_norm("model.norm", "output_norm"),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
)

# transformers' NemotronConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "nemotron": {
        "attention_bias": False,
        "head_dim": None,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "norm_eps": 1e-5,
        "num_key_value_heads": None,
        "partial_rotary_factor": _ROTATED,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
}


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/nemotron.py)."""
    config = sizes.config
    # the converter takes norm_eps for the epsilon of RMS norms too
    keys = [key for key in base_keys(arch, sizes) if ".rope.scaling." not in key.name]
    keys += [
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(config, "norm_eps") or 1e-5),
        Key(f"{arch}.rope.dimension_count", "u32", int(_rotated(config) * sizes.hidden) // sizes.n_head),
    ]
    factor = sizes.rope.get("factor")
    if factor is None:
        return [*keys, Key(f"{arch}.rope.scaling.type", "str", "none")]
    return [
        *keys,
        Key(f"{arch}.rope.scaling.type", "str", "linear"),
        Key(f"{arch}.rope.scaling.factor", "f32", factor),
    ]


def _rotated(config: Config) -> float:
    rope = config.get("rope_parameters") or {}
    return float(given(config, "partial_rotary_factor", default=rope.get("partial_rotary_factor", _ROTATED)))


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", "relu2", family="Nemotron")
    only(config, "tie_word_embeddings", False, family="Nemotron")
    return config


FORWARD = Architecture(
    norm=Norm("layer", offset=1.0),
    attention=Attention(rotary=lambda config: int(head_dim(config) * _rotated(config))),
    feed=FeedForward(gate=None),
)

FAMILY = Family(
    name="Nemotron",
    models="Nemotron-4, Minitron 4B/8B",
    architectures=("NemotronForCausalLM",),
    gguf_arch="nemotron",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    rope_kinds=("default", "linear"),
    forward=FORWARD,
    traits=Traits(layer_norm=True),
)
