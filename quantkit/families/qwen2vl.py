"""Qwen2-VL and Qwen2.5-VL, their text model: Qwen 2's graph. Its multimodal rope gives text plain rope's positions.

Shape of the GGUF: llama.cpp's `qwen2vl` architecture (src/models/qwen2vl.cpp). config.json has the text model's
settings at its top level, or in text_config.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped
from quantkit.families.base.multimodal import BARE_PREFIX, TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.pooling import as_bare_model
from quantkit.families.base.refusals import SILU, only
from quantkit.families.qwen2 import DEFAULTS as QWEN2_DEFAULTS
from quantkit.families.qwen2 import FAMILY as QWEN2
from quantkit.families.qwen2 import no_window

# transformers' Qwen2VLTextConfig and Qwen2_5_VLTextConfig.
_TEXT = {
    **QWEN2_DEFAULTS["qwen2"],
    "max_window_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}
# transformers' Qwen2_5OmniTextConfig.
_OMNI = {
    **_TEXT,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen 2's config: rope of type `mrope` is plain rope with sections."""
    only(config, "hidden_act", *SILU, family="Qwen2-VL")
    no_window(config, "Qwen2-VL", by_layer=True)
    as_bare_model(config)
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(name)
    sections = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    if not isinstance(sections, list) or len(sections) not in (3, 4):
        raise CheckpointError(
            f"config.json: {name} has mrope_section {sections!r}, but Qwen2-VL needs a list of three sizes; add it"
        )
    assert isinstance(rope, Mapping)
    kind = rope.get("rope_type") or rope.get("type")
    plain = {key: value for key, value in rope.items() if key != "type"}
    config[name] = {**plain, "rope_type": "default" if kind == "mrope" else kind or "default"}
    config.update(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    return config


FAMILY = replace(
    QWEN2,
    name="Qwen2-VL",
    models="Qwen2-VL 2B/7B/72B, Qwen2.5-VL 3B/7B/32B/72B, Qwen2.5-Omni 3B/7B, text only",
    architectures=(
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5OmniModel",
        "Qwen2VLModel",
    ),
    gguf_arch="qwen2vl",
    defaults={
        "qwen2_vl": _TEXT,
        "qwen2_vl_text": _TEXT,
        "qwen2_5_vl": _TEXT,
        "qwen2_5_vl_text": _TEXT,
        "qwen2_5_omni_text": _OMNI,
    },
    prepare=_prepare,
    text_models={
        "Qwen2VLForConditionalGeneration": ("Qwen2ForCausalLM", "qwen2_vl_text"),
        "Qwen2_5_VLForConditionalGeneration": ("Qwen2ForCausalLM", "qwen2_5_vl_text"),
        "Qwen2_5OmniModel": ("Qwen2ForCausalLM", "qwen2_5_omni_text"),
        "Qwen2VLModel": ("Qwen2Model", "qwen2_vl_text"),
    },
    rope_kinds=("default",),
    rename=((r"^language_model\.(?!model\.|lm_head\.)", "model."), *TEXT_PREFIXES, *BARE_PREFIX),
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    forward=None,
)
