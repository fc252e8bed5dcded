"""Tiny models whose projector quantkit has no rules for, as published; llama.cpp's converter writes it."""

from typing import Any

from tests.families.expected import expected
from tests.families.models import all_cases
from tests.families.models.breadth import COHERE2
from tests.families.models.case import VOCAB
from tests.families.models.free_late import EXAONE4_5, HUNYUAN_VL
from tests.families.models.free_towers import GLM4V, GLM4V_MOE, GLM_OCR, QWEN3
from tests.families.models.lfm2 import LFM2
from tests.families.models.llama4 import TEXT as LLAMA4
from tests.families.models.minicpm_v import MINICPM_V
from tests.families.models.wrappers import LLAMA
from tests.vision.cases import PIXTRAL, PROCESSOR, SIGLIP, TOWER, Case, _of

Layout = dict[str, tuple[int, ...]]
IN_TOWER = (r"^model\.vision_tower\.", "model.vision_tower.vision_model.")
PIXELS = {**PROCESSOR, "min_pixels": 784, "max_pixels": 50176}
GRANITE = {
    **LLAMA,
    "model_type": "granite",
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
}
QFORMER = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
}
SPEECH_ENCODER = {
    "model_type": "granite_speech_encoder",
    "context_size": 16,
    "conv_expansion_factor": 2,
    "conv_kernel_size": 15,
    "dim_head": 16,
    "feedforward_mult": 2,
    "hidden_dim": 64,
    "input_dim": 32,
    "max_pos_emb": 16,
    "num_heads": 4,
    "num_layers": 4,
    "output_dim": 48,
}
SPEECH = {
    "model_type": "granite_speech",
    "audio_token_index": 24,
    "downsample_rate": 5,
    "encoder_config": SPEECH_ENCODER,
    "has_lora_adapter": False,
    "projector_config": {**QFORMER, "model_type": "blip_2_qformer", "encoder_hidden_size": 64},
    "text_config": {**GRANITE, "architectures": ["GraniteForCausalLM"]},
    "window_size": 15,
}


def _wide(config: dict[str, Any], **vision: Any) -> dict[str, Any]:
    """The model with a tower of widths that blocks of Q8_0 divide."""
    return {**config, "vision_config": {**config["vision_config"], "hidden_size": 64, **vision}}


def _text_of(name: str, tower: str) -> tuple[dict[str, Any], Layout]:
    """config.json and the published tensors of the text model of a family's case; `tower` starts names of others."""
    known, case = expected(name), all_cases()[name][1]
    assert case.publish is not None
    import numpy as np

    empty = {key: np.empty(shape, np.float32) for key, shape in known.native["layout"].items()}
    tensors = case.publish(known.native["config"], empty)[1]
    return known.config, {key: value.shape for key, value in tensors.items() if not key.startswith(tower)}


def _with_bias(layout: Layout) -> Layout:
    """The linears and norms `layout` with their biases."""
    return {
        f"{name}.{part}": size
        for name, shape in layout.items()
        for part, size in {"weight": shape, "bias": shape[:1]}.items()
    }


def _kimi_vl() -> Case:
    """Kimi-VL's remote code: MoonViT with fused attention, a projector over four patches."""
    width, feed, hidden = 64, 112, 64
    config, layout = _text_of("kimi-vl", "vision_tower")
    tower: Layout = {
        "vision_tower.patch_embed.proj": (width, 3, 14, 14),
        "vision_tower.encoder.final_layernorm": (width,),
        "multi_modal_projector.pre_norm": (width,),
        "multi_modal_projector.linear_1": (4 * width, 4 * width),
        "multi_modal_projector.linear_2": (hidden, 4 * width),
    }
    for layer in range(3):
        at = f"vision_tower.encoder.blocks.{layer}"
        tower |= {f"{at}.norm0": (width,), f"{at}.norm1": (width,)}
        tower |= {f"{at}.wqkv": (3 * width, width), f"{at}.wo": (width, width)}
        tower |= {f"{at}.mlp.fc0": (feed, width), f"{at}.mlp.fc1": (width, feed)}
    layout |= {**_with_bias(tower), "vision_tower.patch_embed.pos_emb.weight": (8, 8, width)}
    vision = {
        "model_type": "moonvit",
        "hidden_size": width,
        "init_pos_emb_height": 8,
        "init_pos_emb_width": 8,
        "intermediate_size": feed,
        "merge_kernel_size": [2, 2],
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 14,
    }
    return Case("kimi-vl", {**config, "vision_config": vision}, layout=layout)


