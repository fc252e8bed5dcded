"""Qwen 1 to 3, their mixtures, Granite and its mixtures."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
ROUTED = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
QWEN2 = {**BASE, "model_type": "qwen2", "rope_theta": 1e6}
QWEN2MOE = {**BASE, **ROUTED, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 48, "rope_theta": 1e6}
QWEN3 = {**BASE, "model_type": "qwen3", "head_dim": 32, "rope_theta": 1e6}
QWEN3MOE = {**BASE, **ROUTED, "model_type": "qwen3_moe", "head_dim": 32, "rope_theta": 1e6, "norm_topk_prob": True}

SCALES = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.5,
}
GRANITE = {**BASE, **SCALES, "model_type": "granite"}
GRANITEMOE = {**BASE, **SCALES, "model_type": "granitemoe", "num_local_experts": 6, "num_experts_per_tok": 3}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def fused_experts(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Experts as transformers 5 holds them: gate above up in one tensor, stacked over the experts, and down."""
    published = {name: values for name, values in tensors.items() if ".experts." not in name}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.mlp.experts"

        def stacked(part: str, at: str = at) -> np.ndarray:
            return np.stack([tensors[f"{at}.{expert}.{part}.weight"] for expert in range(config["num_experts"])])

        published[f"{at}.gate_up_proj"] = np.concatenate([stacked("gate_proj"), stacked("up_proj")], axis=1)
        published[f"{at}.down_proj"] = stacked("down_proj")
    return config, published


def named_by_transformers_5(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Granite's experts by the names of transformers 5's classes, and its way to tell of rotary positions."""
    names = {
        "input_linear.weight": "experts.gate_up_proj",
        "output_linear.weight": "experts.down_proj",
        "router.layer.weight": "router.weight",
    }
    published = {}
    for name, values in tensors.items():
        for old, new in names.items():
            name = name.replace(f"block_sparse_moe.{old}", f"block_sparse_moe.{new}")
        published[name] = values
    kept = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    return {**kept, "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}, published


def qwen1(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Qwen 1's own names: q, k and v above each other in c_attn, up called w1 and gate w2, both counted in the size."""
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "lm_head": "lm_head",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.w1",
        "mlp.gate_proj": "mlp.w2",
        "mlp.down_proj": "mlp.c_proj",
    }
    published = {}
    for name, values in tensors.items():
        at = name.removeprefix("model.layers.")
        layer, part = at.split(".", 1) if at != name else ("", at)
        prefix = f"transformer.h.{layer}." if layer else ""
        part, kind = part.rsplit(".", 1)
        if part == "self_attn.q_proj":
            three = (tensors[name.replace("q_proj", linear)] for linear in ("q_proj", "k_proj", "v_proj"))
            published[f"{prefix}attn.c_attn.{kind}"] = np.concatenate(list(three))
        elif part in names:
            published[f"{prefix}{names[part]}.{kind}"] = values
    native = {key: config[key] for key in ("hidden_size", "initializer_range", "num_attention_heads", "use_cache")}
    return {
        **native,
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "attn_dropout_prob": 0.0,
        "bf16": True,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "intermediate_size": 2 * config["intermediate_size"],
        "kv_channels": config["hidden_size"] // config["num_attention_heads"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        "max_position_embeddings": 4 * config["max_position_embeddings"],
        "model_type": "qwen",
        "no_bias": True,
        "num_hidden_layers": config["num_hidden_layers"],
        "onnx_safe": None,
        "rotary_emb_base": config["rope_theta"],
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": config["max_position_embeddings"],
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": config["vocab_size"],
    }, published


CASES = (
    # the converter leaves the epsilon of Qwen 1's norms out, and llama.cpp does not load what it makes
    Case("qwen", {**QWEN2, "num_key_value_heads": 4, "rope_theta": 10000.0}, publish=qwen1, converter=False),
    Case("qwen2", QWEN2),
    Case("qwen2-tied-no-groups", {**QWEN2, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    Case("qwen2-yarn", {**QWEN2, "rope_scaling": YARN, "rope_theta": 10000.0}),
    Case("qwen2-linear", {**QWEN2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    Case("qwen2moe", QWEN2MOE),
    Case("qwen2moe-fused-no-biases", {**QWEN2MOE, "qkv_bias": False}, publish=fused_experts),
    Case("qwen3", QWEN3),
    Case("qwen3-tied-yarn", {**QWEN3, "tie_word_embeddings": True, "rope_scaling": YARN, "rope_theta": 10000.0}),
    Case("qwen3moe", QWEN3MOE),
    Case("qwen3moe-fused-tied", {**QWEN3MOE, "tie_word_embeddings": True}, publish=fused_experts),
    Case("granite", GRANITE),
    Case("granite-biases-tied", {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    # the converter has no name for the table of frequencies, which llama.cpp reads
    Case(
        "granite-llama3",
        {**GRANITE, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
        converter=False,
    ),
    # the converter forgets the width of a head and llama.cpp takes it from the other sizes
    Case("granite-wide-heads", {**GRANITE, "head_dim": 32}, converter=False),
    Case("granitemoe", {**GRANITEMOE, "tie_word_embeddings": True}),
    Case("granitemoe-biases", {**GRANITEMOE, "attention_bias": True}),
    Case("granitemoeshared", {**GRANITEMOE, "model_type": "granitemoeshared", "shared_intermediate_size": 48}),
    Case("granitemoeshared-without", {**GRANITEMOE, "model_type": "granitemoeshared", "num_key_value_heads": 4}),
    # the converter takes their old names only
    Case(
        "granitemoeshared-transformers-5",
        {**GRANITEMOE, "model_type": "granitemoeshared", "shared_intermediate_size": 48, "rope_theta": 1e6},
        publish=named_by_transformers_5,
        converter=False,
    ),
)
