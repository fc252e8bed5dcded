"""Gemma 3n: AltUp, LAuReL, per-layer embeddings, sparse activations, shared keys and values."""

from dataclasses import replace
from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

SLIDING, FULL = "sliding_attention", "full_attention"
# llama.cpp has the rank, the number of streams and the width of a layer's input built in
TEXT: dict[str, Any] = {
    "model_type": "gemma3n_text",
    "activation_sparsity_pattern": [0.95] * 4,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "final_logit_softcapping": 30.0,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": [512] * 4,
    "laurel_rank": 64,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "sliding_window": 5,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
}
# as published: layers from the twentieth on share keys and values, and those after the tenth are not sparse
DEEP = {
    **TEXT,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15,
    "intermediate_size": 2048,
    "layer_types": [SLIDING, SLIDING, SLIDING, SLIDING, FULL] * 5,
    "num_hidden_layers": 25,
    "num_kv_shared_layers": 5,
}


def with_unused_keys(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Keys and values of all layers, as published, also where the model reads those of an earlier layer."""
    published = dict(tensors)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.self_attn"
        for name, shape in (("k_proj", (32, 64)), ("v_proj", (32, 64)), ("k_norm", (16,))):
            published.setdefault(f"{at}.{name}.weight", weight(0, f"{at}.{name}.weight", shape))
    return config, published


_CASES = (
    Case("gemma3n", TEXT),
    Case("gemma3n-deep", DEEP, publish=with_unused_keys),
    # the converter fills the rows of tokens past the table with zeros, where transformers reads the first row
    Case("gemma3n-fewer-rows", {**TEXT, "vocab_size_per_layer_input": 240}, converter=False),
)
# transformers divides the squares of n gates by n, llama.cpp by n - 1: the drift halves with each doubling of the width
CASES = tuple(replace(case, newest=True, tokenizer="gemma", drift=0.05) for case in _CASES)
