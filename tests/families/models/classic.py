"""Families with layer norms and fused queries, keys and values, and OLMo's line."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

BLOOM = {
    "model_type": "bloom",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "n_layer": 3,
    "n_head": 4,
    "layer_norm_epsilon": 1e-5,
    "seq_length": 512,
}


def without_prefix(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As saved from the model without its head's class: names without `transformer.`."""
    return config, {name.removeprefix("transformer."): value for name, value in tensors.items()}


def bigscience(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As BLOOM itself was published: its first names for sizes, no prefix."""
    other = {"hidden_size": "n_embed", "n_head": "num_attention_heads"}
    return without_prefix({other.get(name, name): value for name, value in config.items()}, tensors)


GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "n_ctx": 128,
}


def with_buffers(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As GPT-2 was published: no prefix, and each layer's causal mask among the tensors."""
    mask = np.tril(np.ones((1, 1, 128, 128), np.float32))
    masks = {f"h.{layer}.attn.bias": mask for layer in range(config["n_layer"])}
    return config, without_prefix(config, tensors)[1] | masks


FALCON = {
    "model_type": "falcon",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_kv_heads": 1,
}
FALCON_NEW = {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}


def first_release(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Falcon 40B as it was before transformers knew it: remote code, other names for sizes."""
    other = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    config = {other.get(name, name): value for name, value in config.items() if name != "new_decoder_architecture"}
    return {**config, "architectures": ["RWForCausalLM"], "model_type": "RefinedWeb"}, tensors


OLMO = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def fused(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """All experts of a layer in two tensors, gate above up: what transformers 5 has in memory."""
    result = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.mlp.experts"
        experts = [
            [tensors[f"{at}.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down")]
            for expert in range(config["num_experts"])
        ]
        result[f"{at}.gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up, _ in experts])
        result[f"{at}.down_proj"] = np.stack([down for _, _, down in experts])
    return config, result


CASES = (
    Case("bloom", BLOOM),
    # six heads: the slopes of ALiBi follow another rule where their count is no power of two
    Case("huozi", {**BLOOM, "hidden_size": 96, "n_head": 6}, publish=bigscience),
    Case("bloom-own-head", {**BLOOM, "tie_word_embeddings": False, "seq_length": 256}),
    Case("gpt2", GPT2),
    # the converter stumbles over the masks
    Case("gpt2-as-published", GPT2, publish=with_buffers, converter=False),
    Case("gpt2-own-head", {**GPT2, "tie_word_embeddings": False}),
    # the converter states four times the width whatever n_inner is, and llama.cpp then refuses the tensors
    Case("gpt2-inner", {**GPT2, "n_inner": 96}, converter=False),
    Case("falcon-7b", {**FALCON, "tie_word_embeddings": False}),
    # as Falcon 7B's own config.json has it: a count of key heads that multi_query overrides; the converter believes it
    Case("falcon-7b-as-published", {**FALCON, "num_kv_heads": 4}, converter=False),
    Case("falcon-many-keys", {**FALCON, "num_kv_heads": 4, "multi_query": False}),
    Case("falcon-40b", {**FALCON_NEW, "num_attention_heads": 8}),
    Case("falcon-40b-first-release", FALCON_NEW, publish=first_release),
    # one norm, its own base of rotation and context: the converter writes neither
    Case(
        "falcon2",
        {**FALCON_NEW, "num_ln_in_parallel_attn": 1, "rope_theta": 500.0, "max_position_embeddings": 512},
        converter=False,
    ),
    Case("olmo", {**OLMO, "model_type": "olmo", "num_key_value_heads": 2}),
    Case("olmo-clipped", {**OLMO, "model_type": "olmo", "clip_qkv": 1.5, "tie_word_embeddings": True}),
    Case("olmo2", {**OLMO, "model_type": "olmo2", "num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-6}),
    Case("olmo2-all-keys", {**OLMO, "model_type": "olmo2"}),
    Case(
        "olmo3",
        {**OLMO, "model_type": "olmo3", "num_hidden_layers": 5, "sliding_window": 6, "rope_scaling": YARN},
    ),
    Case("olmoe", {**OLMO, "model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3}),
    # the converter states an epsilon of its own
    Case(
        "olmoe-epsilon",
        {**OLMO, "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2, "rms_norm_eps": 0.05},
        converter=False,
    ),
    Case(
        "olmoe-fused",
        {**OLMO, "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
        publish=fused,
        converter=False,
    ),
)
