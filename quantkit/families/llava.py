"""The projector of LLaVA 1.5, LLaVA 1.6 (NeXT) and their kin: a CLIP or SigLIP tower, then two matrices.

llama.cpp's graph: tools/mtmd/models/llava.cpp. The vectors are those of the layers of `vision_feature_layer`, before
the tower's last norm. So the file holds no later layer. Names of keys as in llama.cpp's
tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py. The text model is of any family (see wrappers.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import siglip
from quantkit.families.base.family import Dropped, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number, size
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, SILU, only
from quantkit.families.base.tower_rules import CLIP_LAYER, affine, layer_rules

# transformers' CLIPVisionConfig, LlavaConfig and LlavaNextConfig.
_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 32,
}
_FEATURE_LAYER = -2
_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_SIDES = 2
_QUICK_GELU = "quick_gelu"
_BLOCK = "vision_tower.encoder.layers.{layer}"
_EMBEDDINGS = "vision_tower.embeddings"
_SOURCE = r"(model\.)?vision_tower\.(vision_model\.)?"
"""Prefix of the tower in a checkpoint, as a regular expression."""


def _tower(config: dict[str, Any], sources: Sources, strategy: str) -> dict[str, Any]:
    """The tower's config with `feature_layers`, and with as many layers as they need.

    `strategy`: the only vision_feature_select_strategy that gives each patch one vector.
    """
    only(config, "hidden_act", *GELU, *SILU, _QUICK_GELU, family="LLaVA")
    whole, name = sources.config, "LLaVA with this tower"
    only(whole, "projector_hidden_act", *GELU, family="LLaVA")
    only(whole, "multimodal_projector_bias", True, family="LLaVA")
    only(
        {"vision_feature_select_strategy": "default", **whole}, "vision_feature_select_strategy", strategy, family=name
    )
    count = size(config, "num_hidden_layers")
    layers = _feature_layers(whole, count)
    return {**config, "num_hidden_layers": layers[-1], "feature_layers": layers, "checkpoint_layers": count}


def _feature_layers(config: Mapping[str, Any], count: int) -> list[int]:
    """The hidden states that the projector takes: 0 is the input of the first of `count` layers."""
    stated = config.get("vision_feature_layer")
    stated = _FEATURE_LAYER if stated is None else stated
    listed = stated if isinstance(stated, list) else [stated]
    if any(not isinstance(layer, int) or not -count <= layer <= count for layer in listed) or not listed:
        raise CheckpointError(
            f"config.json: vision_feature_layer is {stated!r}, but the tower has {count} layers; correct it"
        )
    layers = [layer if layer >= 0 else count + 1 + layer for layer in listed]
    if layers != sorted(set(layers)) or not layers[-1]:
        raise UnsupportedError(
            f"config.json: vision_feature_layer is {stated!r}, but llama.cpp takes layers in ascending order only"
        )
    return layers


def _keys(tower: Tower) -> list[Key]:
    activation = tower.config["hidden_act"]
    return [
        Key("clip.projector_type", "str", "mlp"),
        Key("clip.vision.attention.layer_norm_epsilon", "f32", number(tower.config, "layer_norm_eps")),
        # without a key llama.cpp takes quick_gelu
        *([Key("clip.use_gelu", "bool", True)] if activation in GELU else []),
        *([Key("clip.use_silu", "bool", True)] if activation in SILU else []),
        Key("clip.vision.feature_layer", "i32s", tower.config["feature_layers"]),
    ]


def _tile_keys(tower: Tower) -> list[Key]:
    """LLaVA 1.6: the sizes, in pixels, of images that are cut into tiles."""
    grid = tower.whole.get("image_grid_pinpoints") or _PINPOINTS
    # pairs (height, width) in config.json; llama.cpp reads (width, height)
    pairs = [pair[::-1] for pair in grid if isinstance(pair, Sequence) and len(pair) == _SIDES]
    sides = [side for pair in pairs for side in pair]
    if len(pairs) != len(grid) or any(not isinstance(side, int) or side < 1 for side in sides):
        raise CheckpointError(
            f"config.json: image_grid_pinpoints is {grid!r}, but it must be a list of pairs of sizes; correct it"
        )
    return [
        *_keys(tower),
        Key("clip.vision.image_grid_pinpoints", "i32s", sides),
        Key("clip.vision.mm_patch_merge_type", "str", "spatial_unpad"),
    ]


def _later_layers(tower: Hyperparameters) -> range:
    """Layers of the checkpoint after the last that the projector takes."""
    assert isinstance(tower, Tower)
    return range(tower.n_layer, tower.own["layers"])


def _sizes(tower: Tower, further: int) -> dict[str, int]:
    """`further`: positions beside those of the patches."""
    return {
        "positions": siglip.positions(tower) + further,
        "features": len(tower.config["feature_layers"]) * tower.hidden,
        "layers": size(tower.config, "checkpoint_layers"),
    }


_PROJECTION = (
    *affine("multi_modal_projector.linear_1", "mm.0", "text", "features"),
    *affine("multi_modal_projector.linear_2", "mm.2", "text", "text"),
)
PROJECTOR = Projector(
    name="the projector of LLaVA",
    rules=(
        Rule(f"{_EMBEDDINGS}.class_embedding", "v.class_embd", ("hidden",)),
        Rule(f"{_EMBEDDINGS}.patch_embedding.weight", "v.patch_embd.weight", ("hidden", "3", "patch", "patch")),
        Rule(f"{_EMBEDDINGS}.position_embedding.weight", "v.position_embd.weight", ("positions", "hidden")),
        *affine("vision_tower.pre_layrnorm", "v.pre_ln", "hidden"),
        *layer_rules(_BLOCK, CLIP_LAYER),
        *_PROJECTION,
    ),
    keys=_keys,
    tensors=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    defaults=_DEFAULTS,
    prepare=lambda config, sources: _tower(config, sources, "default"),
    own=lambda tower: _sizes(tower, 1),
    rename=((f"^{_SOURCE}", "vision_tower."), (r"^model\.(?=multi_modal_projector)", "")),
    unused=(
        Dropped(_SOURCE + r"encoder\.layers\.{layer}\..*", layers=_later_layers),
        Dropped(_SOURCE + r"(post_layernorm\..*|head\..*|embeddings\.position_ids)"),
    ),
)
SIGLIP_PROJECTOR = replace(
    PROJECTOR,
    rules=(
        *(
            Rule(f"vision_tower.{rule.source}", rule.target, rule.shape)
            for rule in siglip.RULES
            if not rule.source.startswith("post_layernorm")
        ),
        *_PROJECTION,
    ),
    defaults={**siglip.DEFAULTS, "hidden_act": "gelu_pytorch_tanh"},
    prepare=lambda config, sources: _tower(config, sources, "full"),
    own=lambda tower: _sizes(tower, 0),
    fixed=siglip.FIXED,
)


def with_tiles(projector: Projector) -> Projector:
    """The projector of LLaVA 1.6, which cuts large images into tiles.

    llama.cpp loads `image_newline`, but does not put it between the rows.
    """
    newline = Rule("image_newline", "v.image_newline", ("text",), required=False)
    return replace(
        projector,
        name="the projector of LLaVA 1.6",
        rules=(*projector.rules, newline),
        keys=_tile_keys,
        rename=(*projector.rename, (r"^model\.(?=image_newline$)", "")),
    )
