"""Text models within models that see, hear or speak, under names of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors
from tests.families.models.free_names import LLAMA, YOUTU
from tests.families.models.qwen_vision import AUTO
from tests.families.models.wrappers import LLAMA as NESTED_LLAMA
from tests.families.models.wrappers import QWEN2

TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN3 = {
    **TEXT,
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 32,
    "max_window_layers": 3,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
QWEN3_MOE = {
    **QWEN3,
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
PLAIN_QWEN2 = {**QWEN2, "tie_word_embeddings": False, "sliding_window": None, "use_sliding_window": False}
PHI3 = {
    **TEXT,
    "model_type": "phi3",
    "original_max_position_embeddings": 512,
    "pad_token_id": 2,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
GLM4V_VISION = {
    "model_type": "glm4v_vision",
    "attention_bias": False,
    "depth": 2,
    "hidden_size": 32,
    "image_size": 16,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
GLM4V = {
    "model_type": "glm4v",
    "image_token_id": 280,
    "video_token_id": 281,
    "image_start_token_id": 282,
    "image_end_token_id": 283,
    "video_start_token_id": 284,
    "video_end_token_id": 285,
    "text_config": {**TEXT, "model_type": "glm4v_text", "rope_parameters": SECTIONS},
    "vision_config": GLM4V_VISION,
    "tie_word_embeddings": False,
}
GLM_OCR = {
    **GLM4V,
    "model_type": "glm_ocr",
    "text_config": {
        **TEXT,
        "model_type": "glm_ocr_text",
        "head_dim": 32,
        "rope_parameters": {**SECTIONS, "mrope_section": [2, 3, 3]},
    },
    "vision_config": {**GLM4V_VISION, "model_type": "glm_ocr_vision"},
}
GLM4V_MOE = {
    **GLM4V,
    "model_type": "glm4v_moe",
    "text_config": {
        **TEXT,
        "model_type": "glm4v_moe_text",
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
        "rope_parameters": {**SECTIONS, "mrope_section": [2, 3, 3]},
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
    },
    "vision_config": {**GLM4V_VISION, "model_type": "glm4v_moe_vision"},
}
QWEN3_ASR = {
    "model_type": "qwen3_asr",
    "audio_token_id": 280,
    "audio_config": {
        "model_type": "qwen3_asr_encoder",
        "d_model": 32,
        "downsample_hidden_size": 8,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "encoder_layers": 1,
        "num_mel_bins": 16,
        "output_dim": 64,
    },
    "text_config": {
        **QWEN3,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "tie_word_embeddings": True,
    },
    "tie_word_embeddings": True,
}


def within(
    architecture: str,
    prefix: str = "",
    *,
    tower: tuple[str, ...] = (),
    model_type: str = "wrapper",
    nested: bool = True,
) -> Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]]:
    """The text model as remote code saves it: `prefix` before its names (for "model." in those of a class of its own),
    tensors of a tower, its config nested or not.
    """

    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        text = {key: value for key, value in config.items() if key != "architectures"}
        outer = {"text_config": text} if nested else {**text, "vision_config": {"hidden_size": 32}}
        others = {name: np.ones(8, np.float32) for name in tower}
        inner = prefix.startswith("model.")
        saved = {
            name.replace("model.", prefix, 1) if inner else f"{prefix}{name}": tensor
            for name, tensor in tensors.items()
        }
        return {**outer, "architectures": [architecture], "model_type": model_type}, saved | others

    return publish


def thinking(architecture: str, text_type: str) -> Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]]:
    """The text model as the thinker of a model that also speaks."""

    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        text = {key: value for key, value in config.items() if key not in ("architectures", "tie_word_embeddings")}
        rope = {"rope_type": "default", "mrope_section": [6, 5, 5] if "head_dim" in text else [2, 3, 3]}
        others = {
            name: np.ones(8, np.float32)
            for name in (
                "thinker.visual.merger.ln_q.weight",
                "thinker.audio_tower.ln_post.weight",
                "talker.norm.weight",
            )
        }
        saved = {f"thinker.{name}": tensor for name, tensor in tensors.items()}
        return {
            "architectures": [architecture],
            "model_type": text_type.removesuffix("_text"),
            "thinker_config": {"text_config": {**text, "model_type": text_type, "rope_scaling": rope}},
        }, saved | others

    return publish


def as_kormo(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The names of KORMo's remote code."""
    names = {"input_layernorm": "pre_attention_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
    saved = {}
    for name, tensor in tensors.items():
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        saved[name] = tensor
    return {**config, "architectures": ["KORMoForCausalLM"], "model_type": "kormo"}, saved


def bare_qwen2_vl(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Qwen2-VL saved without a head."""
    text = {key: value for key, value in config.items() if key != "architectures"}
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    saved = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    return {
        "architectures": ["Qwen2VLModel"],
        "model_type": "qwen2_vl",
        "text_config": {**text, "model_type": "qwen2_vl_text", "rope_scaling": rope},
    }, saved | {"visual.merger.ln_q.weight": np.ones(8, np.float32)}


def with_later_token(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As GLM-OCR is published: after the layers one that predicts a token further."""
    layers, hidden = config["text_config"]["num_hidden_layers"], config["text_config"]["hidden_size"]
    last, extra = f".layers.{layers - 1}.", f".layers.{layers}."
    further = {name.replace(last, extra): value for name, value in tensors.items() if f"language_model{last}" in name}
    for name, shape in (("eh_proj", (hidden, 2 * hidden)), ("enorm", (hidden,)), ("hnorm", (hidden,))):
        further[f"model.language_model{extra}{name}.weight"] = np.ones(shape, np.float32)
    text = {**config["text_config"], "num_nextn_predict_layers": 1}
    return {**config, "text_config": text}, tensors | further


VISUAL = ("model.visual.merger.ln_q.weight",)

CASES = (
    Case("vllama3", {**LLAMA, "architectures": ["VLlama3ForCausalLM"]}, newest=True),
    Case(
        "janus",
        NESTED_LLAMA,
        within(
            "JanusForConditionalGeneration",
            "model.language_model.",
            model_type="janus",
            tower=("model.vision_model.ln.weight", "model.aligner.fc1.weight", "model.generation_head.a.weight"),
        ),
        newest=True,
    ),
    Case(
        "sarashina2-vision",
        {**NESTED_LLAMA, "head_dim": 16},
        within("Sarashina2VisionForCausalLM", "llm.", tower=("visual.merger.ln_q.weight", "norm.weight")),
        newest=True,
    ),
    Case(
        "step3-vl", QWEN3, within("StepVLForConditionalGeneration", tower=("vit_large_projector.weight",)), newest=True
    ),
    Case("kormo", {**NESTED_LLAMA, "tie_word_embeddings": False}, as_kormo, newest=True),
    Case(
        "dots-ocr",
        {**PLAIN_QWEN2, "attention_bias": True},
        within("DotsOCRForCausalLM", tower=("vision_tower.merger.ln_q.weight",), model_type="dots_ocr", nested=False),
        newest=True,
    ),
    Case("qwen2.5-omni", PLAIN_QWEN2, thinking("Qwen2_5OmniModel", "qwen2_5_omni_text"), newest=True),
    Case("qwen2-vl-model", PLAIN_QWEN2, bare_qwen2_vl, newest=True, auto="AutoModel"),
    Case(
        "qwen3-asr",
        QWEN3_ASR,
        newest=True,
        auto="AutoModelForSpeechSeq2Seq",
        # the converter writes a template of its own, ours is the checkpoint's
        differs=("tokenizer.chat_template",),
    ),
    Case(
        "qwen3-omni",
        QWEN3_MOE,
        thinking("Qwen3OmniMoeForConditionalGeneration", "qwen3_omni_moe_text"),
        newest=True,
    ),
    Case(
        "youtu-vl",
        {**YOUTU, "head_dim": YOUTU["qk_rope_head_dim"]},
        within(
            "YoutuVLForConditionalGeneration",
            tower=("siglip2.ln.weight", "merger.ln_q.weight"),
            model_type="youtu_vl",
            nested=False,
        ),
        newest=True,
    ),
    Case(
        "phi4-vision",
        PHI3,
        within("Phi4ForCausalLMV", tower=("model.vision_tower.ln.weight", "model.mm_projector.0.weight"), nested=False),
        tokenizer="few-letters",
        newest=True,
    ),
    Case("glm-4v", GLM4V, newest=True, auto=AUTO, tokenizer="glm"),
    Case("glm-ocr", GLM_OCR, with_later_token, newest=True, auto=AUTO, tokenizer="glm"),
    Case("glm-4.5v", GLM4V_MOE, newest=True, auto=AUTO, tokenizer="glm-4.5"),
)
