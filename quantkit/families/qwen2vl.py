"""Qwen2-VL and Qwen2.5-VL, their text model: Qwen 2's graph. Its multimodal rope gives text plain rope's positions.

Shape of the GGUF: llama.cpp's `qwen2vl` architecture (src/models/qwen2vl.cpp). config.json has the text model's
settings at its top level, or in text_config.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Dropped, Key
from quantkit.families.base.hyperparameters import optional_size
from quantkit.families.base.multimodal import BARE_PREFIX, TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.base.pooling import as_bare_model
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import SILU, only, only_theta
from quantkit.families.base.tower_rules import LAYER, affine, fused_attention, patches_of_two_frames
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


# transformers' Qwen2VLVisionConfig and Qwen2_5_VLVisionConfig. The converter states the size that a tower of fixed
# positions would have.
_TOWER = {"depth": 32, "image_size": 560, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2}
_QWEN2_TOWER = {**_TOWER, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4}
_QWEN2_5_TOWER = {
    **_TOWER,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "out_hidden_size": 3584,
}
_BLOCK = "visual.blocks.{layer}"


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    """The tower's config under the standard names; of Qwen2-VL the width of the layers is `embed_dim`."""
    only(config, "temporal_patch_size", 2, family="Qwen2-VL")
    only(config, "spatial_merge_size", 2, family="Qwen2-VL")
    # the converter writes no key for it
    only(config, "window_size", 112, family="Qwen2.5-VL")
    named = {**config, "num_attention_heads": config.get("num_heads"), "num_hidden_layers": config.get("depth")}
    only_theta(config, 10000.0, "Qwen2-VL's tower")
    if "embed_dim" not in config:
        only(config, "hidden_act", *SILU, family="Qwen2.5-VL's tower")
    else:
        only(config, "hidden_act", "quick_gelu", family="Qwen2-VL's tower")
        # a key of the GGUF that llama.cpp does not read for this tower
        named |= {"intermediate_size": config.get("hidden_size"), "hidden_size": config["embed_dim"]}
    return named


def _merger_keys(kind: str, tower: Tower) -> list[Key]:
    return [
        Key("clip.projector_type", "str", kind),
        *_window_keys(tower),
        # a constant of the class
        Key("clip.vision.attention.layer_norm_epsilon", "f32", 1e-6),
    ]


def _window_keys(tower: Tower) -> list[Key]:
    """Of Qwen2.5-VL: every so many layers one attends to the whole image."""
    if "fullatt_block_indexes" not in tower.config:
        return []
    whole = tower.config["fullatt_block_indexes"]
    period = whole[0] + 1 if isinstance(whole, list) and whole and isinstance(whole[0], int) else 0
    if not period or whole != list(range(period - 1, period * len(whole), period)):
        raise UnsupportedError(
            f"config.json: fullatt_block_indexes is {whole!r}, but llama.cpp needs layers at equal distances; a GGUF"
            " cannot express this setting"
        )
    return [Key("clip.use_silu", "bool", True), Key("clip.vision.n_wa_pattern", "u32", period)]


def _merged(tower: Tower) -> dict[str, int]:
    ratio = optional_size(tower.config, "mlp_ratio") or 0
    return {"merged": 4 * tower.hidden, "feed": tower.hidden * ratio}


_MERGER = (
    *affine("visual.merger.mlp.0", "mm.0", "merged", "merged"),
    *affine("visual.merger.mlp.2", "mm.2", "text", "merged"),
    *patches_of_two_frames("visual.patch_embed.proj"),
    *fused_attention(f"{_BLOCK}.attn.qkv"),
    *affine(f"{_BLOCK}.attn.proj", f"{LAYER}.attn_out", "hidden", "hidden"),
)
_QWEN2_PROJECTOR = Projector(
    name="the projector of Qwen2-VL",
    rules=(
        *_MERGER,
        *affine("visual.merger.ln_q", "v.post_ln", "hidden"),
        *affine(f"{_BLOCK}.norm1", f"{LAYER}.ln1", "hidden"),
        *affine(f"{_BLOCK}.norm2", f"{LAYER}.ln2", "hidden"),
        *affine(f"{_BLOCK}.mlp.fc1", f"{LAYER}.ffn_up", "feed", "hidden"),
        *affine(f"{_BLOCK}.mlp.fc2", f"{LAYER}.ffn_down", "hidden", "feed"),
    ),
    keys=lambda tower: _merger_keys("qwen2vl_merger", tower),
    tensors=r"(model\.)?visual\..*",
    defaults=_QWEN2_TOWER,
    prepare=_tower,
    own=_merged,
    rename=((r"^model\.visual\.", "visual."),),
)
_QWEN2_5_PROJECTOR = replace(
    _QWEN2_PROJECTOR,
    name="the projector of Qwen2.5-VL",
    rules=(
        *_MERGER,
        *affine("visual.merger.ln_q", "v.post_ln", "hidden", bias=False),
        *affine(f"{_BLOCK}.norm1", f"{LAYER}.ln1", "hidden", bias=False),
        *affine(f"{_BLOCK}.norm2", f"{LAYER}.ln2", "hidden", bias=False),
        *affine(f"{_BLOCK}.mlp.gate_proj", f"{LAYER}.ffn_gate", "ffn", "hidden"),
        *affine(f"{_BLOCK}.mlp.up_proj", f"{LAYER}.ffn_up", "ffn", "hidden"),
        *affine(f"{_BLOCK}.mlp.down_proj", f"{LAYER}.ffn_down", "hidden", "ffn"),
    ),
    keys=lambda tower: _merger_keys("qwen2.5vl_merger", tower),
    defaults=_QWEN2_5_TOWER,
)

FAMILY = replace(
    QWEN2,
    name="Qwen2-VL",
    models="Qwen2-VL 2B/7B/72B, Qwen2.5-VL 3B/7B/32B/72B; Qwen2.5-Omni 3B/7B, text only",
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
    projectors={
        "Qwen2VLForConditionalGeneration": _QWEN2_PROJECTOR,
        "Qwen2_5_VLForConditionalGeneration": _QWEN2_5_PROJECTOR,
    },
)