def _dots_ocr() -> Case:
    """dots.ocr's remote code: RMS norms without biases, a gated feed-forward."""
    width, feed, hidden = 64, 128, 64
    config, layout = _text_of("dots-ocr", "vision_tower")
    plain: Layout = {"vision_tower.patch_embed.patchifier.norm": (width,), "vision_tower.post_trunk_norm": (width,)}
    for layer in range(3):
        at = f"vision_tower.blocks.{layer}"
        plain |= {f"{at}.norm1": (width,), f"{at}.norm2": (width,)}
        plain |= {f"{at}.attn.qkv": (3 * width, width), f"{at}.attn.proj": (width, width)}
        plain |= {f"{at}.mlp.fc1": (feed, width), f"{at}.mlp.fc2": (width, feed), f"{at}.mlp.fc3": (feed, width)}
    biased = {
        "vision_tower.patch_embed.patchifier.proj": (width, 3, 14, 14),
        "vision_tower.merger.ln_q": (width,),
        "vision_tower.merger.mlp.0": (4 * width, 4 * width),
        "vision_tower.merger.mlp.2": (hidden, 4 * width),
    }
    layout |= {f"{name}.weight": shape for name, shape in plain.items()} | _with_bias(biased)
    vision = {
        "model_type": "dots_vit",
        "embed_dim": width,
        "hidden_size": width,
        "intermediate_size": feed,
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "rms_norm_eps": 1e-5,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
    }
    return Case("dots-ocr", {**config, "vision_config": vision}, {"preprocessor_config.json": PIXELS}, layout)


