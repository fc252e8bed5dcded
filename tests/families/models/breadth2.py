"""EXAONE, GLM-4-9B, StarCoder, Jais 2; XVERSE, MiniCPM and Orion in the layouts of their remote code."""

from typing import Any

from tests.families.models.breadth import SIZES
from tests.families.models.case import Case, Tensors

LLAMA3 = {
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
EXAONE4 = {
    **SIZES,
    "model_type": "exaone4",
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "rope_scaling": LLAMA3,
    "layer_types": ["full_attention"] * 3,
    "sliding_window": None,
    "sliding_window_pattern": None,
    "tie_word_embeddings": True,
}
EXAONE4_32B = {
    **EXAONE4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 8,
    "num_hidden_layers": 64,
    "sliding_window": 5,
    "sliding_window_pattern": "LLLG",
    "layer_types": [("full" if layer % 4 == 3 else "sliding") + "_attention" for layer in range(64)],
    "tie_word_embeddings": False,
}
GLM = {
    **SIZES,
    "model_type": "glm",
    "attention_bias": True,
    "head_dim": 16,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "pad_token_id": 0,
    "rms_norm_eps": 1.5625e-7,
    "rope_theta": 1e5,
}
BIGCODE = {
    "model_type": "gpt_bigcode",
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-5,
    "multi_query": True,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": 256,
    "n_layer": 3,
    "n_positions": 512,
    "vocab_size": SIZES["vocab_size"],
    "bos_token_id": 0,
    "eos_token_id": 2,
}
JAIS2 = {
    **SIZES,
    "model_type": "jais2",
    "attention_bias": True,
    "head_dim": 16,
    "hidden_act": "relu2",
    "layer_norm_eps": 1e-5,
    "mlp_bias": True,
    "num_key_value_heads": 2,
    "rope_theta": 500000.0,
}
LLAMA = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
GRANITE = {
    **LLAMA,
    "model_type": "granite",
    "num_key_value_heads": 2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 1.5 / 3**0.5,
    "logits_scaling": 4.0,
    "attention_multiplier": 0.25,
    "tie_word_embeddings": True,
}
STABLELM = {
    **SIZES,
    "model_type": "stablelm",
    "layer_norm_eps": 1e-5,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 1.0,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def _remote(native: dict[str, Any], name: str, **stated: Any) -> dict[str, Any]:
    kept = {key: native[key] for key in SIZES if key in native}
    return {
        **kept,
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": f"modeling_{name.lower()}.{name}ForCausalLM"},
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": name.lower(),
        "use_cache": True,
        **stated,
    }


def _xverse(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _remote(native, "Xverse", rms_norm_eps=1e-6, tie_word_embeddings=False), tensors


def _minicpm(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    scales = {"scale_emb": 3, "scale_depth": 1.5, "dim_model_base": 16, "num_key_value_heads": 2, "rope_theta": 10000.0}
    return _remote(native, "MiniCPM", rms_norm_eps=1e-6, tie_word_embeddings=True, **scales), tensors


def _orion(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _remote(native, "Orion", rms_norm_eps=1e-5, num_key_value_heads=4, tie_word_embeddings=False), tensors


_EXAONE_NAMES = (
    ("model.layers.", "transformer.h."),
    (".input_layernorm.", ".ln_1."),
    (".post_attention_layernorm.", ".ln_2."),
    (".self_attn.o_proj.", ".attn.attention.out_proj."),
    (".self_attn.", ".attn.attention."),
    (".mlp.gate_proj.", ".mlp.c_fc_0."),
    (".mlp.up_proj.", ".mlp.c_fc_1."),
    (".mlp.down_proj.", ".mlp.c_proj."),
    ("model.embed_tokens.", "transformer.wte."),
    ("model.norm.", "transformer.ln_f."),
)


def _exaone(native: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    published = {}
    for name, value in tensors.items():
        for old, new in _EXAONE_NAMES:
            name = name.replace(old, new)
        published[name] = value
    config = _remote(native, "Exaone", layer_norm_epsilon=1e-5, num_key_value_heads=2, rope_theta=1e6)
    config["activation_function"] = config.pop("hidden_act")
    config["num_layers"] = config.pop("num_hidden_layers")
    config |= {"rope_scaling": {**LLAMA3, "factor": 8.0}, "tie_word_embeddings": False, "head_dim": 16}
    return config, published


CASES = (
    Case("exaone4", EXAONE4, newest=True),
    Case("exaone4-32b", EXAONE4_32B, newest=True),
    # llama.cpp's converter writes the hidden size for the context, another epsilon and another rotary base
    Case("glm", GLM, newest=True, converter=False),
    Case("gpt-bigcode", BIGCODE),
    Case("jais2", JAIS2, newest=True),
    # the converter takes any tokenizer.json for SentencePiece's
    Case("xverse", LLAMA, publish=_xverse, vocabulary=False),
    Case("minicpm", GRANITE, publish=_minicpm, tokenizer="few-letters"),
    Case("orion", STABLELM, publish=_orion, tokenizer="few-letters"),
    Case(
        "exaone",
        {
            **LLAMA,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 2,
            "rope_theta": 1e6,
            "rope_scaling": LLAMA3 | {"factor": 8.0},
        },
        publish=_exaone,
        # with transformers 4 the converter writes the epsilon of a layer norm, and llama.cpp does not load the file
        converter=False,
    ),
)
