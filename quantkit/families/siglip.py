"""The SigLIP tower that several families see images with, as transformers' SiglipVisionModel saves it."""

from quantkit.families.base.family import Rule
from quantkit.families.base.projector import Tower
from quantkit.families.base.tower_rules import CLIP_LAYER, affine, layer_rules

# transformers' SiglipVisionConfig.
DEFAULTS = {
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
RULES = (
    Rule("embeddings.patch_embedding.weight", "v.patch_embd.weight", ("hidden", "3", "patch", "patch")),
    Rule("embeddings.patch_embedding.bias", "v.patch_embd.bias", ("hidden",)),
    Rule("embeddings.position_embedding.weight", "v.position_embd.weight", ("positions", "hidden")),
    *layer_rules("encoder.layers.{layer}", CLIP_LAYER),
    *affine("post_layernorm", "v.post_ln", "hidden"),
)
"""Names without the prefix of the tower."""
FIXED = {"v.patch_embd.weight": "f32"}
PREFIX = (r"^(model\.)?(vision_tower\.)?vision_model\.", "")
"""`Projector.rename` of the tower."""


def positions(tower: Tower) -> int:
    """Patches of an image: each has a position."""
    return (tower.own["image"] // tower.own["patch"]) ** 2
