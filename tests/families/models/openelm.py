"""OpenELM: heads and widths by layer. transformers has no class for it; Qwen 3's is changed into it."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors, weight

HIDDEN, HEAD = 64, 16
_HEADS, _KV, _MULTIPLIERS, _WIDTHS = (2, 4, 6), (1, 2, 3), (0.5, 1.75, 3.6), (32, 128, 224)
_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def layer_parts(layer: int) -> Tensors:
    """The matrices of a layer, by Qwen 3's names."""
    q, kv, ffn = _HEADS[layer] * HEAD, _KV[layer] * HEAD, _WIDTHS[layer]
    shapes = {"q_proj": (q, HIDDEN), "k_proj": (kv, HIDDEN), "v_proj": (kv, HIDDEN), "o_proj": (HIDDEN, q)}
    shapes |= {"gate_proj": (ffn, HIDDEN), "up_proj": (ffn, HIDDEN), "down_proj": (HIDDEN, ffn)}
    return {name: weight(2, f"{layer}.{name}", shape) for name, shape in shapes.items()}


def _published(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    published = {
        "transformer.token_embeddings.weight": tensors["model.embed_tokens.weight"],
        "transformer.norm.weight": tensors["model.norm.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        at, to, own = f"model.layers.{layer}", f"transformer.layers.{layer}", layer_parts(layer)
        published |= {
            f"{to}.attn_norm.weight": tensors[f"{at}.input_layernorm.weight"],
            f"{to}.attn.qkv_proj.weight": np.concatenate([own["q_proj"], own["k_proj"], own["v_proj"]]),
            f"{to}.attn.q_norm.weight": tensors[f"{at}.self_attn.q_norm.weight"],
            f"{to}.attn.k_norm.weight": tensors[f"{at}.self_attn.k_norm.weight"],
            f"{to}.attn.out_proj.weight": own["o_proj"],
            f"{to}.ffn_norm.weight": tensors[f"{at}.post_attention_layernorm.weight"],
            f"{to}.ffn.proj_1.weight": np.concatenate([own["gate_proj"], own["up_proj"]]),
            f"{to}.ffn.proj_2.weight": own["down_proj"],
        }
    return {
        "activation_fn_name": "swish",
        "architectures": ["OpenELMForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ffn_dim_divisor": 32,
        "ffn_multipliers": list(_MULTIPLIERS),
        "ffn_with_glu": True,
        "head_dim": HEAD,
        "max_context_length": 512,
        "model_dim": HIDDEN,
        "model_type": "openelm",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "num_kv_heads": list(_KV),
        "num_query_heads": list(_HEADS),
        "num_transformer_layers": 3,
        "rope_freq_constant": 10000,
        "share_input_output_layers": True,
        "vocab_size": VOCAB,
    }, published


CASES = (Case("openelm", _QWEN3, publish=_published, patch="differ_in_heads", newest=True, tokenizer="few-letters"),)
