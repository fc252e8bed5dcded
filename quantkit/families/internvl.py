"""The projector of InternVL: layers with a scale of each branch, squares of patches, a norm and two matrices.

llama.cpp's graph: tools/mtmd/models/internvl.cpp. Two layouts: transformers' and that of the remote code, which fuses
queries, keys and values. The text model is of any family (see wrappers.py).
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Key, Rule
from quantkit.families.base.hyperparameters import number, optional_size
from quantkit.families.base.projector import Projector, Sources, Tower
from quantkit.families.base.refusals import GELU, SILU, only
from quantkit.families.base.tower_rules import LAYER, affine, fused_attention, layer_rules, norm

# transformers' InternVLVisionConfig.
_DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": 448,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
_FEED = {"mlp.fc1": ("ffn_up", "ffn", "hidden"), "mlp.fc2": ("ffn_down", "hidden", "ffn")}


def _tower(config: dict[str, Any], _sources: Sources) -> dict[str, Any]:
    """The tower's config with one number for square images and patches."""
    if config["hidden_act"] not in (*GELU, *SILU):
        raise UnsupportedError(
            f"config.json: hidden_act of vision_config is {config['hidden_act']!r}, but llama.cpp runs this tower only"
            " with gelu or silu"
        )
    # llama.cpp tells the 6B tower, which has RMSNorm, by its sizes (tools/mtmd/models/internvl.cpp)
    large = (config["hidden_size"], config["num_hidden_layers"]) == (3200, 45)
    only(config, "norm_type", "rms_norm" if large else "layer_norm", family="an InternVL tower of these sizes")
    for name in ("image_size", "patch_size"):
        value = config[name]
        if isinstance(value, list):
            if not value or any(side != value[0] for side in value):
                raise UnsupportedError(f"config.json: {name} is {value!r}, but llama.cpp takes square ones only")
            config = {**config, name: value[0]}
    return config


def _scale(tower: Tower) -> int:
    ratio = number(tower.whole, "downsample_ratio")
    if not ratio or ratio > 1:
        raise CheckpointError(
            f"config.json: downsample_ratio is {ratio!r}, but the projector needs a number up to 1; correct it"
        )
    return int(1.0 / ratio)


def _keys(tower: Tower) -> list[Key]:
    activation = "clip.use_silu" if tower.config["hidden_act"] in SILU else "clip.use_gelu"
    least, most = (optional_size(tower.whole, f"{name}_dynamic_patch") for name in ("min", "max"))
    return [
        Key("clip.projector_type", "str", "internvl"),
        Key("clip.vision.attention.layer_norm_epsilon", "f32", number(tower.config, "layer_norm_eps")),
        Key(activation, "bool", True),
        Key("clip.vision.projector.scale_factor", "u32", _scale(tower)),
        *([Key("clip.vision.preproc_min_tiles", "u32", least)] if least else []),
        *([Key("clip.vision.preproc_max_tiles", "u32", most)] if most else []),
    ]


def _sizes(tower: Tower) -> dict[str, int]:
    patches = (tower.own["image"] // tower.own["patch"]) ** 2
    return {"positions": patches + 1, "merged": _scale(tower) ** 2 * tower.hidden}


def _ends(token: str, position: str, patch: str, norm: str, first: str, second: str) -> tuple[Rule, ...]:
    """The embeddings and the projector, by the names of a layout."""
    return (
        Rule(token, "v.class_embd", ("1", "1", "hidden")),
        Rule(position, "v.position_embd.weight", ("1", "positions", "hidden")),
        Rule(f"{patch}.weight", "v.patch_embd.weight", ("hidden", "3", "patch", "patch")),
        Rule(f"{patch}.bias", "v.patch_embd.bias", ("hidden",)),
        *affine(norm, "mm.model.mlp.0", "merged"),
        *affine(first, "mm.model.mlp.1", "text", "merged"),
        *affine(second, "mm.model.mlp.3", "text", "text"),
    )


_BLOCK = "vision_tower.encoder.layer.{layer}"
PROJECTOR = Projector(
    name="the projector of InternVL",
    rules=(
        *_ends(
            "vision_tower.embeddings.cls_token",
            "vision_tower.embeddings.position_embeddings",
            "vision_tower.embeddings.patch_embeddings.projection",
            "multi_modal_projector.layer_norm",
            "multi_modal_projector.linear_1",
            "multi_modal_projector.linear_2",
        ),
        *layer_rules(
            _BLOCK,
            {
                "attention.projection_layer": ("attn_out", "hidden", "hidden"),
                **_FEED,
            },
        ),
        *norm(f"{_BLOCK}.layernorm_before", f"{LAYER}.ln1"),
        *norm(f"{_BLOCK}.layernorm_after", f"{LAYER}.ln2"),
        *(
            rule
            for name in "qkv"
            for rule in (
                Rule(f"{_BLOCK}.attention.{name}_proj.weight", f"{LAYER}.attn_{name}.weight", ("hidden", "hidden")),
                Rule(f"{_BLOCK}.attention.{name}_proj.bias", f"{LAYER}.attn_{name}.bias", ("hidden",), required=False),
            )
        ),
        *affine(f"{_BLOCK}.attention.q_norm", f"{LAYER}.attn_q_norm", "hidden", bias=False, required=False),
        *affine(f"{_BLOCK}.attention.k_norm", f"{LAYER}.attn_k_norm", "hidden", bias=False, required=False),
        Rule(f"{_BLOCK}.lambda_1", f"{LAYER}.ls1.weight", ("hidden",)),
        Rule(f"{_BLOCK}.lambda_2", f"{LAYER}.ls2.weight", ("hidden",)),
    ),
    keys=_keys,
    tensors=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    defaults=_DEFAULTS,
    prepare=_tower,
    own=_sizes,
    rename=((r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),),
)

_CHAT_BLOCK = "vision_model.encoder.layers.{layer}"
CHAT_PROJECTOR = replace(
    PROJECTOR,
    rules=(
        *_ends(
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.position_embedding",
            "vision_model.embeddings.patch_embedding",
            "mlp1.0",
            "mlp1.1",
            "mlp1.3",
        ),
        *fused_attention(f"{_CHAT_BLOCK}.attn.qkv"),
        *layer_rules(
            _CHAT_BLOCK,
            {
                "attn.proj": ("attn_out", "hidden", "hidden"),
                **_FEED,
            },
        ),
        *norm(f"{_CHAT_BLOCK}.norm1", f"{LAYER}.ln1"),
        *norm(f"{_CHAT_BLOCK}.norm2", f"{LAYER}.ln2"),
        *affine(f"{_CHAT_BLOCK}.attn.q_norm", f"{LAYER}.attn_q_norm", "hidden", bias=False, required=False),
        *affine(f"{_CHAT_BLOCK}.attn.k_norm", f"{LAYER}.attn_k_norm", "hidden", bias=False, required=False),
        Rule(f"{_CHAT_BLOCK}.ls1", f"{LAYER}.ls1.weight", ("hidden",)),
        Rule(f"{_CHAT_BLOCK}.ls2", f"{LAYER}.ls2.weight", ("hidden",)),
    ),
    tensors=r"(vision_model|mlp1)\..*",
    rename=(),
)