def _youtu_vl() -> Case:
    """Youtu-VL's remote code: SigLIP 2 with linear patches, windows in some layers, a merger of four patches."""
    width, feed, hidden = 64, 112, 64
    config, layout = _text_of("youtu-vl", ("siglip2", "merger"))  # type: ignore[arg-type]
    tower: Layout = {
        "siglip2.vision_model.embeddings.patch_embedding": (width, 3 * 16 * 16),
        "siglip2.vision_model.post_layernorm": (width,),
        "merger.mlp.0": (4 * width, 4 * width),
        "merger.mlp.2": (hidden, 4 * width),
    }
    for layer in range(3):
        at = f"siglip2.vision_model.encoder.layers.{layer}"
        tower |= {f"{at}.layer_norm1": (width,), f"{at}.layer_norm2": (width,)}
        tower |= {f"{at}.self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        tower |= {f"{at}.mlp.fc1": (feed, width), f"{at}.mlp.fc2": (width, feed)}
    layout |= {**_with_bias(tower), "merger.ln_q.weight": (width,)}
    vision = {
        "model_type": "siglip2_vision_model",
        "fullatt_block_indexes": [2],
        "hidden_size": width,
        "intermediate_size": feed,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 16,
        "window_size": 256,
    }
    return Case("youtu-vl", {**config, "vision_config": vision}, layout=layout)


BRIDGED = (
    Case(
        "cohere2-vision",
        _of(
            "Cohere2VisionForConditionalGeneration",
            {
                "model_type": "cohere2_vision",
                "alignment_intermediate_size": 128,
                "downsample_factor": 2,
                "image_token_id": 24,
                "text_config": {**COHERE2, "architectures": ["Cohere2ForCausalLM"]},
                "vision_config": {**SIGLIP, "layer_norm_eps": 1e-6},
            },
        ),
        {"preprocessor_config.json": {**PROCESSOR, "max_patches": 12}},
    ),
    Case(
        "exaone4.5",
        _of(
            "Exaone4_5_ForConditionalGeneration",
            _wide(EXAONE4_5, depth=3, fullatt_block_indexes=[1], intermediate_size=112, num_heads=4, patch_size=14),
        ),
        {"preprocessor_config.json": PIXELS},
    ),
    Case("glm4v", _of("Glm4vForConditionalGeneration", _wide(GLM4V, depth=3))),
    Case("glm4v-moe", _of("Glm4vMoeForConditionalGeneration", _wide(GLM4V_MOE, depth=3))),
    Case("glm-ocr", _of("GlmOcrForConditionalGeneration", _wide(GLM_OCR, depth=3))),
    Case("granite-speech", _of("GraniteSpeechForConditionalGeneration", SPEECH), {}, auto="AutoModelForSpeechSeq2Seq"),
    Case(
        "granite-speech-plus",
        _of(
            "GraniteSpeechPlusForConditionalGeneration",
            {
                **SPEECH,
                "model_type": "granite_speech_plus",
                "encoder_config": {
                    **SPEECH_ENCODER,
                    "model_type": "granite_speech_plus_encoder",
                    "cat_hidden_layers": [2],
                },
                "projector_config": {**QFORMER, "model_type": "blip_2_qformer", "encoder_hidden_size": 128},
            },
        ),
        {},
        auto="AutoModelForSpeechSeq2Seq",
    ),
    Case(
        "granite4-vision",
        _of(
            "Granite4VisionForConditionalGeneration",
            {
                "model_type": "granite4_vision",
                "deepstack_layer_map": [[-1, 0], [-2, 1]],
                "downsample_rate": "2/4",
                "image_grid_pinpoints": [[56, 112], [112, 56]],
                "image_token_index": 24,
                "qformer_config": {**QFORMER, "model_type": "blip_2_qformer", "num_hidden_layers": 1},
                "spatial_target_layers": [2, 3, 4, 5],
                "spatial_vision_layer": -1,
                "text_config": {
                    **GRANITE,
                    "model_type": "granite4_vision_text",
                    "architectures": ["GraniteForCausalLM"],
                    "num_hidden_layers": 6,
                },
                # llama.cpp's converter numbers the projectors as layers
                "vision_config": {**SIGLIP, "layer_norm_eps": 1e-6, "num_hidden_layers": 6},
            },
        ),
        published=(IN_TOWER,),
    ),
    Case(
        "hunyuan-vl",
        _of(
            "HunYuanVLForConditionalGeneration",
            _wide(HUNYUAN_VL, intermediate_size=112, num_hidden_layers=3, patch_size=16),
        ),
        {"preprocessor_config.json": PIXELS},
    ),
    Case(
        "janus",
        _of(
            "JanusForConditionalGeneration",
            {
                "model_type": "janus",
                "image_token_id": 24,
                "text_config": {**LLAMA, "architectures": ["LlamaForCausalLM"]},
                "tie_word_embeddings": False,
                "vision_config": {
                    **{key: value for key, value in SIGLIP.items() if key != "intermediate_size"},
                    "model_type": "janus_vision_model",
                    "mlp_ratio": 2.0,
                    "projection_dim": 64,
                    "hidden_act": "gelu",
                },
                "vq_config": {
                    "model_type": "janus_vqgan",
                    "base_channels": 32,
                    "channel_multiplier": [1, 1],
                    "embed_dim": 8,
                    "image_token_embed_dim": 64,
                    "latent_channels": 32,
                    "num_embeddings": 32,
                    "num_res_blocks": 1,
                    "projection_dim": 64,
                },
            },
        ),
    ),
    Case(
        "lfm2-vl",
        _of(
            "Lfm2VlForConditionalGeneration",
            {
                "model_type": "lfm2_vl",
                "downsample_factor": 2,
                "image_token_id": 24,
                "projector_hidden_size": 128,
                "text_config": {**LFM2, "architectures": ["Lfm2ForCausalLM"]},
                "vision_config": {
                    **TOWER,
                    "model_type": "siglip2_vision_model",
                    "layer_norm_eps": 1e-6,
                    "num_patches": 16,
                    "patch_size": 16,
                    "vision_use_head": False,
                },
                "vision_feature_layer": -1,
            },
        ),
        {"preprocessor_config.json": {**PROCESSOR, "resample": 2}},
        published=(IN_TOWER,),
    ),
    Case(
        "lighton-ocr",
        _of(
            "LightOnOCRForConditionalGeneration",
            {
                "model_type": "lighton_ocr",
                "image_token_id": 24,
                "spatial_merge_size": 2,
                "text_config": {**QWEN3, "architectures": ["Qwen3ForCausalLM"]},
                "tie_word_embeddings": False,
                "vision_config": PIXTRAL,
            },
        ),
    ),
    Case(
        "llama4",
        _of(
            "Llama4ForConditionalGeneration",
            {
                "model_type": "llama4",
                "image_token_index": 24,
                "text_config": {key: value for key, value in LLAMA4.items() if key != "architectures"},
                "tie_word_embeddings": False,
                "vision_config": {
                    **TOWER,
                    "model_type": "llama4_vision_model",
                    "hidden_act": "gelu",
                    "image_size": 56,
                    "norm_eps": 1e-5,
                    "patch_size": 14,
                    "pixel_shuffle_ratio": 0.5,
                    "intermediate_size": 256,
                    "projector_input_dim": 96,
                    "projector_output_dim": 96,
                    "rope_theta": 10000,
                    "vision_output_dim": 96,
                },
            },
        ),
    ),
    Case(
        "minicpm-v-4.6",
        _of("MiniCPMV4_6ForConditionalGeneration", _wide(MINICPM_V, intermediate_size=128, num_hidden_layers=3)),
        {"preprocessor_config.json": {**PROCESSOR, "downsample_mode": "16x", "scale_resolution": 32}},
    ),
    _dots_ocr(),
    _kimi_vl(),
    _youtu_vl(),
)
"""llama.cpp's converter knows the projector of each."""
