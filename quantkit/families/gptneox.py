"""GPT-NeoX and Pythia: two layer norms side by side or one after the other, one matrix for queries, keys and values.

Shape of the GGUF: llama.cpp's `gptneox` architecture (src/models/gptneox.cpp), whose fused matrix has all queries, then
all keys, then all values; the checkpoint has them head by head.
"""

from typing import Any

import numpy as np

from quantkit.families.base.family import Dropped, Family, Key, Rule, Take
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.refusals import GELU, only
from quantkit.families.base.traits import Traits
from quantkit.forward.config_keys import Config, given, head_dim
from quantkit.forward.description import Architecture, FeedForward
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import LAYER_NORM

_AT, _TO = "gpt_neox.layers.{layer}", "blk.{layer}"
_ROTATED = 0.25
_THETA = 10000.0
_NORMS = (
    (f"{_AT}.input_layernorm", f"{_TO}.attn_norm"),
    (f"{_AT}.post_attention_layernorm", f"{_TO}.ffn_norm"),
    ("gpt_neox.final_layer_norm", "output_norm"),
)
_LINEARS = (
    ("attention.dense", "attn_output", ("hidden", "hidden")),
    ("mlp.dense_h_to_4h", "ffn_up", ("ffn", "hidden")),
    ("mlp.dense_4h_to_h", "ffn_down", ("hidden", "ffn")),
)


def _by_role(sizes: Hyperparameters) -> Take:
    """Rows of shape (head, role, head_dim) in the order (role, head, head_dim)."""
    rows = np.arange(3 * sizes.hidden, dtype=np.int64).reshape(sizes.n_head, 3, sizes.head_dim)
    return Take(rows=rows.transpose(1, 0, 2).reshape(-1))


RULES = (
    Rule("gpt_neox.embed_in.weight", "token_embd.weight", ("vocab", "hidden")),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}", ("hidden",))
        for source, target in _NORMS
        for kind in ("weight", "bias")
    ),
    Rule(f"{_AT}.attention.query_key_value.weight", f"{_TO}.attn_qkv.weight", ("qkv", "hidden"), take=_by_role),
    Rule(f"{_AT}.attention.query_key_value.bias", f"{_TO}.attn_qkv.bias", ("qkv",), take=_by_role),
    *(Rule(f"{_AT}.{source}.weight", f"{_TO}.{target}.weight", shape) for source, target, shape in _LINEARS),
    *(Rule(f"{_AT}.{source}.bias", f"{_TO}.{target}.bias", shape[:1]) for source, target, shape in _LINEARS),
    Rule("embed_out.weight", "output.weight", ("vocab", "hidden")),
)

# transformers' GPTNeoXConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt_neox": {
        "attention_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rope_theta": _THETA,
        "rotary_pct": _ROTATED,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
    }
}


def _rotated(config: Config) -> float:
    rope = config.get("rope_parameters") or {}
    return float(given(config, "rotary_pct", default=rope.get("partial_rotary_factor", _ROTATED)))


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """In the order of llama.cpp's converter (conversion/gptneox.py)."""
    config = sizes.config
    return [
        Key(f"{arch}.context_length", "u32", sizes.context),
        Key(f"{arch}.embedding_length", "u32", sizes.hidden),
        Key(f"{arch}.block_count", "u32", sizes.n_layer),
        Key(f"{arch}.feed_forward_length", "u32", sizes.ffn),
        Key(f"{arch}.rope.dimension_count", "u32", int(_rotated(config) * sizes.head_dim)),
        Key(f"{arch}.attention.head_count", "u32", sizes.n_head),
        Key(f"{arch}.use_parallel_residual", "bool", bool(given(config, "use_parallel_residual", default=True))),
        Key(f"{arch}.attention.layer_norm_epsilon", "f32", number(config, "layer_norm_eps") or 1e-5),
    ]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "hidden_act", *GELU, family="GPT-NeoX")
    only(config, "attention_bias", True, family="GPT-NeoX")
    only(config, "tie_word_embeddings", False, family="GPT-NeoX")
    # the graph has no key for another base
    rope = config.get("rope_parameters") or {}
    base = {"rope_theta": rope.get("rope_theta", given(config, "rotary_emb_base", "rope_theta"))}
    only(base, "rope_theta", _THETA, family="GPT-NeoX")
    return config


FORWARD = Architecture(
    base="gpt_neox.",
    embedding="embed_in",
    norm=LAYER_NORM,
    attention=Attention(
        at="attention.",
        fused="query_key_value",
        grouped=True,
        out="dense",
        rotary=lambda config: int(head_dim(config) * _rotated(config)),
    ),
    feed=FeedForward(gate=None, up="dense_h_to_4h", down="dense_4h_to_h", default_activation="gelu"),
    last_norm="final_layer_norm",
    head="embed_out",
    variant=lambda config: {"parallel": bool(given(config, "use_parallel_residual", default=True))},
)

FAMILY = Family(
    name="GPT-NeoX",
    models="Pythia 14M to 12B, GPT-NeoX 20B, Dolly 2",
    architectures=("GPTNeoXForCausalLM",),
    gguf_arch="gptneox",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dropped=(Dropped(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),),
    dimensions=lambda sizes: {"qkv": 3 * sizes.hidden},
    rope_kinds=("default",),
    forward=FORWARD,
    traits=Traits(layer_norm=True),
)
