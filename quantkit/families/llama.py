"""Llama 1, 2 and 3, and everything published in its shape: Mistral, Yi, SmolLM, TinyLlama and many more.

Shape of the GGUF: llama.cpp's `llama` architecture (src/models/llama.cpp); names of its converter.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.family import Computed, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import BARE_PREFIX
from quantkit.families.base.pooling import as_bare_model
from quantkit.families.base.refusals import SILU, only, plain_yarn, window_ignored
from quantkit.forward.description import Architecture
from quantkit.forward.mixers import Attention
from quantkit.forward.settings import every_layer, flag
from quantkit.tokenizer.roles import LLAMA_ROLES

ATTENTION = (
    Rule("model.layers.{layer}.input_layernorm.weight", "blk.{layer}.attn_norm.weight", ("hidden",)),
    Rule("model.layers.{layer}.self_attn.q_proj.weight", "blk.{layer}.attn_q.weight", ("q", "hidden"), heads="n_head"),
    Rule("model.layers.{layer}.self_attn.q_proj.bias", "blk.{layer}.attn_q.bias", ("q",), "n_head", required=False),
    Rule(
        "model.layers.{layer}.self_attn.k_proj.weight", "blk.{layer}.attn_k.weight", ("kv", "hidden"), heads="n_head_kv"
    ),
    Rule("model.layers.{layer}.self_attn.k_proj.bias", "blk.{layer}.attn_k.bias", ("kv",), "n_head_kv", required=False),
    Rule("model.layers.{layer}.self_attn.v_proj.weight", "blk.{layer}.attn_v.weight", ("kv", "hidden")),
    Rule("model.layers.{layer}.self_attn.v_proj.bias", "blk.{layer}.attn_v.bias", ("kv",), required=False),
    Rule("model.layers.{layer}.self_attn.o_proj.weight", "blk.{layer}.attn_output.weight", ("hidden", "q")),
    Rule("model.layers.{layer}.self_attn.o_proj.bias", "blk.{layer}.attn_output.bias", ("hidden",), required=False),
    Rule("model.layers.{layer}.post_attention_layernorm.weight", "blk.{layer}.ffn_norm.weight", ("hidden",)),
)

MLP = (
    Rule("model.layers.{layer}.mlp.gate_proj.weight", "blk.{layer}.ffn_gate.weight", ("ffn", "hidden")),
    Rule("model.layers.{layer}.mlp.gate_proj.bias", "blk.{layer}.ffn_gate.bias", ("ffn",), required=False),
    Rule("model.layers.{layer}.mlp.up_proj.weight", "blk.{layer}.ffn_up.weight", ("ffn", "hidden")),
    Rule("model.layers.{layer}.mlp.up_proj.bias", "blk.{layer}.ffn_up.bias", ("ffn",), required=False),
    Rule("model.layers.{layer}.mlp.down_proj.weight", "blk.{layer}.ffn_down.weight", ("hidden", "ffn")),
    Rule("model.layers.{layer}.mlp.down_proj.bias", "blk.{layer}.ffn_down.bias", ("hidden",), required=False),
)

ENDS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), required=False, tied_to_embedding=True),
)


def llama_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The architecture's keys, in the order llama.cpp's converter writes them for its LlamaModel."""
    return [
        *base_keys(arch, sizes),
        Key(f"{arch}.vocab_size", "u32", sizes.vocab),
        Key(f"{arch}.rope.dimension_count", "u32", sizes.head_dim),
    ]


def rope_frequencies(theta: float, width: int) -> NDArray[np.float32]:
    """The angle per position of each pair of `width` rotated values, float32 (width / 2,), as torch computes it.

    torch's power is the rounded power of float64 in almost all values.
    """
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    power = np.float64(theta) ** exponent.astype(np.float64)
    return np.float32(1.0) / power.astype(np.float32)


def llama3_rope_factors(sizes: Hyperparameters) -> NDArray[np.float32] | None:
    """Llama 3.1's frequency divisors, float32 (head_dim / 2,), or None without that scaling.

    `factor` divides long wavelengths; short ones stay; a blend covers the range between (Llama 3.1 reference code,
    transformers' `_compute_llama3_parameters`). Steps in float32 follow llama.cpp's converter, so the bytes agree.
    torch divides a number by a tensor as the tensor's reciprocal times the number.
    """
    rope = sizes.rope
    if rope.get("rope_type") != "llama3":
        return None
    factor = rope["factor"]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    original = rope.get("original_max_position_embeddings", 8192)
    frequencies = rope_frequencies(rope.get("rope_theta", 10000.0), sizes.head_dim)

    def over(number: float, value: np.float32) -> np.float32:
        return np.float32(1) / value * np.float32(number)

    def divisor(frequency: np.float32) -> np.float32:
        wavelength = over(2 * math.pi, frequency)
        if wavelength < np.float32(original / high):
            return np.float32(1)
        if wavelength > np.float32(original / low):
            return np.float32(factor)
        smooth = (over(original, wavelength) - np.float32(low)) / np.float32(high - low)
        return np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)

    return np.array([divisor(frequency) for frequency in frequencies], dtype=np.float32)


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that differ from the constants of llama.cpp's `llama` graph."""
    only(config, "hidden_act", *SILU, family="Llama")
    plain_yarn(config, "Llama")
    as_bare_model(config)
    return config


# transformers' LlamaConfig, MistralConfig and IQuestCoderConfig.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": None},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "iquestcoder": {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}

# transformers' Llama; families that differ from Llama only in ALiBi set `alibi` (see Canonical)
FORWARD = Architecture(attention=Attention(alibi=flag("alibi")))

FAMILY = Family(
    name="Llama",
    models="Llama 1/2/3, Mistral, Yi, SmolLM, TinyLlama, IQuest-Coder",
    architectures=(
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "MistralForCausalLM",
        "IQuestCoderForCausalLM",
        "LlamaModel",
        "VLlama3ForCausalLM",
    ),
    gguf_arch="llama",
    rules=ATTENTION + MLP + ENDS,
    keys=llama_keys,
    computed=(Computed("rope_freqs.weight", llama3_rope_factors),),
    defaults=DEFAULTS,
    prepare=prepare,
    cautions=window_ignored,
    rename=BARE_PREFIX,
    forward={
        "LlamaForCausalLM": FORWARD,
        "LLaMAForCausalLM": FORWARD,
        "IQuestCoderForCausalLM": FORWARD,
        "VLlama3ForCausalLM": FORWARD,
        "MistralForCausalLM": Architecture(attention=Attention(window=every_layer)),
    },
    token_roles=LLAMA_ROLES,
)
