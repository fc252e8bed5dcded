"""Qwen 3 VL, its text model: Qwen 3's graph. Its multimodal rope gives text the positions of plain rope.

Shape of the GGUF: llama.cpp's `qwen3vl` architecture (src/models/qwen3vl.cpp). The image tower adds to the hidden
states of the first layers (DeepStack); a key gives the number of these values.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.families.base.family import Dropped, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.keys import base_keys
from quantkit.families.base.multimodal import TEXT_PREFIXES, VISION, VISION_LEFT_OUT
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, only, only_theta
from quantkit.families.base.tower_rules import LAYER, affine, patches_of_two_frames, renumbered
from quantkit.families.qwen3 import DEFAULTS
from quantkit.families.qwen3 import FAMILY as QWEN3


def deepstack_key(arch: str, sizes: Hyperparameters) -> Key:
    """The number of layers that the image tower adds to.

    Raises:
        CheckpointError: the list of these layers in vision_config is not a list of layers of the text model.
    """
    vision = sizes.config.get("vision_config")
    layers = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    if not isinstance(layers or [], list) or len(layers or []) > sizes.n_layer:
        raise CheckpointError(
            f"config.json: vision_config has deepstack_visual_indexes {layers!r}, but the text model has"
            f" {sizes.n_layer} layers; correct the list"
        )
    return Key(f"{arch}.n_deepstack_layers", "u32", len(layers or []))


def keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The common keys and the number of layers that the image tower adds to."""
    return [*base_keys(arch, sizes), deepstack_key(arch, sizes)]


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen 3's config, under the name of Qwen 3's class."""
    assert QWEN3.prepare is not None
    return {**QWEN3.prepare(config), "model_type": "qwen3"}


# transformers' Qwen3VLVisionConfig.
_TOWER = {
    "deepstack_visual_indexes": [8, 16, 24],
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
}
_BLOCK, _DEEP, _MERGER = "visual.blocks.{layer}", "visual.deepstack_merger_list.{from}", "visual.merger"


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    only(config, "temporal_patch_size", 2, family="Qwen3-VL")
    only(config, "hidden_act", *GELU, family="Qwen3-VL")
    only_theta(config, 10000.0, "Qwen3-VL's tower")
    positions, patch = size(config, "num_position_embeddings"), size(config, "patch_size")
    named = {"num_attention_heads": config.get("num_heads"), "num_hidden_layers": config.get("depth")}
    return {"image_size": int(positions**0.5 * patch), **config, **named}


def _deepstack_layers(tower: Tower) -> list[int]:
    layers = tower.config.get("deepstack_visual_indexes") or []
    if not isinstance(layers, list) or any(layer not in range(tower.n_layer) for layer in layers):
        raise CheckpointError(
            f"config.json: vision_config has deepstack_visual_indexes {layers!r}, but the tower has"
            f" {tower.n_layer} layers; correct the list"
        )
    return layers


def _projector_keys(tower: Tower) -> list[Key]:
    text = tower.whole.get("text_config")
    layers = _deepstack_layers(tower)
    return [
        Key("clip.projector_type", "str", "qwen3vl_merger"),
        Key("clip.use_gelu", "bool", True),
        Key("clip.vision.spatial_merge_size", "u32", size(tower.config, "spatial_merge_size")),
        Key(
            "clip.vision.attention.layer_norm_epsilon",
            "f32",
            number(text if isinstance(text, dict) else {}, "rms_norm_eps") or 1e-6,
        ),
        Key("clip.vision.is_deepstack_layers", "bools", [layer in layers for layer in range(tower.n_layer)]),
    ]


def _sizes(tower: Tower) -> dict[str, int]:
    merge, positions = size(tower.config, "spatial_merge_size"), size(tower.config, "num_position_embeddings")
    return {"merged": merge * merge * tower.hidden, "positions": positions}


def _deepstack_rules(tower: Tower) -> tuple[Rule, ...]:
    rules = (
        *affine(f"{_DEEP}.norm", "v.deepstack.{to}.norm", "merged"),
        *affine(f"{_DEEP}.linear_fc1", "v.deepstack.{to}.fc1", "merged", "merged"),
        *affine(f"{_DEEP}.linear_fc2", "v.deepstack.{to}.fc2", "text", "merged"),
    )
    numbers = enumerate(_deepstack_layers(tower))
    return tuple(rule for index, layer in numbers for rule in renumbered(rules, index, layer))


PROJECTOR = Projector(
    name="the projector of Qwen3-VL",
    rules=(
        *patches_of_two_frames("visual.patch_embed.proj"),
        Rule("visual.patch_embed.proj.bias", "v.patch_embd.bias", ("hidden",)),
        Rule("visual.pos_embed.weight", "v.position_embd.weight", ("positions", "hidden")),
        *affine(f"{_BLOCK}.attn.qkv", f"{LAYER}.attn_qkv", "qkv", "hidden"),
        *affine(f"{_BLOCK}.attn.proj", f"{LAYER}.attn_out", "hidden", "hidden"),
        *affine(f"{_BLOCK}.norm1", f"{LAYER}.ln1", "hidden"),
        *affine(f"{_BLOCK}.norm2", f"{LAYER}.ln2", "hidden"),
        *affine(f"{_BLOCK}.mlp.linear_fc1", f"{LAYER}.ffn_up", "ffn", "hidden"),
        *affine(f"{_BLOCK}.mlp.linear_fc2", f"{LAYER}.ffn_down", "hidden", "ffn"),
        *affine(f"{_MERGER}.norm", "v.post_ln", "hidden"),
        *affine(f"{_MERGER}.linear_fc1", "mm.0", "merged", "merged"),
        *affine(f"{_MERGER}.linear_fc2", "mm.2", "text", "merged"),
    ),
    keys=_projector_keys,
    tensors=r"(model\.)?visual\..*",
    defaults=_TOWER,
    prepare=_tower,
    own=_sizes,
    computed_rules=_deepstack_rules,
    rename=((r"^model\.visual\.", "visual."),),
)
QWEN3_5_PROJECTOR = replace(
    PROJECTOR, defaults={key: value for key, value in _TOWER.items() if key != "deepstack_visual_indexes"}
)
"""Of Qwen3.5 to 3.8: its tower adds to no layer of the text model."""

FAMILY = replace(
    QWEN3,
    name="Qwen3-VL",
    models="Qwen3-VL 2B/4B/8B/32B",
    architectures=("Qwen3VLForConditionalGeneration",),
    gguf_arch="qwen3vl",
    keys=keys,
    prepare=_prepare,
    # transformers' Qwen3VLTextConfig
    defaults={"qwen3_vl_text": {**DEFAULTS["qwen3"], "max_position_embeddings": 128000, "rope_theta": 500000.0}},
    text_models={"Qwen3VLForConditionalGeneration": ("Qwen3ForCausalLM", "qwen3_vl_text")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(VISION, VISION_LEFT_OUT),),
    forward=None,
    projectors={"Qwen3VLForConditionalGeneration": PROJECTOR},
)
