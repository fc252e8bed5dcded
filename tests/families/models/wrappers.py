"""Models that see images or hear audio around a text model that their config names."""

from typing import Any

import numpy as np

from tests.families.models.case import VOCAB, Case, Tensors
from tests.families.models.deepseek import V3

LLAMA = {
    "model_type": "llama",
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
MISTRAL = {**LLAMA, "model_type": "mistral", "head_dim": 32, "sliding_window": None}
QWEN2 = {**LLAMA, "model_type": "qwen2", "rope_theta": 1e6}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "projection_dim": 32,
    "vocab_size": 32,
}
LLAVA = {
    "model_type": "llava",
    "image_token_index": 10,
    "projector_hidden_act": "gelu",
    "text_config": {**LLAMA, "architectures": ["LlamaForCausalLM"]},
    "tie_word_embeddings": False,
    "vision_config": CLIP,
}
IDEFICS3 = {
    "model_type": "idefics3",
    "image_token_id": 10,
    "scale_factor": 2,
    "text_config": {**LLAMA, "architectures": ["VLlama3ForCausalLM"]},
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "idefics3_vision",
        "hidden_size": 32,
        "image_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
    },
}
INTERNVL = {
    "model_type": "internvl",
    "downsample_ratio": 0.5,
    "image_token_id": 10,
    "text_config": {**QWEN2, "architectures": ["Qwen2ForCausalLM"]},
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "internvl_vision",
        "hidden_size": 32,
        "image_size": [32, 32],
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": [8, 8],
    },
}
AUDIO = {
    "activation_function": "gelu",
    "max_source_positions": 16,
    "num_mel_bins": 8,
}
VOXTRAL = {
    "model_type": "voxtral",
    "audio_config": {
        **AUDIO,
        "model_type": "voxtral_encoder",
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    },
    "audio_token_id": 24,
    "projector_hidden_act": "gelu",
    "text_config": {**LLAMA, "head_dim": 32},
}
QWEN2_AUDIO = {
    "model_type": "qwen2_audio",
    "audio_config": {
        **AUDIO,
        "model_type": "qwen2_audio_encoder",
        "d_model": 32,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "encoder_layers": 2,
    },
    "audio_token_index": 24,
    "text_config": QWEN2,
}
AUDIO_FLAMINGO3 = {
    **VOXTRAL,
    "model_type": "audioflamingo3",
    "audio_config": {**VOXTRAL["audio_config"], "model_type": "audioflamingo3_encoder"},  # type: ignore[dict-item]
    "text_config": {**QWEN2, "architectures": ["Qwen2ForCausalLM"]},
}
# in sizes that a group of 16 inputs divides
KIMI = {**V3, "q_lora_rank": 32, "v_head_dim": 16, "moe_intermediate_size": 32}
AUTO = "AutoModelForImageTextToText"


def as_chat_model(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """InternVL as its remote code has it: llm_config, and its own names of the tower and the projector."""
    own = {"^": "", "vision_tower.": "vision_model.", "multi_modal_projector.": "mlp1."}
    published = {}
    for name, tensor in tensors.items():
        start = next((start for start in own if name.startswith(start)), "^")
        published[name.replace(start, own[start], 1)] = tensor
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "llm_config": config["text_config"],
        "vision_config": config["vision_config"],
    }, published


def within_kimi(architecture: str) -> Any:
    """DeepSeek-V3 as the text model of Kimi's remote code."""

    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        published = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
        tower = {"vision_tower.patch_embed.proj.weight": np.ones((4, 3, 2, 2), np.float32)}
        kind = "kimi_vl" if architecture.startswith("KimiVL") else "kimi_k25"
        return {
            "architectures": [architecture],
            "model_type": kind,
            "text_config": {**config, "architectures": ["DeepseekV3ForCausalLM"]},
            "vision_config": {"model_type": "moonvit"},
        }, published | tower

    return publish


CASES = (
    Case("llava", LLAVA, newest=True, auto=AUTO),
    # Pixtral: the nested config has no architectures
    Case("llava-mistral", {**LLAVA, "text_config": MISTRAL}, newest=True, auto=AUTO),
    Case(
        "llava-next",
        {
            **LLAVA,
            "model_type": "llava_next",
            "image_grid_pinpoints": [[32, 64], [64, 32]],
            "text_config": {**MISTRAL, "architectures": ["MistralForCausalLM"]},
        },
        newest=True,
        auto=AUTO,
    ),
    Case("idefics3", IDEFICS3, newest=True, auto=AUTO),
    Case(
        "smolvlm",
        {
            **IDEFICS3,
            "model_type": "smolvlm",
            "vision_config": {**IDEFICS3["vision_config"], "model_type": "smolvlm_vision"},  # type: ignore[dict-item]
        },
        newest=True,
        auto=AUTO,
    ),
    Case("internvl", INTERNVL, newest=True, auto=AUTO),
    Case("internvl-chat", INTERNVL, as_chat_model, newest=True, auto=AUTO),
    Case("voxtral", VOXTRAL, newest=True, auto="AutoModelForMultimodalLM"),
    Case("qwen2-audio", QWEN2_AUDIO, newest=True, auto="AutoModelForMultimodalLM"),
    Case("audio-flamingo3", AUDIO_FLAMINGO3, newest=True, auto="AutoModelForSeq2SeqLM"),
    Case("kimi-vl", KIMI, within_kimi("KimiVLForConditionalGeneration"), seed=3),
    Case("kimi-k2.5", KIMI, within_kimi("KimiK25ForConditionalGeneration"), seed=3),
)
