"""Tiny models that see images: config.json as the hub has it, and the settings of their image processor."""

from dataclasses import dataclass, field
from typing import Any

from tests.families.models.case import VOCAB
from tests.families.models.gemma4 import AUDIO as GEMMA4_AUDIO
from tests.families.models.gemma4 import IDS as GEMMA4_IDS
from tests.families.models.gemma4 import LARGE as GEMMA4_TEXT
from tests.families.models.mistral3 import MISTRAL3
from tests.families.models.qwen_delta import QWEN35
from tests.families.models.qwen_vision import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from tests.families.models.wrappers import AUDIO_FLAMINGO3, LLAMA, MISTRAL, QWEN2, QWEN2_AUDIO, VOXTRAL

PROCESSOR = {"image_mean": [0.5, 0.45, 0.4], "image_std": [0.25, 0.3, 0.5]}
# Widths that 32 divides, so that Q8_0 applies, and a feed-forward that it does not divide.
TOWER = {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_hidden_layers": 3}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
# three layers: llama.cpp's converter numbers the projector's matrices as layers
QWEN = {"depth": 3, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN3 = {
    **QWEN,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
    "patch_size": 16,
    "deepstack_visual_indexes": [0, 2],
}
GEMMA3_TEXT = {
    "model_type": "gemma3_text",
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
}
PIXTRAL = {
    "model_type": "pixtral",
    "head_dim": 16,
    "hidden_act": "gelu",
    "image_size": 112,
    "num_channels": 3,
    "patch_size": 14,
    "rope_theta": 10000.0,
    **TOWER,
}
IDEFICS3 = {
    "image_token_id": 10,
    "scale_factor": 2,
    "text_config": {**LLAMA, "architectures": ["VLlama3ForCausalLM"]},
    "tie_word_embeddings": False,
}
INTERN_TOWER: dict[str, Any] = {
    **TOWER,
    # llama.cpp's converter numbers the projector's matrices as layers
    "num_hidden_layers": 4,
    "architectures": ["InternVisionModel"],
    "hidden_act": "gelu",
    "image_size": [56, 56],
    "layer_norm_eps": 1e-6,
    "patch_size": [14, 14],
}
# The newest converter leaves out the embedding of [IMG_BREAK] if the text model has the hub's prefix; llama.cpp does
# not load such a file (tests/vision/test_projectors.py).
ALONE = ((r"^(language_model\.model|model\.language_model)\.", "model."), (r"^language_model\.(?=lm_head)", ""))


@dataclass(frozen=True)
class Case:
    """One tiny model. `config` is config.json as published.

    `processors`: the files of the image processor, by name. `layout`: names and shapes of the tensors where
    transformers has no class for the architecture; otherwise they are those that its class saves. `published`: pairs
    (regular expression, replacement) from these names to those on the hub. `break_token`: the tokenizer has the token
    [IMG_BREAK]. `auto`: the class of transformers that makes it.
    """

    name: str
    config: dict[str, Any]
    processors: dict[str, Any] = field(default_factory=lambda: {"preprocessor_config.json": PROCESSOR})
    layout: dict[str, tuple[int, ...]] | None = None
    published: tuple[tuple[str, str], ...] = ()
    break_token: bool = False
    auto: str = "AutoModelForImageTextToText"


def _of(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "architectures": [architecture]}


def _intern_layout() -> dict[str, tuple[int, ...]]:
    """Names of InternVL's remote code: fused attention, a scale of each branch, a projector of a norm and two linears.

    The text model is Qwen 2 of the sizes in `QWEN2`.
    """
    width, feed, text = TOWER["hidden_size"], TOWER["intermediate_size"], QWEN2["hidden_size"]
    patches = (56 // 14) ** 2
    layout: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, patches + 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (text, 4 * width),
        "mlp1.1.bias": (text,),
        "mlp1.3.weight": (text, text),
        "mlp1.3.bias": (text,),
    }
    for layer in range(INTERN_TOWER["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{layer}"
        layout |= {f"{at}.ls1": (width,), f"{at}.ls2": (width,)}
        for name, shape in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (feed, width),
            "mlp.fc2": (width, feed),
            "norm1": (width,),
            "norm2": (width,),
        }.items():
            layout |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": (shape[0],)}
    heads, groups, vocab, inner = 4, 2, QWEN2["vocab_size"], QWEN2["intermediate_size"]
    layout |= {
        "language_model.model.embed_tokens.weight": (vocab, text),
        "language_model.lm_head.weight": (vocab, text),
        "language_model.model.norm.weight": (text,),
    }
    for layer in range(QWEN2["num_hidden_layers"]):
        at = f"language_model.model.layers.{layer}"
        layout |= {f"{at}.{name}.weight": (text,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in {"q": text, "k": text * groups // heads, "v": text * groups // heads}.items():
            layout |= {f"{at}.self_attn.{name}_proj.weight": (rows, text), f"{at}.self_attn.{name}_proj.bias": (rows,)}
        layout |= {
            f"{at}.self_attn.o_proj.weight": (text, text),
            f"{at}.mlp.gate_proj.weight": (inner, text),
            f"{at}.mlp.up_proj.weight": (inner, text),
            f"{at}.mlp.down_proj.weight": (text, inner),
        }
    return layout


_AUDIO = {
    "activation_function": "gelu",
    "hidden_size": 64,
    "intermediate_size": 256,
    "max_source_positions": 16,
    "num_attention_heads": 4,
    # llama.cpp's converter numbers convolutions and matrices of the projector as layers
    "num_hidden_layers": 4,
    "num_mel_bins": 32,
}
HEARING = (
    Case(
        "voxtral",
        _of(
            "VoxtralForConditionalGeneration",
            {**VOXTRAL, "audio_config": {**_AUDIO, "model_type": "voxtral_encoder"}},
        ),
        {},
        auto="AutoModelForMultimodalLM",
    ),
    Case(
        "qwen2-audio",
        _of(
            "Qwen2AudioForConditionalGeneration",
            {
                **QWEN2_AUDIO,
                "audio_config": {
                    **{key: value for key, value in _AUDIO.items() if "_size" not in key and "num_a" not in key},
                    "model_type": "qwen2_audio_encoder",
                    "d_model": 64,
                    "encoder_attention_heads": 4,
                    "encoder_ffn_dim": 112,
                    "encoder_layers": 4,
                },
            },
        ),
        {},
        auto="AutoModelForMultimodalLM",
    ),
    Case(
        "audio-flamingo3",
        _of(
            "AudioFlamingo3ForConditionalGeneration",
            {**AUDIO_FLAMINGO3, "audio_config": {**_AUDIO, "model_type": "audioflamingo3_encoder"}},
        ),
        {},
        auto="AutoModelForSeq2SeqLM",
    ),
)
"""Models that hear only."""
CASES = (
    Case(
        "qwen2-vl",
        _of(
            "Qwen2VLForConditionalGeneration",
            {
                **QWEN2_VL,
                "vision_config": {**QWEN, "model_type": "qwen2_vl", "embed_dim": 96, "hidden_size": 64, "mlp_ratio": 2},
            },
        ),
    ),
    Case(
        "qwen2.5-vl",
        _of(
            "Qwen2_5_VLForConditionalGeneration",
            {
                **QWEN2_5_VL,
                "vision_config": {
                    **QWEN,
                    "model_type": "qwen2_5_vl",
                    "fullatt_block_indexes": [2],
                    "hidden_size": 96,
                    "intermediate_size": 112,
                    "out_hidden_size": 64,
                    "window_size": 112,
                },
            },
        ),
    ),
    Case("qwen3-vl", _of("Qwen3VLForConditionalGeneration", {**QWEN3_VL, "vision_config": QWEN3})),
    Case(
        "qwen3.5",
        {
            **QWEN35,
            "text_config": {
                key: value for key, value in QWEN35["text_config"].items() if key != "mtp_num_hidden_layers"
            },
            "vision_config": {
                **{key: value for key, value in QWEN3.items() if key != "deepstack_visual_indexes"},
                "model_type": "qwen3_5_vision",
            },
        },
    ),
    Case(
        "gemma3",
        _of(
            "Gemma3ForConditionalGeneration",
            {"model_type": "gemma3", "text_config": GEMMA3_TEXT, "vision_config": SIGLIP, "mm_tokens_per_image": 4},
        ),
        {"preprocessor_config.json": {**PROCESSOR, "image_seq_length": 4}},
        published=((r"^vision_tower\.", "vision_tower.vision_model."),),
    ),
    Case(
        "gemma4",
        _of(
            "Gemma4ForConditionalGeneration",
            {
                "model_type": "gemma4",
                "audio_config": None,
                "text_config": GEMMA4_TEXT,
                "vision_config": {
                    **TOWER,
                    "model_type": "gemma4_vision",
                    "head_dim": 16,
                    "num_key_value_heads": 4,
                    "patch_size": 4,
                    "position_embedding_size": 32,
                    "standardize": True,
                },
                "tie_word_embeddings": True,
                **GEMMA4_IDS,
            },
        ),
        # as transformers 5 saves a processor
        {"processor_config.json": {"image_processor": PROCESSOR, "image_seq_length": 280}},
    ),
    Case(
        "gemma4-clipped",
        _of(
            "Gemma4ForConditionalGeneration",
            {
                "model_type": "gemma4",
                "audio_config": None,
                "text_config": GEMMA4_TEXT,
                "vision_config": {
                    **TOWER,
                    "model_type": "gemma4_vision",
                    "head_dim": 16,
                    "num_key_value_heads": 4,
                    "patch_size": 4,
                    "position_embedding_size": 16,
                    "use_clipped_linears": True,
                },
                "tie_word_embeddings": True,
                **GEMMA4_IDS,
            },
        ),
        {"processor_config.json": {"image_processor": PROCESSOR}},
    ),
    Case(
        "gemma4-hears",
        _of(
            "Gemma4ForConditionalGeneration",
            {
                "model_type": "gemma4",
                "audio_config": {**GEMMA4_AUDIO, "hidden_size": 64, "num_attention_heads": 4, "output_proj_dims": 96},
                "text_config": GEMMA4_TEXT,
                "vision_config": {
                    **TOWER,
                    "model_type": "gemma4_vision",
                    "head_dim": 16,
                    "num_key_value_heads": 4,
                    "patch_size": 4,
                    "position_embedding_size": 16,
                },
                "tie_word_embeddings": True,
                **GEMMA4_IDS,
            },
        ),
        {"processor_config.json": {"image_processor": PROCESSOR}},
    ),
    Case(
        "smolvlm",
        _of(
            "SmolVLMForConditionalGeneration",
            {
                **IDEFICS3,
                "model_type": "smolvlm",
                # published without the sizes that the class has by default
                "vision_config": {
                    "model_type": "smolvlm_vision",
                    "hidden_size": 64,
                    "image_size": 64,
                    "intermediate_size": 112,
                    "num_attention_heads": 4,
                    "num_hidden_layers": 2,
                    "patch_size": 16,
                },
            },
        ),
        {"preprocessor_config.json": {**PROCESSOR, "size": {"longest_edge": 128}}},
    ),
    Case(
        "idefics3",
        _of(
            "Idefics3ForConditionalGeneration",
            {
                **IDEFICS3,
                "model_type": "idefics3",
                "vision_config": {**TOWER, "model_type": "idefics3_vision", "image_size": 56, "patch_size": 14},
            },
        ),
    ),
    Case(
        "mistral3",
        _of("Mistral3ForConditionalGeneration", {**MISTRAL3, "vision_config": PIXTRAL}),
        published=ALONE,
        break_token=True,
    ),
    Case(
        "pixtral",
        _of(
            "LlavaForConditionalGeneration",
            {
                "model_type": "llava",
                "image_token_index": 10,
                "projector_hidden_act": "gelu",
                "text_config": {**LLAMA, "architectures": ["LlamaForCausalLM"]},
                "tie_word_embeddings": False,
                "vision_config": {**PIXTRAL, "hidden_act": "silu"},
                "vision_feature_layer": -1,
                "vision_feature_select_strategy": "full",
            },
        ),
        published=ALONE,
        break_token=True,
    ),
    Case(
        "internvl",
        _of(
            "InternVLForConditionalGeneration",
            {
                "model_type": "internvl",
                "downsample_ratio": 0.5,
                "image_token_id": 10,
                "text_config": {**QWEN2, "architectures": ["Qwen2ForCausalLM"]},
                "tie_word_embeddings": False,
                "vision_config": {**INTERN_TOWER, "model_type": "internvl_vision", "attention_bias": True},
            },
        ),
        published=(
            (r"^(?=vision_tower|multi_modal_projector)", "model."),
            (r"^language_model\.model\.", "model.language_model."),
        ),
    ),
    Case(
        "internvl-chat",
        {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "llm_config": {**QWEN2, "architectures": ["Qwen2ForCausalLM"]},
            "max_dynamic_patch": 12,
            "min_dynamic_patch": 1,
            "vision_config": {
                **INTERN_TOWER,
                "model_type": "intern_vit_6b",
                "image_size": 56,
                "patch_size": 14,
                "qkv_bias": True,
            },
        },
        layout=_intern_layout(),
    ),
    *HEARING,
)
"""Every case; llama.cpp's converter makes a projector of each."""
NAMES = tuple(case.name for case in CASES)
CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, "projection_dim": 64}
_LLAVA = {
    "model_type": "llava",
    "image_token_index": 10,
    "projector_hidden_act": "gelu",
    "text_config": {**LLAMA, "architectures": ["LlamaForCausalLM"]},
    "tie_word_embeddings": False,
    "vision_config": CLIP,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
_IN_TOWER = (r"^(model\.)?vision_tower\.", "vision_tower.vision_model.")
LLAVA = (
    Case("llava", _of("LlavaForConditionalGeneration", _LLAVA), published=(_IN_TOWER,)),
    Case(
        "llava-siglip",
        _of(
            "LlavaForConditionalGeneration",
            {
                **_LLAVA,
                "text_config": {**QWEN2, "architectures": ["Qwen2ForCausalLM"]},
                "vision_config": {**SIGLIP, "hidden_act": "gelu_pytorch_tanh"},
                "vision_feature_layer": -1,
                "vision_feature_select_strategy": "full",
            },
        ),
        published=(_IN_TOWER,),
    ),
    Case(
        "llava-next",
        _of(
            "LlavaNextForConditionalGeneration",
            {
                **_LLAVA,
                "model_type": "llava_next",
                "image_grid_pinpoints": [[112, 112], [112, 56], [56, 112]],
                "text_config": {**MISTRAL, "architectures": ["MistralForCausalLM"]},
                "vision_feature_layer": [-3, -2],
            },
        ),
        # as transformers saves it now
    ),
)
"""LLaVA, whose projector llama.cpp's converter refuses to write; its figures are features (llava_features.py)."""


def case_of(name: str) -> Case:
    """The case of this name."""
    from tests.vision.bridged import BRIDGED

    return next(case for case in (*CASES, *BRIDGED, *LLAVA) if case.name == name)
