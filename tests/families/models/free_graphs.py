"""Models of remote code whose graph a class of transformers has under other names, and MPT."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors
from tests.families.models.free_names import STARCODER2
from tests.families.models.free_towers import TEXT

AUTO = "AutoModelForImageTextToText"
PADDLEOCR = {
    "model_type": "paddleocr_vl",
    "image_token_id": 280,
    "video_token_id": 281,
    "vision_start_token_id": 282,
    "vision_end_token_id": 283,
    "text_config": {
        **TEXT,
        "model_type": "paddleocr_vl_text",
        "head_dim": 32,
        "rope_scaling": {"mrope_section": [6, 5, 5], "rope_type": "default", "type": "default"},
        "tie_word_embeddings": False,
        "use_bias": False,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "paddleocr_vl_vision",
        "hidden_size": 32,
        "image_size": 16,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 4,
        "spatial_merge_size": 2,
    },
}
MAINCODER = {
    **TEXT,
    "model_type": "hunyuan_v1_dense",
    "attention_bias": False,
    "head_dim": 32,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
QWEN2_MOE = {
    **TEXT,
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0],
    "moe_intermediate_size": 32,
    "norm_topk_prob": False,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "qkv_bias": False,
    "shared_expert_intermediate_size": 64,
    "tie_word_embeddings": False,
}
MPT = {
    "model_type": "mpt",
    "architectures": ["MPTForCausalLM"],
    "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None},
    "d_model": 64,
    "expansion_ratio": 4,
    "max_seq_len": 512,
    "n_heads": 4,
    "n_layers": 3,
    "no_bias": True,
    "vocab_size": VOCAB,
}


def as_maincoder(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Hunyuan by the names of Maincoder's remote code, with the halves of a head as neighbours."""
    names = {"query_layernorm": "q_norm", "key_layernorm": "k_norm"}
    width, saved = config["head_dim"], {}
    neighbours = np.arange(width).reshape(2, -1).T.reshape(-1)
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(f".{old}.", f".{new}.")
        if any(part in name for part in (".q_proj.", ".k_proj.", ".q_norm.", ".k_norm.")):
            heads = tensor.reshape(-1, width, *tensor.shape[1:])
            tensor = np.ascontiguousarray(heads[:, neighbours].reshape(tensor.shape))
        saved[name] = tensor
    return {
        **config,
        "architectures": ["MaincoderForCausalLM"],
        "model_type": "maincoder",
        "use_qk_norm": True,
    }, saved


def as_deepseek_moe(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Qwen2-MoE by the names of DeepSeek-MoE; a gate of sigmoid(0) halves the shared experts, as half their weights."""
    saved = {}
    for name, tensor in tensors.items():
        if "shared_expert_gate" in name:
            tensor[:] = 0
        elif ".shared_expert." in name:
            half = np.float32(0.5) if "down_proj" in name else np.float32(1)
            saved[name.replace(".shared_expert.", ".shared_experts.")] = tensor * half
        else:
            saved[name] = tensor
    same = (
        *("hidden_size", "intermediate_size", "max_position_embeddings", "moe_intermediate_size", "vocab_size"),
        *("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "num_experts_per_tok"),
        *("rms_norm_eps", "rope_theta", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
    )
    return {
        **{key: config[key] for key in same if key in config},
        "architectures": ["DeepseekForCausalLM"],
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "model_type": "deepseek",
        "moe_layer_freq": 1,
        "n_routed_experts": config["num_experts"],
        "n_shared_experts": config["shared_expert_intermediate_size"] // config["moe_intermediate_size"],
        "norm_topk_prob": False,
        "rope_scaling": None,
        "scoring_func": "softmax",
    }, saved


def as_deepseek_ocr(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """DeepSeek-MoE as the text model of DeepSeek-OCR, beside parts of its towers."""
    text, saved = as_deepseek_moe(config, tensors)
    scale = {"routed_scaling_factor": 1.0, "topk_method": "greedy", "use_mla": False, "qk_rope_head_dim": 0}
    text = {key: value for key, value in text.items() if key not in ("model_type", "rope_theta")} | scale
    towers = ("sam_model.patch_embed.proj.weight", "vision_model.pre_layrnorm.weight", "projector.layers.weight")
    saved |= {f"model.{name}": np.ones((4, 4), np.float32) for name in (*towers, "image_newline", "view_seperator")}
    return {
        **text,
        "architectures": ["DeepseekOCRForCausalLM"],
        "language_config": {**text, "architectures": ["DeepseekV2ForCausalLM"]},
        "model_type": "deepseek_vl_v2",
    }, saved


def as_codeshell(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """StarCoder2 by the names of CodeShell's remote code."""
    names = (
        ("model.embed_tokens.", "transformer.wte."),
        ("model.norm.", "transformer.ln_f."),
        ("model.layers.", "transformer.h."),
        (".input_layernorm.", ".ln_1."),
        (".post_attention_layernorm.", ".ln_2."),
        (".self_attn.o_proj.", ".attn.c_proj."),
    )
    saved = {}
    for name, tensor in tensors.items():
        for old, new in names:
            name = name.replace(old, new)
        saved[name] = tensor
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [saved.pop(f"transformer.h.{layer}.self_attn.{role}_proj.{kind}") for role in "qkv"]
            saved[f"transformer.h.{layer}.attn.c_attn.{kind}"] = np.concatenate(parts)
    return {
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["CodeShellForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "group_query_attention": True,
        "layer_norm_epsilon": config["norm_epsilon"],
        "model_type": "codeshell",
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": config["max_position_embeddings"],
        "num_query_groups": config["num_key_value_heads"],
        "position_embedding_type": "rope",
        "tie_word_embeddings": False,
        "vocab_size": config["vocab_size"],
    }, saved


CASES = (
    Case("paddleocr-vl", PADDLEOCR, newest=True, auto=AUTO, tokenizer="few-letters"),
    Case("maincoder", MAINCODER, as_maincoder, newest=True),
    Case(
        "codeshell",
        {**STARCODER2, "intermediate_size": 256, "rope_theta": 10000.0, "tie_word_embeddings": False},
        as_codeshell,
        newest=True,
    ),
    Case("deepseek-moe", QWEN2_MOE, as_deepseek_moe),
    Case("deepseek-ocr", {**QWEN2_MOE, "num_key_value_heads": 4}, as_deepseek_ocr),
    Case("mpt", MPT, newest=True),
    Case(
        "mpt-clipped",
        {**MPT, "attn_config": {**MPT["attn_config"], "clip_qkv": 0.5}, "n_heads": 8},  # type: ignore[dict-item]
        newest=True,
        seed=1,
    ),
)
