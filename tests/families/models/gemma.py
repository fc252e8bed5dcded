"""Gemma 1, 2 and 3: norms less one, caps, windows that slide in some layers, the text model beside an image tower."""

from dataclasses import replace
from typing import Any

from tests.families.models.case import VOCAB, Case, Tensors, weight

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
}
# fewer than the tokens of a test, so that the window is seen
WINDOW = {"sliding_window": 5}
GEMMA2 = {**BASE, **WINDOW, "model_type": "gemma2", "query_pre_attn_scalar": 32}
GEMMA3 = {**BASE, **WINDOW, "model_type": "gemma3_text", "query_pre_attn_scalar": 32, "num_hidden_layers": 7}


def _with_images(config: dict[str, Any], tensors: Tensors, prefix: str, head: str) -> tuple[dict[str, Any], Tensors]:
    """As Gemma 3 4B is published: the text model inside, an image tower beside."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    published = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {name: value for name, value in config.items() if name != "architectures"},
        "vision_config": {**vision, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "torch_dtype": "float32",
    }
    result = {name.replace("model.", prefix, 1): value for name, value in tensors.items() if name != "lm_head.weight"}
    for name, shape in (
        ("vision_tower.vision_model.post_layernorm.weight", (32,)),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", (64, 32)),
        ("multi_modal_projector.mm_input_projection_weight", (32, 64)),
    ):
        result[head + name] = weight(0, name, shape)
    return published, result


def publish_first(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The names of the first releases."""
    return _with_images(config, tensors, "language_model.model.", "")


def publish_today(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The names since transformers 4.52."""
    return _with_images(config, tensors, "model.language_model.", "model.")


WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 32}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}

_PLAIN = (
    # the converter writes id 107, whatever its text; quantkit looks for <end_of_turn>, which is 107 in Gemma
    Case("gemma", {**BASE, "model_type": "gemma"}, differs=("tokenizer.ggml.eot_token_id",)),
    # a base of its own is lost by llama.cpp's converter
    Case("gemma-theta", {**BASE, "model_type": "gemma", "rope_theta": 500.0}, converter=False),
    Case("gemma2", GEMMA2),
    # the 27B is known by its layers: its queries are scaled by hidden_size / heads
    Case("gemma2-27b", {**GEMMA2, **WIDE, "num_hidden_layers": 46}),
    # the converter does not say which layers slide
    Case(
        "gemma2-layers",
        {**GEMMA2, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        converter=False,
    ),
    Case("gemma3", GEMMA3),
    Case("gemma3-linear", {**GEMMA3, **LINEAR, "final_logit_softcapping": 20.0, "rope_local_base_freq": 500.0}),
    Case("gemma3-pattern", {**GEMMA3, "sliding_window_pattern": 3}, converter=False),
    Case("gemma3-untied", {**GEMMA3, "tie_word_embeddings": False}),
    Case("gemma3-images", {**GEMMA3, **LINEAR}, publish=publish_today),
    Case("gemma3-images-first", {**GEMMA3, **LINEAR}, publish=publish_first),
)
CASES = tuple(replace(case, tokenizer="gemma") for case in _PLAIN)
