"""Qwen 1: Qwen 2's architecture with q, k and v in one matrix; remote code (modeling_qwen.py).

Its config.json counts both halves of the gated MLP in intermediate_size. w1 is the up projection, w2 the gate. Up to
seq_length the model equals Qwen 2. Beyond, it stretches rotary positions and attention by the length of the text
(use_dynamic_ntk, use_logn_attn). A GGUF and Qwen 2 cannot express this, so the converted context is seq_length.
Shape of the GGUF: llama.cpp's `qwen` architecture (src/models/qwen.cpp).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Canonical, Family, Key, Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters, number, optional_size, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.native_config import shared
from quantkit.families.base.refusals import only
from quantkit.tokenizer.roles import TokenRoles

_AT, _TO, _NATIVE = "transformer.h.{layer}", "blk.{layer}", "model.layers.{layer}"

# (source, in the GGUF, in Qwen 2, shape); c_attn is taken apart for Qwen 2 only.
_SAME = (
    ("transformer.wte.weight", "token_embd.weight", "model.embed_tokens.weight", ("vocab", "hidden")),
    (f"{_AT}.ln_1.weight", f"{_TO}.attn_norm.weight", f"{_NATIVE}.input_layernorm.weight", ("hidden",)),
    (
        f"{_AT}.attn.c_proj.weight",
        f"{_TO}.attn_output.weight",
        f"{_NATIVE}.self_attn.o_proj.weight",
        ("hidden", "hidden"),
    ),
    (f"{_AT}.ln_2.weight", f"{_TO}.ffn_norm.weight", f"{_NATIVE}.post_attention_layernorm.weight", ("hidden",)),
    (f"{_AT}.mlp.w1.weight", f"{_TO}.ffn_up.weight", f"{_NATIVE}.mlp.up_proj.weight", ("ffn", "hidden")),
    (f"{_AT}.mlp.w2.weight", f"{_TO}.ffn_gate.weight", f"{_NATIVE}.mlp.gate_proj.weight", ("ffn", "hidden")),
    (f"{_AT}.mlp.c_proj.weight", f"{_TO}.ffn_down.weight", f"{_NATIVE}.mlp.down_proj.weight", ("hidden", "ffn")),
    ("transformer.ln_f.weight", "output_norm.weight", "model.norm.weight", ("hidden",)),
    ("lm_head.weight", "output.weight", "lm_head.weight", ("vocab", "hidden")),
)
_PACKED = (("weight", ("packed", "hidden")), ("bias", ("packed",)))


def _third(part: int) -> Callable[[Hyperparameters], Take]:
    return lambda sizes: rows(part * sizes.hidden, sizes.hidden)


RULES = (
    *(Rule(source, target, shape) for source, target, _, shape in _SAME),
    *(Rule(f"{_AT}.attn.c_attn.{kind}", f"{_TO}.attn_qkv.{kind}", shape) for kind, shape in _PACKED),
)
NATIVE_RULES = (
    *(Rule(source, native, shape) for source, _, native, shape in _SAME),
    *(
        Rule(f"{_AT}.attn.c_attn.{kind}", f"{_NATIVE}.self_attn.{name}_proj.{kind}", shape, take=_third(part))
        for kind, shape in _PACKED
        for part, name in enumerate("qkv")
    ),
)

# QWenConfig of the published code.
DEFAULTS = {
    "qwen": {
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "no_bias": True,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    }
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    only(config, "no_bias", True, family="Qwen")
    only(config, "rotary_pct", 1, family="Qwen")
    only(config, "scale_attn_weights", True, family="Qwen")
    only(config, "tie_word_embeddings", False, family="Qwen")
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    width = optional_size(config, "kv_channels") or hidden // heads
    if width * heads != hidden:
        raise UnsupportedError(
            f"config.json: {heads} heads of kv_channels {width} are not hidden_size {hidden}; llama.cpp runs Qwen only"
            " if heads times kv_channels equals hidden_size"
        )
    both = size(config, "intermediate_size")
    if both % 2:
        raise CheckpointError(
            f"config.json: intermediate_size {both} is odd; it must be even, because Qwen counts both halves of the MLP"
        )
    context, trained = optional_size(config, "max_position_embeddings"), optional_size(config, "seq_length")
    if trained and (config.get("use_dynamic_ntk") or config.get("use_logn_attn")):
        context = min(trained, context or trained)
    # num_key_value_heads is a default here: Qwen has as many key-value heads as heads
    return {key: value for key, value in config.items() if key not in ("num_key_value_heads", "layer_norm_epsilon")} | {
        "intermediate_size": both // 2,
        "max_position_embeddings": context,
        "rms_norm_eps": number(config, "layer_norm_epsilon"),
        "rope_theta": number(config, "rotary_emb_base"),
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """llama.cpp halves the feed-forward length itself."""
    double = f"{arch}.feed_forward_length"
    return [
        *(replace(key, value=2 * sizes.ffn) if key.name == double else key for key in base_keys(arch, sizes)),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
    ]


def _native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **shared(config),
        "hidden_act": "silu",
        "num_key_value_heads": config["num_attention_heads"],
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }


_END = "<|endoftext|>"

FAMILY = Family(
    name="Qwen",
    models="Qwen 1.8B/7B/14B/72B",
    architectures=("QWenLMHeadModel",),
    gguf_arch="qwen",
    rules=RULES,
    keys=_keys,
    defaults=DEFAULTS,
    prepare=_prepare,
    dimensions=lambda sizes: {"packed": 3 * sizes.hidden},
    rope_kinds=("default",),
    canonical=lambda sizes: Canonical(_native_config, NATIVE_RULES),
    token_roles=TokenRoles(first={"bos": _END, "eos": _END}, also={"unk": _END}),
)
