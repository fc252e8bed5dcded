"""Qwen's models with Gated DeltaNet: three layers of it to one of gated attention, and a draft layer (MTP)."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors, weight

TEXT = {
    "model_type": "qwen3_5_text",
    "architectures": ["Qwen3_5ForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 512,
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e7,
        "rope_type": "default",
    },
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
VISION = {
    "model_type": "qwen3_5_vision",
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN35 = {
    "model_type": "qwen3_5",
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "text_config": {key: value for key, value in TEXT.items() if key != "architectures"},
    "vision_config": VISION,
    "image_token_id": 280,
    "video_token_id": 281,
    "vision_start_token_id": 282,
    "vision_end_token_id": 283,
    "tie_word_embeddings": False,
}


def with_draft(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Add the layer that predicts a second token, which transformers' classes leave out: one with attention."""
    layer = next(name for name in tensors if name.endswith("self_attn.q_proj.weight")).partition("self_attn")[0]
    moved = {name.removeprefix(layer): values.shape for name, values in tensors.items() if name.startswith(layer)}
    shapes = {f"mtp.layers.0.{name}": shape for name, shape in moved.items()}
    hidden = tensors[f"{layer}input_layernorm.weight"].shape[0]
    shapes |= {"mtp.fc.weight": (hidden, 2 * hidden), "mtp.norm.weight": (hidden,)}
    shapes |= {f"mtp.pre_fc_norm_{which}.weight": (hidden,) for which in ("embedding", "hidden")}
    return config, tensors | {name: weight(0, name, shape) for name, shape in shapes.items()}


def bare(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As the model without a head saves itself."""
    return config, {name.removeprefix("model."): values for name, values in tensors.items()}


def fused(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The experts of a layer in one tensor, as the mixtures are published; each expert's gate before its up."""
    result, at = {}, ".mlp.experts."
    for layer in {name.partition(at)[0] for name in tensors if f"{at}0." in name}:
        count = sum(name.startswith(layer + at) for name in tensors) // 3
        gate, up, down = (
            np.stack([tensors[f"{layer}{at}{expert}.{which}_proj.weight"] for expert in range(count)])
            for which in ("gate", "up", "down")
        )
        result |= {f"{layer}{at}gate_up_proj": np.concatenate([gate, up], axis=1), f"{layer}{at}down_proj": down}
    return config, result | {name: values for name, values in tensors.items() if f"{at}" not in name}


def fused_with_draft(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As a mixture is published."""
    return fused(*with_draft(config, tensors))


EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 48,
}
MOE_TEXT = {
    **{key: value for key, value in TEXT.items() if key not in ("intermediate_size", "architectures")},
    **EXPERTS,
    "model_type": "qwen3_5_moe_text",
}
QWEN35_MOE = {
    **QWEN35,
    "model_type": "qwen3_5_moe",
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "text_config": MOE_TEXT,
    "vision_config": {**VISION, "model_type": "qwen3_5_moe_vision"},
}
# Its config.json says nothing of the draft layer, and has rope in the older spelling.
NEXT = {
    **{key: value for key, value in TEXT.items() if key not in ("rope_parameters", "layer_types", "attn_output_gate")},
    **EXPERTS,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "rope_theta": 1e7,
}
for _key in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype"):
    del NEXT[_key]

# Seeds are such that torch's exp, which the converter takes of A_log, rounds correctly; one value in a hundred is off
# by an ulp, which ones differs by torch's build. DeltaNet norms its output, and the first token's is a multiple of one
# product q k: where that is about zero, rounding decides its sign, so a seed must also avoid this.
CASES = (
    Case("qwen35moe", QWEN35_MOE, publish=fused_with_draft, newest=True, auto="AutoModelForImageTextToText", seed=2),
    Case(
        "qwen35moe-separate",
        {**MOE_TEXT, "architectures": ["Qwen3_5MoeForCausalLM"]},
        publish=with_draft,
        newest=True,
        seed=1,
    ),
    Case("qwen3next", NEXT, publish=with_draft, newest=True, seed=1),
    Case("qwen35", QWEN35, publish=with_draft, newest=True, auto="AutoModelForImageTextToText"),
    Case(
        "qwen35-tied-equal-heads",
        {
            **TEXT,
            "tie_word_embeddings": True,
            "linear_num_value_heads": 2,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
        },
        publish=with_draft,
        newest=True,
    ),
    Case(
        "qwen35-bare",
        {
            **{key: value for key, value in TEXT.items() if key != "layer_types"},
            "architectures": ["Qwen3_5TextModel"],
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
            "full_attention_interval": 3,
            "linear_num_value_heads": 6,
        },
        publish=bare,
        newest=True,
    ),
)
